"""Llama (Touvron et al. 2023): RMSNorm, rotary positions, SwiGLU, grouped key-value heads.

Linear layers have no bias, and the head has a weight of its own. Dropout is on attention weights
only, as in Hugging Face's class.
"""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from gpt_dist.config import ModelConfig, ResolvedModelConfig
from gpt_dist.model.cache import LayerCache
from gpt_dist.model.decoder import GPT
from gpt_dist.model.family import Family
from gpt_dist.model.group import Group
from gpt_dist.model.hugging_face import (
    HuggingFaceConfig,
    Stored,
    Values,
    grouped_projections,
    same,
    token_rows,
)
from gpt_dist.model.layers import INIT_STD, Attention, ColumnParallel, Rotation, RowParallel

NORM_EPSILON = 1e-5
ROTARY_BASE = 10_000.0
FEED_FORWARD_MULTIPLE = 128
"""The feed-forward size, 8/3 of the hidden size, is rounded up to this multiple."""

BLOCK_NAMES = {
    "attention.projection": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.expansion": "mlp.up_proj",
    "feed_forward.projection": "mlp.down_proj",
    "feed_forward_norm": "post_attention_layernorm",
}
"""A block's layers here, by their names in Hugging Face's Llama; the fused projection is three."""


class SwiGLU(nn.Module):
    """Feed-forward layer whose inner features are gated by a second projection (Shazeer 2020)."""

    def __init__(self, config: ResolvedModelConfig, group: Group) -> None:
        """Draw the three projections."""
        super().__init__()
        width, inner = config.hidden_size, feed_forward_size(config)
        self.gate = ColumnParallel(width, inner, group, bias=False)
        self.expansion = ColumnParallel(width, inner, group, bias=False)
        self.projection = RowParallel(inner, width, group, std=INIT_STD, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map each hidden state [B, T, D] by itself."""
        output: Tensor = self.projection(F.silu(self.gate(hidden)) * self.expansion(hidden))
        return output


class Block(nn.Module):
    """Attention and SwiGLU, each on a residual branch with RMSNorm before it."""

    def __init__(self, config: ResolvedModelConfig, group: Group) -> None:
        """Draw the weights of one block."""
        super().__init__()
        self.attention = Attention(config, group, bias=False)
        self.attention_norm = make_norm(config)
        self.feed_forward = SwiGLU(config, group)
        self.feed_forward_norm = make_norm(config)

    def forward(
        self, hidden: Tensor, rotation: Rotation | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """Map hidden states [B, T, D] to hidden states [B, T, D]."""
        hidden = hidden + self.attention(self.attention_norm(hidden), rotation, cache)
        output: Tensor = hidden + self.feed_forward(self.feed_forward_norm(hidden))
        return output


class Llama(GPT):
    """Llama 1, 2 and 3, without the scaling of rotary positions."""

    def __init__(
        self, config: ResolvedModelConfig, group: Group, activation_checkpointing: bool = False
    ) -> None:
        """Draw the weights of this process's slice."""
        super().__init__(config, group, activation_checkpointing)
        self.blocks = nn.ModuleList(Block(config, group) for _ in range(config.num_layers))
        self.final_norm = make_norm(config)
        self.head = self.make_head(tied=False)

    def rotation(self, positions: Tensor) -> Rotation:
        """Return the rotary embedding of positions [T]."""
        base = self.config.rotary_base or ROTARY_BASE
        return Rotation(positions, self.config.head_size, base)


def make_norm(config: ResolvedModelConfig) -> nn.RMSNorm:
    """Return an RMSNorm of hidden states."""
    return nn.RMSNorm(config.hidden_size, eps=config.norm_epsilon or NORM_EPSILON)


def feed_forward_size(config: ModelConfig) -> int:
    """Return the inner width of SwiGLU, by default 8/3 of the hidden size, rounded up."""
    wanted = 8 * config.hidden_size / 3
    rounded = FEED_FORWARD_MULTIPLE * math.ceil(wanted / FEED_FORWARD_MULTIPLE)
    return config.feed_forward_size or rounded


def stored_parameter(name: str, config: ResolvedModelConfig) -> Stored:
    """Return how `LlamaForCausalLM` stores a parameter of this model."""
    if name == "token_embedding.weight":
        return token_rows("model.embed_tokens.weight", config)
    if name == "head.weight":
        return token_rows("lm_head.weight", config)
    if name == "final_norm.weight":
        return same("model.norm.weight")
    _, layer, rest = name.split(".", 2)
    ours = rest.removesuffix(".weight")
    if ours == "attention.query_key_value":
        query, key, value = (f"model.layers.{layer}.self_attn.{x}_proj.weight" for x in "qkv")
        return grouped_projections((query, key, value), config)
    return same(f"model.layers.{layer}.{BLOCK_NAMES[ours]}.weight")


def complete(config: ResolvedModelConfig) -> dict[str, Any]:
    """Return the architecture keys with the values that this family computes with."""
    return {
        "num_key_value_heads": config.num_key_value_heads or config.num_heads,
        "feed_forward_size": feed_forward_size(config),
        "rotary_base": config.rotary_base or ROTARY_BASE,
        "norm_epsilon": config.norm_epsilon or NORM_EPSILON,
    }


def supported(values: Values) -> dict[str, tuple[Any, ...]]:
    """Return the values of config.json with which Llama computes what this model computes."""
    width, heads = values.get("hidden_size"), values.get("num_attention_heads")
    head_dim = (
        width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None
    )
    return {
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "tie_word_embeddings": (False,),
        "rope_scaling": (None,),
        "rope_type": ("default",),
        "head_dim": (None, head_dim),
    }


def odd_heads(config: ModelConfig) -> str | None:
    """Refuse heads that rotary positions cannot turn."""
    if config.head_size % 2 == 0:
        return None
    return (
        f"model.num_heads: {config.num_heads} heads of {config.head_size} features each; rotary "
        "positions need an even number, so choose other heads or another hidden_size"
    )


def flatten(values: Values) -> Values:
    """Take the parameters of rotary positions out of the object that newer versions write."""
    nested = values.get("rope_parameters")
    if not isinstance(nested, dict):
        return values
    known = {key: nested[key] for key in ("rope_theta", "rope_type") if key in nested}
    return {**values, **known}


LLAMA = Family(
    model=Llama,
    stored_parameter=stored_parameter,
    keys=frozenset({"num_key_value_heads", "feed_forward_size", "rotary_base", "norm_epsilon"}),
    problem=odd_heads,
    hugging_face=HuggingFaceConfig(
        architecture="LlamaForCausalLM",
        model_type="llama",
        prefix="model.",
        keys={
            "num_layers": ("num_hidden_layers",),
            "hidden_size": ("hidden_size",),
            "num_heads": ("num_attention_heads",),
            "num_key_value_heads": ("num_key_value_heads",),
            "feed_forward_size": ("intermediate_size",),
            "sequence_length": ("max_position_embeddings",),
            "vocab_size": ("vocab_size",),
            "dropout": ("attention_dropout",),
            "rotary_base": ("rope_theta",),
            "norm_epsilon": ("rms_norm_eps",),
        },
        defaults={
            "num_layers": 32,
            "hidden_size": 4096,
            "num_heads": 32,
            "feed_forward_size": 11008,
            "sequence_length": 2048,
            "vocab_size": 32000,
            "dropout": 0.0,
            "rotary_base": 10000.0,
            "norm_epsilon": 1e-6,
        },
        fixed={
            "hidden_act": "silu",
            "initializer_range": INIT_STD,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
        },
        supported=supported,
        flatten=flatten,
        complete=complete,
    ),
)
