"""Layers that every family is built of: tensor-parallel linear maps, embeddings, attention.

Shapes: B batch, T time, D hidden, H query heads, G key-value heads, S head size, V padded
vocabulary; `/tp` where a dimension is split over the tensor-parallel group.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.megatron import (
    ColumnParallelLinear,
    ModelParallelConfig,
    RowParallelLinear,
    VocabParallelEmbedding,
    reduce_from_tensor_model_parallel_region,
)
from gpt_dist.model.dropout import (
    Dropout,
    fork_rng_for_tensor_parallel,
    hashes_masks,
    keep_mask,
    uses_compiled_forms,
)
from gpt_dist.model.regions import GatheredProduct, Group, ReduceScatter

INIT_STD = 0.02
"""Standard deviation of initial weights (Radford et al. 2018, section 4.1)."""


QUERIES_PER_BLOCK = 128
"""Queries of a block of attention on the CPU, by measurement."""

FEW_ROWS, PARTS = 6, 16
"""Rows up to which an fp32 product on the CPU is fastest in so many parts, by measurement."""


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `hidden @ weight.T + bias` for hidden states [..., D] and a weight [E, D].

    For fp32 on the CPU torch calls MKL, which leaves cores idle where the rows are few. Without
    gradients oneDNN's product is used, which is faster, or for fewer rows that of parts of the
    weight, which is faster still.
    """
    if torch.is_grad_enabled() or uses_compiled_forms() or not _suits_onednn(hidden):
        output = F.linear(hidden, weight)
        return output if bias is None else output + bias
    rows = hidden.flatten(0, -2)  # [R, D]
    if len(rows) > FEW_ROWS:
        output = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    else:
        parts = weight.unflatten(0, (math.gcd(len(weight), PARTS), -1))  # [P, E/P, D]
        output = parts @ rows.t().expand(len(parts), -1, -1)  # [P, E/P, R]
        output = output.flatten(0, 1).t()
        output = output.contiguous() if bias is None else output + bias
    return output.reshape(*hidden.shape[:-1], len(weight))


def _suits_onednn(hidden: Tensor) -> bool:
    is_full = hidden.device.type == "cpu" and hidden.dtype == torch.float32
    return is_full and torch.backends.mkldnn.is_available()


class ColumnParallel(ColumnParallelLinear):
    """Linear map whose output features are split over the group: [..., D] -> [..., E/tp].

    Under sequence parallelism its input is split along time: [B, T/tp, D] -> [B, T, E/tp].
    """

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
        if self.group.size() > 1 and not self.sequence_parallel:
            output, _ = super().forward(hidden, weight)
            return output
        weight = self.weight if weight is None else weight
        if not self.sequence_parallel:
            return linear(hidden, weight, self.bias)
        output = GatheredProduct.apply(hidden, weight, self.group)  # type: ignore[no-untyped-call]
        return output if self.bias is None else output + self.bias


class RowParallel(RowParallelLinear):
    """Linear map whose input features are split over the group: [..., E/tp] -> [..., D].

    Under sequence parallelism its output is split along time: [B, T, E/tp] -> [B, T/tp, D].
    """

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
        if self.group.size() == 1:
            return linear(hidden, self.weight, self.bias)
        output = F.linear(hidden, self.weight)
        if self.sequence_parallel:
            return ReduceScatter.apply(output, self.bias, self.group)  # type: ignore[no-untyped-call]
        output = reduce_from_tensor_model_parallel_region(output, group=self.group)
        return output if self.bias is None else output + self.bias


class TokenEmbedding(VocabParallelEmbedding):
    """Embedding whose rows are split over the group: token ids [B, T] -> [B, T, D].

    Under sequence parallelism its output is split along time: [B, T] -> [B, T/tp, D].
    """

    def __init__(self, config: ResolvedModelConfig, group: Group) -> None:
        super().__init__(config.padded_vocab_size, config.hidden_size, **_settings(group, INIT_STD))
        self.group = group
        self.sequence_parallel = False

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the rows of these tokens, put together from those that each process holds."""
        if not self.sequence_parallel:
            if self.group.size() > 1 or self.deterministic_mode:
                return super().forward(tokens)
            return F.embedding(tokens, self.weight)
        rows = tokens - self.vocab_start_index
        is_own = (rows >= 0) & (rows < self.num_embeddings_per_partition)  # [B, T]
        rows = rows.where(is_own, 0)
        found = self.weight[rows] if self.deterministic_mode else F.embedding(rows, self.weight)
        found = found.where(is_own[..., None], 0.0)
        return ReduceScatter.apply(found, None, self.group)  # type: ignore[no-untyped-call]


@contextmanager
def without_memory() -> Iterator[None]:
    """Give the parameters of modules that are made in the context no memory and no values.

    Drawing values on torch's device for this would load torch's compiler, which takes two seconds.
    """
    with torch.device("meta"), patch.object(nn.init, "normal_", lambda tensor, **_: tensor):
        yield


def _settings(group: Group, std: float) -> dict[str, Any]:
    """Return megatron-core's settings: weights are drawn as full fp32 tensors, then sliced.

    Drawing also tells a split weight how it is split, so only whole ones may go without.
    """
    config = ModelParallelConfig(
        tensor_model_parallel_size=group.size(),
        use_cpu_initialization=True,
        perform_initialization=group.size() > 1 or torch.get_default_device().type != "meta",
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
        rate, is_causal = self.dropout if self.training else 0.0, query.size(2) == key.size(2)
        if is_causal and hashes_masks(query):
            return self._attend_by_products(query, key, value, rate)
        with fork_rng_for_tensor_parallel(self.group, query.device, enabled=rate > 0):
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                dropout_p=rate,
                is_causal=is_causal,
                enable_gqa=self.queries_per_group > 1,
            )

    def _attend_by_products(self, query: Tensor, key: Tensor, value: Tensor, rate: float) -> Tensor:
        """Mix values on the CPU, where products over blocks of queries are fastest.

        A block sees no key behind its last query. The random numbers of a head follow from its
        place among all heads, so the masks are those of a single process.
        """
        if self.queries_per_group > 1:
            key = key.repeat_interleave(self.queries_per_group, dim=1)
            value = value.repeat_interleave(self.queries_per_group, dim=1)
        batch, heads, length, _ = query.shape
        all_heads, first_head = heads * self.group.size(), heads * self.group.rank()
        numbers = torch.arange(batch * all_heads, dtype=torch.int32).view(batch, all_heads, 1, 1)
        numbers = numbers[:, first_head : first_head + heads] * length
        positions = torch.arange(length, dtype=torch.int32)
        blocks = []
        for start in range(0, length, QUERIES_PER_BLOCK):
            stop = min(start + QUERIES_PER_BLOCK, length)
            queries = positions[start:stop, None]
            scores = query[:, :, start:stop] @ key[:, :, :stop].transpose(-1, -2)
            scores = scores.float() * self.head_size**-0.5
            scores = scores.masked_fill(positions[:stop] > queries, -math.inf)
            shares = scores.softmax(dim=-1)  # [B, H/tp, queries, keys]
            if rate:
                kept = keep_mask(numbers + queries, positions[:stop], rate)
                shares = shares.where(kept, 0.0) / (1 - rate)
            blocks.append(shares.to(value.dtype) @ value[:, :, :stop])
        return torch.cat(blocks, dim=2)


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
        self.dropout = Dropout(dropout)
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
