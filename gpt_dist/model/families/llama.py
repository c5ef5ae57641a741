"""Llama (Touvron et al. 2023): RMSNorm, rotary positions, SwiGLU, grouped key-value heads.

Linear layers have no bias, and the head has a weight of its own. Dropout is on attention weights
only, as in Hugging Face's class. Rotary positions are not scaled.
"""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from gpt_dist.config import ModelConfig, ResolvedModelConfig
from gpt_dist.model.family import Family, Values, grouped_projections, same
from gpt_dist.model.layers import Attention, Block, ColumnParallel, Rotation, RowParallel
from gpt_dist.model.regions import Group


def complete(config: ModelConfig) -> dict[str, Any]:
    """Return the architecture keys, with this family's own choice of those left out."""
    # 8/3 of the hidden size, rounded up to a multiple of 128.
    inner = 128 * math.ceil(8 * config.hidden_size / 3 / 128)
    return {
        "num_key_value_heads": config.num_key_value_heads or config.num_heads,
        "feed_forward_size": config.feed_forward_size or inner,
        "rotary_base": config.rotary_base or 10_000.0,
        "norm_epsilon": config.norm_epsilon or 1e-5,
    }


class SwiGLU(nn.Module):
    """Feed-forward layer whose inner features are gated by a second projection (Shazeer 2020)."""

    def __init__(self, config: ResolvedModelConfig, group: Group) -> None:
        super().__init__()
        width, inner = config.hidden_size, complete(config)["feed_forward_size"]
        self.gate = ColumnParallel(width, inner, group, bias=False)
        self.expansion = ColumnParallel(width, inner, group, bias=False)
        self.projection = RowParallel(inner, width, group, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map each hidden state [B, T, D] by itself."""
        return self.projection(F.silu(self.gate(hidden)) * self.expansion(hidden))


def make_norm(config: ResolvedModelConfig) -> nn.RMSNorm:
    """Return an RMSNorm of hidden states."""
    return nn.RMSNorm(config.hidden_size, eps=complete(config)["norm_epsilon"])


def make_block(config: ResolvedModelConfig, group: Group) -> Block:
    """Return a block with initial weights."""
    return Block(
        Attention(config, group, bias=False),
        make_norm(config),
        SwiGLU(config, group),
        make_norm(config),
        dropout=0.0,
        norm_first=True,
    )


def make_rotation(config: ResolvedModelConfig, positions: Tensor) -> Rotation:
    """Return the rotary embedding of positions [T]."""
    return Rotation(positions, config.head_size, complete(config)["rotary_base"])


def flatten(values: Values) -> Values:
    """Take the parameters of rotary positions out of the object that newer versions write."""
    nested = values.get("rope_parameters")
    if not isinstance(nested, dict):
        return values
    return {**values, **{key: nested[key] for key in ("rope_theta", "rope_type") if key in nested}}


FAMILY = Family(
    block=make_block,
    final_norm=make_norm,
    rotation=make_rotation,
    tied_head=False,
    architecture="LlamaForCausalLM",
    model_type="llama",
    names={
        "token_embedding": "model.embed_tokens",
        "blocks": "model.layers",
        "attention.query_key_value": "self_attn.{}_proj",
        "attention.projection": "self_attn.o_proj",
        "attention_norm": "input_layernorm",
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.expansion": "mlp.up_proj",
        "feed_forward.projection": "mlp.down_proj",
        "feed_forward_norm": "post_attention_layernorm",
        "final_norm": "model.norm",
        "head": "lm_head",
    },
    buffers=("rotary_emb.inv_freq",),
    fused=grouped_projections,
    in_block=same,
    keys={
        "num_layers": (32, "num_hidden_layers"),
        "hidden_size": (4096, "hidden_size"),
        "num_heads": (32, "num_attention_heads"),
        "num_key_value_heads": (None, "num_key_value_heads"),
        "feed_forward_size": (11008, "intermediate_size"),
        "sequence_length": (2048, "max_position_embeddings"),
        "vocab_size": (32000, "vocab_size"),
        "dropout": (0.0, "attention_dropout"),
        "rotary_base": (10000.0, "rope_theta"),
        "norm_epsilon": (1e-6, "rms_norm_eps"),
    },
    written={
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "tie_word_embeddings": (False,),
    },
    accepted={"rope_scaling": (None,), "rope_type": ("default",)},
    derived=lambda config: {"head_dim": config.head_size},
    flatten=flatten,
    complete=complete,
)
