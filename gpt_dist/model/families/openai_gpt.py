"""GPT-1 (Radford et al. 2018): LayerNorm after each residual sum, learned positions, tied head."""

from torch import nn

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.model.family import Family, fused_thirds, transposed
from gpt_dist.model.layers import INIT_STD, Attention, Block, FeedForward
from gpt_dist.model.regions import Group

NORM_EPSILON = 1e-5


def make_norm(config: ResolvedModelConfig) -> nn.LayerNorm:
    """Return a LayerNorm of hidden states."""
    return nn.LayerNorm(config.hidden_size, eps=NORM_EPSILON)


def make_block(
    config: ResolvedModelConfig,
    group: Group,
    norm_first: bool = False,
    output_std: float = INIT_STD,
) -> Block:
    """Return a block; weights that end a branch are drawn with standard deviation `output_std`."""
    return Block(
        Attention(config, group, bias=True, output_std=output_std),
        make_norm(config),
        FeedForward(config, group, output_std),
        make_norm(config),
        dropout=config.dropout,
        norm_first=norm_first,
    )


FAMILY = Family(
    block=make_block,
    final_norm=lambda _config: nn.Identity(),  # the last block ends with LayerNorm
    rotation=None,
    tied_head=True,
    architecture="OpenAIGPTLMHeadModel",
    model_type="openai-gpt",
    names={
        "token_embedding": "transformer.tokens_embed",
        "position_embedding": "transformer.positions_embed",
        "blocks": "transformer.h",
        "attention.query_key_value": "attn.c_attn",
        "attention.projection": "attn.c_proj",
        "attention_norm": "ln_1",
        "feed_forward.expansion": "mlp.c_fc",
        "feed_forward.projection": "mlp.c_proj",
        "feed_forward_norm": "ln_2",
    },
    other_heads=(*Family.other_heads, "multiple_choice_head."),
    buffers=("attn.bias", "masked_bias", "position_ids"),
    fused=fused_thirds,
    in_block=transposed,
    keys={
        "num_layers": (12, "n_layer"),
        "hidden_size": (768, "n_embd"),
        "num_heads": (12, "n_head"),
        "sequence_length": (512, "n_positions"),
        "vocab_size": (40478, "vocab_size"),
        "dropout": (0.1, "attn_pdrop", "embd_pdrop", "resid_pdrop"),
    },
    written={
        "afn": ("gelu",),
        "layer_norm_epsilon": (NORM_EPSILON,),
        "tie_word_embeddings": (True,),
    },
    accepted={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    derived=lambda config: {"n_inner": 4 * config.hidden_size},
)
