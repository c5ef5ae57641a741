"""GPT-2 (Radford et al. 2019): LayerNorm before each branch and at the end, otherwise GPT-1.

Weights that end a residual branch start smaller by 1/sqrt(2 * num_layers) (section 2.3).
"""

import math
from dataclasses import replace

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.model.families import openai_gpt
from gpt_dist.model.families.openai_gpt import FAMILY as OPENAI_GPT
from gpt_dist.model.families.openai_gpt import NORM_EPSILON
from gpt_dist.model.layers import INIT_STD, Block
from gpt_dist.model.regions import Group


def make_block(config: ResolvedModelConfig, group: Group) -> Block:
    """Return a block with initial weights."""
    output_std = INIT_STD / math.sqrt(2 * config.num_layers)
    return openai_gpt.make_block(config, group, norm_first=True, output_std=output_std)


FAMILY = replace(
    OPENAI_GPT,
    block=make_block,
    final_norm=openai_gpt.make_norm,
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    names={
        **OPENAI_GPT.names,
        "token_embedding": "transformer.wte",
        "position_embedding": "transformer.wpe",
        "final_norm": "transformer.ln_f",
    },
    keys={
        **OPENAI_GPT.keys,
        "sequence_length": (1024, "n_positions"),
        "vocab_size": (50257, "vocab_size"),
    },
    written={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (NORM_EPSILON,),
        "tie_word_embeddings": (True,),
    },
)
