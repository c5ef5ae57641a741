"""Objective of fine-tuning: the loss of a task, and that of the language model.

Shapes: R sequences, B examples, T time, D hidden, N predicted tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpt_dist.data.batches import TaskBatch, TokenBatch
from gpt_dist.finetune.head import TaskHead, task_losses, task_scores
from gpt_dist.model import GPT, IGNORED_LABEL
from gpt_dist.train.objective import LanguageModelObjective, Objective


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
        return len(batch.targets)

    def loss(self, batch: TaskBatch[Tensor]) -> Tensor:
        scores, hidden = task_scores(self.model, self.head, batch)
        loss = task_losses(self.head.kind, scores, batch.targets).sum()
        if self.auxiliary_weight:
            loss = loss + self.auxiliary_weight * self.auxiliary_loss(hidden, batch)
        return loss

    def scores(self, batch: TaskBatch[Tensor] | TokenBatch[Tensor]) -> Tensor:
        """Return the scores that the head gives, or the loss of each token where there is no task.

        The fixed tokens by which stored weights are checked have none.
        """
        if isinstance(batch, TaskBatch):
            return task_scores(self.model, self.head, batch)[0]
        return LanguageModelObjective(self.model).scores(batch)

    def auxiliary_loss(self, hidden: Tensor, batch: TaskBatch[Tensor]) -> Tensor:
        """Return the sum of L1 over examples, from hidden states [R, T, D].

        Logits are made where there is a label only.
        """
        labels, owners = batch.labels, batch.owners
        predicted = labels != IGNORED_LABEL  # [R, T]
        rows = predicted.nonzero()[:, 0]  # [N]
        losses = self.model.token_losses(hidden[predicted][None], labels[predicted][None])[0]  # [N]
        per_row = losses.new_zeros(len(labels)).index_add(0, rows, losses) / predicted.sum(1)
        return (per_row / torch.bincount(owners)[owners]).sum()
