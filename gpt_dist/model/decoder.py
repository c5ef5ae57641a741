"""The decoder-only Transformer as far as all families share it: embedding, blocks, logits, losses.

Shapes: B batch, T time, D hidden, V padded vocabulary; `/tp` where a dimension is split over the
tensor-parallel group.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils.checkpoint import checkpoint

from gpt_dist.config import IGNORED_LABEL, ResolvedModelConfig
from gpt_dist.megatron import (
    copy_to_tensor_model_parallel_region,
    vocab_parallel_cross_entropy,
)
from gpt_dist.model.cross_entropy import HeadCrossEntropy
from gpt_dist.model.dropout import Dropout, uses_compiled_forms
from gpt_dist.model.families import family_of
from gpt_dist.model.layers import (
    INIT_STD,
    ColumnParallel,
    LayerCache,
    RowParallel,
    TokenEmbedding,
)
from gpt_dist.model.regions import Gather, Group, sum_over_time


class GPT(nn.Module):
    """A Transformer of one family: embeddings, blocks, norm, and the head that gives logits.

    Initial weights are drawn as full fp32 tensors from the default generator and sliced, so a seed
    gives the same model at every tensor-parallel degree.
    """

    def __init__(
        self,
        config: ResolvedModelConfig,
        group: Group,
        activation_checkpointing: bool = False,
        sequence_parallel: bool = False,
    ) -> None:
        """Make the modules; ConfigError if a key or size does not fit the family.

        Under sequence parallelism the lengths of sequences must be multiples of the group's size.
        """
        super().__init__()
        family = family_of(config)
        self.config = config
        self.group = group
        self.activation_checkpointing = activation_checkpointing
        self.sequence_parallel = sequence_parallel
        self._make_rotation = family.rotation
        self.token_embedding = TokenEmbedding(config, group)
        if family.rotation is None:
            self.position_embedding = nn.Embedding(config.sequence_length, config.hidden_size)
            nn.init.normal_(self.position_embedding.weight, std=INIT_STD)
            self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(family.block(config, group) for _ in range(config.num_layers))
        self.final_norm = family.final_norm(config)
        width, rows = config.hidden_size, config.padded_vocab_size
        self.head = ColumnParallel(width, rows, group, bias=False, own_weight=not family.tied_head)
        if sequence_parallel:
            self._split_time()

    def _split_time(self) -> None:
        """Have hidden states split along time, except within attention and feed-forward layers."""
        assert isinstance(self.group, ProcessGroup), "a single process has nothing to split"
        for module in self.modules():
            if isinstance(module, ColumnParallel | RowParallel | TokenEmbedding):
                module.sequence_parallel = True
                continue
            if isinstance(module, Dropout):
                module.group = self.group
            # Parameters of all other modules meet only the positions of this process.
            for parameter in module.parameters(recurse=False):
                parameter.register_hook(partial(sum_over_time, group=self.group))

    def forward(self, tokens: Tensor, caches: Sequence[LayerCache] | None = None) -> Tensor:
        """Return the last hidden states [B, T, D] of token ids [B, T].

        Under sequence parallelism they are those of this process's positions, [B, T/tp, D]. With
        one cache a block, the tokens follow those that the caches have seen; a cache that is not
        empty takes one token at a time.
        """
        assert not (caches and self.sequence_parallel), "one token cannot be split"
        start = caches[0].length if caches else 0
        positions = torch.arange(start, start + tokens.size(1), device=tokens.device)
        hidden, rotation = self.token_embedding(tokens), None
        if self._make_rotation is None:
            if self.sequence_parallel:
                positions = positions.chunk(self.group.size())[self.group.rank()]
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
        """Return this process's logits [..., V/tp] of hidden states [..., D]; padding gets -inf.

        Under sequence parallelism hidden states [B, T/tp, D] give logits [B, T, V/tp].
        """
        tied = self.token_embedding.weight if self.head.weight is None else None
        logits: Tensor = self.head(hidden, tied)
        width = logits.size(-1)
        valid = self.config.vocab_size - self.group.rank() * width
        if valid >= width:
            return logits
        padding = torch.arange(width, device=logits.device) >= valid  # [V/tp]
        return logits.masked_fill(padding, -math.inf)

    def token_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return the loss in nats, fp32, of labels [B, T] after hidden states as of `forward`.

        It is 0 at IGNORED_LABEL.
        """
        if not uses_compiled_forms():
            losses: Tensor = vocab_parallel_cross_entropy(self.logits(hidden), labels)
            return losses.masked_fill(labels == IGNORED_LABEL, 0.0)
        group, rows = self.group, self.config.padded_vocab_size // self.group.size()
        weight = self.token_embedding.weight if self.head.weight is None else self.head.weight
        if self.sequence_parallel:
            hidden = Gather.apply(hidden, group)  # type: ignore[no-untyped-call]
        elif group.size() > 1:
            hidden = copy_to_tensor_model_parallel_region(hidden, group=group)
        valid = min(max(self.config.vocab_size - group.rank() * rows, 0), rows)
        arguments = hidden.flatten(0, 1), weight, labels.flatten(), valid, group
        losses = HeadCrossEntropy.apply(*arguments)  # type: ignore[no-untyped-call]
        return losses.view_as(labels)
