"""Head that fine-tuning adds to a model, and the objective that trains both.

Shapes: R sequences, B examples, T time, D hidden, C outputs, K choices, N predicted tokens.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gpt_dist.config import IGNORED_LABEL, TaskConfig
from gpt_dist.data.batches import TaskBatch
from gpt_dist.model import GPT
from gpt_dist.model.layers import INIT_STD
from gpt_dist.train.objective import Objective

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
        choices = each.split(torch.bincount(owners, minlength=examples).tolist())
        return pad_sequence(choices, batch_first=True, padding_value=-torch.inf)


def task_scores(model: GPT, head: TaskHead, batch: TaskBatch[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the head's scores of a batch, and the hidden states [R, T, D].

    The padding behind an extract token changes nothing: no token sees its right.
    """
    hidden = model(batch.tokens)
    at_ends = hidden[torch.arange(len(batch.ends), device=hidden.device), batch.ends]
    return head(at_ends, batch.owners, len(batch.targets)), hidden


def sequence_losses(model: GPT, hidden: Tensor, labels: Tensor) -> Tensor:
    """Return the sums [R] of the losses of labels [R, T], from hidden states [R, T, D].

    Only predicted positions go through the language model's head, whose output is by far the
    largest tensor.
    """
    predicted = labels != IGNORED_LABEL  # [R, T], N of them
    losses = model.token_losses(hidden[predicted][None], labels[predicted][None])[0]  # [N]
    total = torch.zeros(len(labels), dtype=torch.float64, device=losses.device)
    return total.index_add(0, predicted.nonzero()[:, 0], losses.double()).float()


def task_losses(kind: HeadKind, scores: Tensor, targets: Tensor) -> Tensor:
    """Return the loss [B] of each example: cross-entropy in nats, or squared error of scores."""
    if kind == "score":
        return F.mse_loss(scores, targets, reduction="none")
    return F.cross_entropy(scores, targets, reduction="none")


class TaskObjective(Objective[TaskBatch[Tensor]]):
    """L3 = L2 + lambda L1 of the paper: the loss of a task, and that of the language model.

    L1 is the mean over the tokens of a sequence, then over the sequences of an example, then over
    examples, so that neither padding nor the division into micro-batches changes it.
    """

    def __init__(self, model: GPT, head: TaskHead, auxiliary_weight: float) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.auxiliary_weight = auxiliary_weight

    def scores(self, batch: TaskBatch[Tensor]) -> Tensor:
        """Return the head's scores of the examples."""
        return task_scores(self.model, self.head, batch)[0]

    def loss(self, batch: TaskBatch[Tensor]) -> Tensor:
        """Return the sum of L3 over the examples."""
        scores, hidden = task_scores(self.model, self.head, batch)
        loss = task_losses(self.head.kind, scores, batch.targets).sum()
        if self.auxiliary_weight:
            losses = sequence_losses(self.model, hidden, batch.labels)  # [R]
            means = losses / (batch.labels != IGNORED_LABEL).sum(1)
            siblings = torch.bincount(batch.owners)[batch.owners]  # [R]: sequences of its example
            loss = loss + self.auxiliary_weight * (means / siblings).sum()
        return loss
