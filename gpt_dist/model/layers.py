"""Layers that every family is built of: tensor-parallel linear maps, embeddings, attention.

Shapes: B batch, T time, D hidden, H query heads, G key-value heads, S head size, V padded
vocabulary; `/tp` where a dimension is split over the tensor-parallel group.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from gpt_dist.config import ResolvedModelConfig

with warnings.catch_warnings():
    # Each import of megatron-core says that its optional CUDA extensions are missing.
    warnings.simplefilter("ignore")
    from megatron.core.model_parallel_config import ModelParallelConfig
    from megatron.core.tensor_parallel import (
        ColumnParallelLinear,
        RowParallelLinear,
        VocabParallelEmbedding,
        reduce_from_tensor_model_parallel_region,
    )

INIT_STD = 0.02
"""Standard deviation of initial weights (Radford et al. 2018, section 4.1)."""


class SingleProcess:
    """The group of a process that holds whole layers, with or without torch.distributed."""

    def size(self) -> int:
        """Return 1."""
        return 1

    def rank(self) -> int:
        """Return 0."""
        return 0


Group = ProcessGroup | SingleProcess
"""The tensor-parallel group, whose processes share each layer."""


@contextmanager
def fork_rng_for_tensor_parallel(
    group: Group, device: torch.device, enabled: bool
) -> Iterator[None]:
    """Draw from a generator of this peer's own inside the context.

    Each process holds other heads, so their attention masks must be independent, while replicated
    activations need equal masks. The inner seed is drawn from the shared default generator: there
    is no second state to save, and activation checkpointing, which restores the default generators,
    repeats the inner draws too.
    """
    if not enabled or group.size() == 1:
        yield
        return
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed + group.rank())
        yield


class ColumnParallel(ColumnParallelLinear):
    """Linear map whose output features are split over the group: [..., D] -> [..., E/tp]."""

    def __init__(
        self, input_size: int, output_size: int, group: Group, bias: bool, own_weight: bool = True
    ) -> None:
        """Draw the weight, unless each call brings one (`own_weight` False)."""
        super().__init__(
            input_size,
            output_size,
            **_settings(group, INIT_STD),
            bias=bias,
            skip_weight_param_allocation=not own_weight,
        )
        self.group = group

    def forward(self, hidden: Tensor, weight: Tensor | None = None) -> Tensor:
        """Map hidden states by `weight`, or by the layer's own."""
        if self.group.size() > 1:
            output, _ = super().forward(hidden, weight)
            return output
        output = F.linear(hidden, self.weight if weight is None else weight)
        return output if self.bias is None else output + self.bias


class RowParallel(RowParallelLinear):
    """Linear map whose input features are split over the group: [..., E/tp] -> [..., D]."""

    def __init__(
        self, input_size: int, output_size: int, group: Group, bias: bool, std: float = INIT_STD
    ) -> None:
        super().__init__(
            input_size,
            output_size,
            **_settings(group, std),
            bias=bias,
            input_is_parallel=True,
            skip_bias_add=False,
        )
        self.group = group

    def forward(self, hidden: Tensor) -> Tensor:
        """Add up what the processes of the group make of their features, and the bias once."""
        output = F.linear(hidden, self.weight)
        if self.group.size() > 1:
            output = reduce_from_tensor_model_parallel_region(output, group=self.group)
        return output if self.bias is None else output + self.bias


class TokenEmbedding(VocabParallelEmbedding):
    """Embedding whose rows are split over the group: token ids [B, T] -> [B, T, D]."""

    def __init__(self, config: ResolvedModelConfig, group: Group) -> None:
        super().__init__(config.padded_vocab_size, config.hidden_size, **_settings(group, INIT_STD))
        self.group = group

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the rows of these tokens, complete on every process."""
        if self.group.size() > 1 or self.deterministic_mode:
            return super().forward(tokens)
        return F.embedding(tokens, self.weight)


def _settings(group: Group, std: float) -> dict[str, Any]:
    """Return megatron-core's settings: weights are drawn as full fp32 tensors, then sliced."""
    config = ModelParallelConfig(
        tensor_model_parallel_size=group.size(),
        use_cpu_initialization=True,
        deterministic_mode=torch.are_deterministic_algorithms_enabled(),
    )
    return {"config": config, "init_method": partial(nn.init.normal_, std=std), "tp_group": group}


class LayerCache:
    """Keys and values of the tokens that a block has seen, with room for `capacity` tokens."""

    def __init__(self, capacity: int) -> None:
        self.length = 0
        self._capacity = capacity
        self._pair: Tensor | None = None  # [2, B, G/tp, T, S]

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values of new tokens, [B, G/tp, T, S], and return all of them."""
        if self._pair is None:
            self._pair = key.new_empty(2, *key.shape[:2], self._capacity, key.size(3))
        start, self.length = self.length, self.length + key.size(2)
        self._pair[:, :, :, start : self.length] = torch.stack([key, value])
        keys, values = self._pair[:, :, :, : self.length]
        return keys, values


class Rotation:
    """Rotary position embedding (Su et al. 2021), in the layout of Hugging Face's Llama.

    Feature i of a head and feature i + S/2 are the two coordinates that one angle turns.
    """

    def __init__(self, positions: Tensor, head_size: int, base: float) -> None:
        """Compute the angles of positions [T] for heads of `head_size` features."""
        exponents = torch.arange(0, head_size, 2, device=positions.device).float() / head_size
        angles = positions[:, None].float() / base**exponents  # [T, S/2]
        self._cos = torch.cat([angles, angles], dim=-1).cos()
        self._sin = torch.cat([angles, angles], dim=-1).sin()

    def apply(self, heads: Tensor) -> Tensor:
        """Turn queries or keys [B, H, T, S] by the angles of their positions."""
        first, second = heads.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        return heads * self._cos.to(heads.dtype) + turned * self._sin.to(heads.dtype)


class Attention(nn.Module):
    """Causal self-attention with grouped key-value heads; each process holds whole groups.

    The rows of the fused projection are laid out group by group: the queries of the heads that
    share key-value head 0, its key, its value, then those of key-value head 1, and so on. With as
    many key-value heads as heads that is q, k, v of head 0, then of head 1.
    """

    def __init__(
        self, config: ResolvedModelConfig, group: Group, bias: bool, output_std: float = INIT_STD
    ) -> None:
        super().__init__()
        self.group = group
        self.head_size = config.head_size
        self.dropout = config.dropout
        groups = config.num_key_value_heads or config.num_heads
        self.queries_per_group = config.num_heads // groups
        width, fused = config.hidden_size, config.hidden_size + 2 * groups * config.head_size
        self.query_key_value = ColumnParallel(width, fused, group, bias)
        self.projection = RowParallel(width, width, group, bias, output_std)

    def forward(
        self, hidden: Tensor, rotation: Rotation | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """Mix hidden states [B, T, D] over time; returns [B, T, D]."""
        fused = self.query_key_value(hidden)  # [B, T, (H + 2G)S/tp]
        parts = fused.unflatten(-1, (-1, self.queries_per_group + 2, self.head_size))
        heads = parts.permute(3, 0, 2, 1, 4)  # [H/G + 2, B, G/tp, T, S]
        key, value = heads[-2], heads[-1]  # each [B, G/tp, T, S]
        query = parts[..., :-2, :].flatten(2, 3).transpose(1, 2)  # [B, H/tp, T, S]
        if rotation is not None:
            query, key = rotation.apply(query), rotation.apply(key)
        if cache is not None:
            key, value = cache.extend(key, value)
        context = self.attend(query, key, value)  # [B, H/tp, T, S]
        return self.projection(context.transpose(1, 2).flatten(2))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Mix the values [B, G/tp, T, S] of this process's heads; dropout differs between peers.

        With more keys than queries there must be one query, that of the last token, which sees all.
        """
        dropout = self.dropout if self.training else 0.0
        with fork_rng_for_tensor_parallel(self.group, query.device, enabled=dropout > 0):
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                dropout_p=dropout,
                is_causal=query.size(2) == key.size(2),
                enable_gqa=self.queries_per_group > 1,
            )


class FeedForward(nn.Module):
    """Two linear layers with GELU (tanh form) between them, four times as wide inside."""

    def __init__(self, config: ResolvedModelConfig, group: Group, output_std: float) -> None:
        super().__init__()
        width = config.hidden_size
        self.expansion = ColumnParallel(width, 4 * width, group, bias=True)
        self.projection = RowParallel(4 * width, width, group, bias=True, std=output_std)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map each hidden state [B, T, D] by itself."""
        inner = F.gelu(self.expansion(hidden), approximate="tanh")  # [B, T, 4D/tp]
        return self.projection(inner)


class Block(nn.Module):
    """Attention and feed-forward, each a residual branch with a norm before it or after the sum."""

    def __init__(
        self,
        attention: Attention,
        attention_norm: nn.Module,
        feed_forward: nn.Module,
        feed_forward_norm: nn.Module,
        *,
        dropout: float,
        norm_first: bool,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = attention_norm
        self.feed_forward = feed_forward
        self.feed_forward_norm = feed_forward_norm
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(
        self, hidden: Tensor, rotation: Rotation | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """Map hidden states [B, T, D] to hidden states [B, T, D]."""
        if self.norm_first:
            mixed = self.attention(self.attention_norm(hidden), rotation, cache)
            hidden = hidden + self.dropout(mixed)
            return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
        mixed = self.attention(hidden, rotation, cache)
        hidden = self.attention_norm(hidden + self.dropout(mixed))
        return self.feed_forward_norm(hidden + self.dropout(self.feed_forward(hidden)))
