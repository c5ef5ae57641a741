"""Linear layer that fine-tuning adds, with its scores and losses.

Shapes: R sequences, B examples, D hidden, C outputs, K choices.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt_dist.config import TaskConfig
from gpt_dist.data.batches import TaskBatch
from gpt_dist.model import GPT
from gpt_dist.model.layers import INIT_STD

HeadKind = Literal["classes", "score", "choices"]


def head_shape(task: TaskConfig) -> tuple[HeadKind, int]:
    """Return the kind of head that a task needs, and its number of outputs."""
    if task.form == "multiple_choice":
        return "choices", 1
    return ("score", 1) if task.labels is None else ("classes", len(task.labels))


class TaskHead(nn.Module):
    """Scores the activations at the extract tokens (Radford et al. 2018, sections 3.2 and 3.3).

    For classes and scores, the activations of an example's sequences are added before the layer;
    for choices, each sequence gets one score. An example has one dropout mask.
    """

    def __init__(self, hidden_size: int, kind: HeadKind, outputs: int, dropout: float) -> None:
        """Draw the layer; `outputs` is the number of classes, or 1 for scores and choices."""
        super().__init__()
        self.kind = kind
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_size, outputs)
        nn.init.normal_(self.linear.weight, std=INIT_STD)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor, owners: Tensor, examples: int) -> Tensor:
        """Return scores in fp32 of sequences [R, D], whose examples are `owners` [R], ascending.

        They are [B, C] for classes, [B] for scores, and [B, K] for choices, with -inf where an
        example has fewer choices.
        """
        if self.kind != "choices":
            pooled = hidden.new_zeros(examples, hidden.size(1)).index_add(0, owners, hidden)
            scores: Tensor = self.linear(self.dropout(pooled)).float()
            return scores.squeeze(1) if self.kind == "score" else scores
        mask = self.dropout(hidden.new_ones(examples, hidden.size(1)))  # [B, D]
        each = self.linear(hidden * mask[owners]).float().squeeze(1)  # [R]
        counts = torch.bincount(owners, minlength=examples)
        numbers = torch.arange(len(owners), device=owners.device)
        places = numbers - (counts.cumsum(0) - counts)[owners]
        scores = each.new_full((examples, int(counts.max())), -torch.inf)
        return scores.index_put((owners, places), each)


def task_scores(model: GPT, head: TaskHead, batch: TaskBatch[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the head's scores of a batch, and the hidden states [R, T, D].

    The padding behind an extract token changes nothing: no token sees its right.
    """
    hidden = model(batch.tokens)
    at_ends = hidden[torch.arange(len(batch.ends), device=hidden.device), batch.ends]
    return head(at_ends, batch.owners, len(batch.targets)), hidden


def task_losses(kind: HeadKind, scores: Tensor, targets: Tensor) -> Tensor:
    """Return the loss [B] of each example: cross-entropy in nats, or squared error of scores."""
    if kind == "score":
        return F.mse_loss(scores, targets, reduction="none")
    return F.cross_entropy(scores, targets, reduction="none")
