"""The objective of fine-tuning: a task's own loss, and the language model's beside it.

Shapes: R sequences, B examples, T time, D hidden, N predicted tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt_dist.finetune.head import TaskHead, task_losses, task_scores
from gpt_dist.model import GPT, IGNORED_LABEL
from gpt_dist.train.objective import LanguageModelObjective


class TaskObjective(LanguageModelObjective):
    """L3 = L2 + lambda L1 of the paper: a task's own loss, and the language model's beside it.

    L1 is the mean over a sequence's own tokens, then over the sequences of an example, then over
    examples, so that neither padding nor the division into micro-batches changes it.
    """

    def __init__(self, model: GPT, head: TaskHead, auxiliary_weight: float) -> None:
        super().__init__(model)
        self.head = head
        self.auxiliary_weight = auxiliary_weight

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor,
        ends: Tensor | None = None,
        owners: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, a scalar in fp32; in evaluation the scores, as the head gives them.

        tokens and labels [R, T], ends and owners [R], targets [B] are as `data.examples.Batch` has
        them. With tokens and labels alone it is the language model's loss.
        """
        if ends is None or owners is None or targets is None:
            return super().forward(tokens, labels)
        scores, hidden = task_scores(self.model, self.head, tokens, ends, owners, len(targets))
        if not self.training:
            return scores
        loss = task_losses(self.head.kind, scores, targets).mean()
        if self.auxiliary_weight:
            loss = loss + self.auxiliary_weight * self.auxiliary_loss(hidden, labels, owners)
        return loss

    def auxiliary_loss(self, hidden: Tensor, labels: Tensor, owners: Tensor) -> Tensor:
        """L1 from hidden states [R, T, D]; logits are made where there is a label only."""
        predicted = labels != IGNORED_LABEL  # [R, T]
        rows = predicted.nonzero()[:, 0]  # [N]
        losses = self.model.token_losses(hidden[predicted][None], labels[predicted][None])[0]  # [N]
        per_row = losses.new_zeros(len(labels)).index_add(0, rows, losses) / predicted.sum(1)
        sequences = torch.bincount(owners)
        return (per_row / sequences[owners]).sum() / len(sequences)
