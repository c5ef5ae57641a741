"""Objective of fine-tuning.

Shapes: R sequences, B examples, T time, D hidden, N predicted tokens.
"""

from typing import Any

import torch
from torch import Tensor

from gpt_dist.data.batches import TaskBatch
from gpt_dist.finetune.head import TaskHead, task_losses, task_scores
from gpt_dist.model import GPT, IGNORED_LABEL
from gpt_dist.train.objective import Objective


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

    def weight(self, batch: TaskBatch[Any]) -> int:
        """Return the number of examples."""
        return len(batch.targets)

    def loss(self, batch: TaskBatch[Tensor]) -> Tensor:
        """Return the sum of L3 over the examples."""
        scores, hidden = task_scores(self.model, self.head, batch)
        loss = task_losses(self.head.kind, scores, batch.targets).sum()
        if self.auxiliary_weight:
            loss = loss + self.auxiliary_weight * self.auxiliary_loss(hidden, batch)
        return loss

    def scores(self, batch: TaskBatch[Tensor]) -> Tensor:
        """Return the scores that the head gives."""
        return task_scores(self.model, self.head, batch)[0]

    def auxiliary_loss(self, hidden: Tensor, batch: TaskBatch[Tensor]) -> Tensor:
        """Return the sum of L1 over examples, from hidden states [R, T, D]."""
        labels, owners = batch.labels, batch.owners
        predicted = labels != IGNORED_LABEL  # [R, T]
        rows = predicted.nonzero()[:, 0]  # [N]
        losses = self.model.token_losses(hidden[predicted][None], labels[predicted][None])[0]  # [N]
        per_row = losses.new_zeros(len(labels)).index_add(0, rows, losses) / predicted.sum(1)
        return (per_row / torch.bincount(owners)[owners]).sum()
