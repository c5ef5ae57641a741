"""GPT-2 (Radford et al. 2019): LayerNorm before each branch and at the end, otherwise GPT-1.

Weights that end a residual branch start smaller by 1/sqrt(2 * num_layers) (section 2.3).
"""

import math
from typing import Any

from torch import Tensor, nn

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.model.cache import LayerCache
from gpt_dist.model.families import openai_gpt
from gpt_dist.model.family import Family
from gpt_dist.model.hugging_face import HuggingFaceConfig, Stored, Values, same, token_rows
from gpt_dist.model.layers import INIT_STD, Rotation


class Block(openai_gpt.Block):
    """Attention and feed-forward, each on a residual branch with LayerNorm before it."""

    def forward(
        self, hidden: Tensor, rotation: Rotation | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """Map hidden states [B, T, D] to hidden states [B, T, D]."""
        mixed = self.attention(self.attention_norm(hidden), rotation, cache)
        hidden = hidden + self.dropout(mixed)
        output: Tensor = hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
        return output


class GPT2(openai_gpt.OpenAIGPT):
    """GPT-2."""

    def make_block(self) -> nn.Module:
        """Return one block."""
        return Block(self.config, self.group, INIT_STD / math.sqrt(2 * self.config.num_layers))

    def make_final_norm(self) -> nn.Module:
        """Return the LayerNorm of the residual stream."""
        return nn.LayerNorm(self.config.hidden_size, eps=openai_gpt.NORM_EPSILON)


def stored_parameter(name: str, config: ResolvedModelConfig) -> Stored:
    """Return how `GPT2LMHeadModel` stores a parameter of this model."""
    if name == "token_embedding.weight":
        return token_rows("transformer.wte.weight", config)
    if name == "position_embedding.weight":
        return same("transformer.wpe.weight")
    if name.startswith("final_norm."):
        return same(name.replace("final_norm", "transformer.ln_f"))
    return openai_gpt.stored_in_block(name, config)


def supported(values: Values) -> dict[str, tuple[Any, ...]]:
    """Return the values of config.json with which GPT-2 computes what this model computes."""
    return {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (openai_gpt.NORM_EPSILON,),
        **openai_gpt.supported_in_block(values),
    }


GPT_2 = Family(
    model=GPT2,
    stored_parameter=stored_parameter,
    hugging_face=HuggingFaceConfig(
        architecture="GPT2LMHeadModel",
        model_type="gpt2",
        prefix="transformer.",
        keys=openai_gpt.CONFIG_KEYS,
        defaults={"sequence_length": 1024, "vocab_size": 50257},
        fixed={"activation_function": "gelu_new", **openai_gpt.CONFIG_FIXED},
        supported=supported,
    ),
)
