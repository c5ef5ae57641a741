"""A model's loss on a few fixed tokens, by which stored weights prove to be what they were.

The forward pass here is written out on whole tensors, each read when it is needed and then given
up. It needs no process group, and shares nothing with the tensor-parallel layers that it checks.

Shapes: B batch, T time, D hidden, H heads, S head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_dist.config import ModelConfig
from gpt_dist.model.transformer import LAYER_NORM_EPSILON

Read = Callable[[str], Tensor]

_SEQUENCES = 4
_LENGTH = 16
_MULTIPLIER = 2654435761  # Knuth's, of multiplicative hashing
_TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}


def probe_tokens(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Token ids and their labels, both [B, T], the same for every model of a vocabulary."""
    assert config.vocab_size is not None
    length = min(_LENGTH, config.sequence_length)
    numbers = torch.arange(1, _SEQUENCES * (length + 1) + 1)
    ids = (numbers * _MULTIPLIER % 2**32 % config.vocab_size).view(_SEQUENCES, length + 1)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def probe_loss(read: Read, config: ModelConfig) -> float:
    """Mean loss in nats of `probe_tokens`, in fp32; `read` gives a full tensor by its name."""
    inputs, labels = probe_tokens(config)
    with torch.no_grad():
        embedding = read("token_embedding.weight")[: config.vocab_size]  # [V, D]
        hidden = embedding[inputs] + read("position_embedding.weight")[: inputs.size(1)]
        del embedding
        for layer in range(config.num_layers):
            hidden = _block(hidden, read, f"blocks.{layer}.", config)
        if config.norm_position == "pre":
            hidden = _norm(hidden, read, "final_norm")
        logits = hidden @ read("token_embedding.weight")[: config.vocab_size].T  # [B, T, V]
        return float(F.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def agrees(loss: float, other: float, precision: str) -> bool:
    """Whether two losses of the same weights are equal but for rounding."""
    return abs(loss - other) <= _TOLERANCES[precision] * abs(other)


def _block(hidden: Tensor, read: Read, prefix: str, config: ModelConfig) -> Tensor:
    # [B, T, D] -> [B, T, D]
    pre = config.norm_position == "pre"
    for branch, function in (("attention", _attention), ("feed_forward", _feed_forward)):
        norm = f"{prefix}{branch}_norm"
        inner = _norm(hidden, read, norm) if pre else hidden
        hidden = hidden + function(inner, read, f"{prefix}{branch}.", config)
        hidden = hidden if pre else _norm(hidden, read, norm)
    return hidden


def _attention(hidden: Tensor, read: Read, prefix: str, config: ModelConfig) -> Tensor:
    fused = _linear(hidden, read, f"{prefix}query_key_value")  # [B, T, 3D], head by head
    heads = fused.unflatten(-1, (config.num_heads, 3, config.head_size)).transpose(1, 2)
    query, key, value = heads.unbind(3)  # each [B, H, T, S]
    scores = query @ key.transpose(2, 3) / config.head_size**0.5  # [B, H, T, T]
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    context = scores.masked_fill(future, -torch.inf).softmax(-1) @ value
    return _linear(context.transpose(1, 2).flatten(2), read, f"{prefix}projection")


def _feed_forward(hidden: Tensor, read: Read, prefix: str, _config: ModelConfig) -> Tensor:
    inner = F.gelu(_linear(hidden, read, f"{prefix}expansion"), approximate="tanh")
    return _linear(inner, read, f"{prefix}projection")


def _linear(hidden: Tensor, read: Read, name: str) -> Tensor:
    return F.linear(hidden, read(f"{name}.weight"), read(f"{name}.bias"))


def _norm(hidden: Tensor, read: Read, name: str) -> Tensor:
    gain, bias = read(f"{name}.weight"), read(f"{name}.bias")
    return F.layer_norm(hidden, hidden.shape[-1:], gain, bias, LAYER_NORM_EPSILON)
