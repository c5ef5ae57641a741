"""The tensor-parallel decoder-only Transformer: GPT-1 (post-LayerNorm), GPT-2 (pre-LayerNorm).

Shapes: B batch, T time, D hidden, H heads, S head size, V padded vocabulary; `/tp` where a
dimension is split over the tensor-parallel group.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils.checkpoint import checkpoint

from gpt_dist.config import ModelConfig
from gpt_dist.model.cache import LayerCache
from gpt_dist.model.random import fork_rng_for_tensor_parallel

with warnings.catch_warnings():
    # Each import of megatron-core says that its optional CUDA extensions are missing.
    warnings.simplefilter("ignore")
    from megatron.core.model_parallel_config import ModelParallelConfig
    from megatron.core.tensor_parallel import (
        ColumnParallelLinear,
        RowParallelLinear,
        VocabParallelEmbedding,
        vocab_parallel_cross_entropy,
    )

INIT_STD = 0.02
"""Standard deviation of initial weights (Radford et al. 2018, section 4.1)."""

IGNORED_LABEL = -1
"""In labels, where nothing is to be predicted: the caller leaves the loss there out."""

LAYER_NORM_EPSILON = 1e-5


class Attention(nn.Module):
    """Causal multi-head self-attention; each tensor-parallel process holds whole heads.

    The rows of the fused projection are laid out head by head: q, k, v of head 0, then of head 1, …
    """

    def __init__(
        self, config: ModelConfig, parallel: ModelParallelConfig, group: ProcessGroup
    ) -> None:
        super().__init__()
        self.group = group
        self.head_size = config.head_size
        self.dropout = config.dropout
        self.query_key_value = ColumnParallelLinear(
            config.hidden_size,
            3 * config.hidden_size,
            config=parallel,
            init_method=_normal(INIT_STD),
            tp_group=group,
        )
        self.projection = _output_projection(config.hidden_size, config, parallel, group)

    def forward(self, hidden: Tensor, cache: LayerCache | None = None) -> Tensor:
        # [B, T, D] -> [B, T, D]
        fused, _ = self.query_key_value(hidden)  # [B, T, 3D/tp]
        heads = fused.unflatten(-1, (-1, 3, self.head_size))  # [B, T, H/tp, 3, S]
        query, key, value = heads.permute(3, 0, 2, 1, 4)  # each [B, H/tp, T, S]
        if cache is not None:
            key, value = cache.extend(key, value)
        context = self.attend(query, key, value)  # [B, H/tp, T, S]
        output, _ = self.projection(context.transpose(1, 2).flatten(2))
        return output

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Mix values of this process's heads, [B, H/tp, T, S]; dropout differs between peers.

        With more keys than queries, there must be one query: the last token's, which sees all.
        """
        dropout = self.dropout if self.training else 0.0
        with fork_rng_for_tensor_parallel(self.group, query.device, enabled=dropout > 0):
            return F.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout, is_causal=query.size(2) == key.size(2)
            )


class FeedForward(nn.Module):
    """Two linear layers with GELU (tanh form) between them, four times as wide inside."""

    def __init__(
        self, config: ModelConfig, parallel: ModelParallelConfig, group: ProcessGroup
    ) -> None:
        super().__init__()
        self.expansion = ColumnParallelLinear(
            config.hidden_size,
            4 * config.hidden_size,
            config=parallel,
            init_method=_normal(INIT_STD),
            tp_group=group,
        )
        self.projection = _output_projection(4 * config.hidden_size, config, parallel, group)

    def forward(self, hidden: Tensor) -> Tensor:  # [B, T, D] -> [B, T, D]
        inner, _ = self.expansion(hidden)  # [B, T, 4D/tp]
        output, _ = self.projection(F.gelu(inner, approximate="tanh"))
        return output


class Block(nn.Module):
    """Attention and feed-forward, each on a residual branch with LayerNorm after or before it."""

    def __init__(
        self, config: ModelConfig, parallel: ModelParallelConfig, group: ProcessGroup
    ) -> None:
        super().__init__()
        self.norm_position = config.norm_position
        self.attention = Attention(config, parallel, group)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON)
        self.feed_forward = FeedForward(config, parallel, group)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, cache: LayerCache | None = None) -> Tensor:
        # [B, T, D] -> [B, T, D]
        if self.norm_position == "post":
            hidden = self.attention_norm(hidden + self.dropout(self.attention(hidden, cache)))
            return self.feed_forward_norm(hidden + self.dropout(self.feed_forward(hidden)))
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), cache))
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))


class GPT(nn.Module):
    """Token and position embeddings, blocks, and a head tied to the token embedding.

    Initial weights are drawn as full fp32 tensors from the default generator and sliced, so a seed
    gives the same model at every tensor-parallel degree. Residual projections of the pre-LayerNorm
    form start smaller by 1/sqrt(2 * num_layers) (Radford et al. 2019, section 2.3).
    """

    def __init__(
        self, config: ModelConfig, group: ProcessGroup, activation_checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.group = group
        self.activation_checkpointing = activation_checkpointing
        parallel = ModelParallelConfig(
            tensor_model_parallel_size=group.size(),
            use_cpu_initialization=True,
            deterministic_mode=torch.are_deterministic_algorithms_enabled(),
        )
        self.token_embedding = VocabParallelEmbedding(
            config.padded_vocab_size,
            config.hidden_size,
            init_method=_normal(INIT_STD),
            config=parallel,
            tp_group=group,
        )
        self.position_embedding = nn.Embedding(config.sequence_length, config.hidden_size)
        nn.init.normal_(self.position_embedding.weight, std=INIT_STD)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(config, parallel, group) for _ in range(config.num_layers)
        )
        self.final_norm = (
            nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON)
            if config.norm_position == "pre"
            else nn.Identity()
        )
        self.head = ColumnParallelLinear(
            config.hidden_size,
            config.padded_vocab_size,
            config=parallel,
            init_method=_normal(INIT_STD),
            bias=False,
            skip_weight_param_allocation=True,
            tp_group=group,
        )

    def forward(self, tokens: Tensor, caches: Sequence[LayerCache] | None = None) -> Tensor:
        """Last hidden states [B, T, D] of token ids [B, T].

        With one cache a block, the tokens follow those that the caches have seen; a cache that is
        not empty takes one token at a time.
        """
        start = caches[0].length if caches else 0
        positions = torch.arange(start, start + tokens.size(1), device=tokens.device)
        hidden = self.token_embedding(tokens) + self.position_embedding(positions)
        hidden = self.dropout(hidden)
        for layer, block in enumerate(self.blocks):
            if self.activation_checkpointing and self.training:
                hidden = checkpoint(block, hidden, use_reentrant=False)
            else:
                hidden = block(hidden, caches[layer] if caches else None)
        return self.final_norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """This process's slice [..., V/tp] of the logits of hidden states [..., D].

        Entries that only pad the vocabulary are -inf.
        """
        logits, _ = self.head(hidden, weight=self.token_embedding.weight)
        assert self.config.vocab_size is not None
        width = logits.size(-1)
        valid = self.config.vocab_size - self.group.rank() * width
        if valid >= width:
            return logits
        padding = torch.arange(width, device=logits.device) >= valid  # [V/tp]
        return logits.masked_fill(padding, -math.inf)

    def token_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in nats of each label [B, T] after its hidden state [B, T, D], in fp32."""
        losses: Tensor = vocab_parallel_cross_entropy(self.logits(hidden), labels)
        return losses


def _normal(std: float) -> Callable[[Tensor], Tensor]:
    return partial(nn.init.normal_, std=std)


def _output_projection(
    input_size: int, config: ModelConfig, parallel: ModelParallelConfig, group: ProcessGroup
) -> RowParallelLinear:
    """The linear layer that ends a residual branch."""
    scale = math.sqrt(2 * config.num_layers) if config.norm_position == "pre" else 1.0
    return RowParallelLinear(
        input_size,
        config.hidden_size,
        config=parallel,
        init_method=_normal(INIT_STD / scale),
        bias=True,
        input_is_parallel=True,
        skip_bias_add=False,
        tp_group=group,
    )
