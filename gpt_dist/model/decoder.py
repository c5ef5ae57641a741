"""The decoder-only Transformer as far as all families share it: embedding, blocks, logits, losses.

Shapes: B batch, T time, D hidden, V padded vocabulary; `/tp` where a dimension is split over the
tensor-parallel group.
"""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.model.families import family_of
from gpt_dist.model.layers import INIT_STD, ColumnParallel, Group, LayerCache, TokenEmbedding

with warnings.catch_warnings():
    # Each import of megatron-core says that its optional CUDA extensions are missing.
    warnings.simplefilter("ignore")
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

IGNORED_LABEL = -1
"""Label of a token that is not to be predicted: the caller leaves the loss there out."""


class GPT(nn.Module):
    """A Transformer of one family: embeddings, blocks, norm, and the head that gives logits.

    Initial weights are drawn as full fp32 tensors from the default generator and sliced, so a seed
    gives the same model at every tensor-parallel degree.
    """

    def __init__(
        self, config: ResolvedModelConfig, group: Group, activation_checkpointing: bool = False
    ) -> None:
        """Make the modules; ConfigError if a key or size does not fit the family."""
        super().__init__()
        family = family_of(config)
        self.config = config
        self.group = group
        self.activation_checkpointing = activation_checkpointing
        self._make_rotation = family.rotation
        self.token_embedding = TokenEmbedding(config, group)
        if family.rotation is None:
            self.position_embedding = nn.Embedding(config.sequence_length, config.hidden_size)
            nn.init.normal_(self.position_embedding.weight, std=INIT_STD)
            self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(family.block(config, group) for _ in range(config.num_layers))
        self.final_norm = family.final_norm(config)
        width, rows = config.hidden_size, config.padded_vocab_size
        self.head = ColumnParallel(width, rows, group, bias=False, own_weight=not family.tied_head)

    def forward(self, tokens: Tensor, caches: Sequence[LayerCache] | None = None) -> Tensor:
        """Return the last hidden states [B, T, D] of token ids [B, T].

        With one cache a block, the tokens follow those that the caches have seen; a cache that is
        not empty takes one token at a time.
        """
        start = caches[0].length if caches else 0
        positions = torch.arange(start, start + tokens.size(1), device=tokens.device)
        hidden, rotation = self.token_embedding(tokens), None
        if self._make_rotation is None:
            hidden = self.dropout(hidden + self.position_embedding(positions))
        else:
            rotation = self._make_rotation(self.config, positions)
        for layer, block in enumerate(self.blocks):
            if self.activation_checkpointing and self.training:
                hidden = checkpoint(block, hidden, rotation, use_reentrant=False)
            else:
                hidden = block(hidden, rotation, caches[layer] if caches else None)
        return self.final_norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return this process's logits [..., V/tp] of hidden states [..., D]; padding gets -inf."""
        tied = self.token_embedding.weight if self.head.weight is None else None
        logits: Tensor = self.head(hidden, tied)
        width = logits.size(-1)
        valid = self.config.vocab_size - self.group.rank() * width
        if valid >= width:
            return logits
        padding = torch.arange(width, device=logits.device) >= valid  # [V/tp]
        return logits.masked_fill(padding, -math.inf)

    def token_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return the loss in nats, fp32, of labels [B, T] after hidden states [B, T, D]."""
        return vocab_parallel_cross_entropy(self.logits(hidden), labels)
