"""Objectives: modules from a batch to its loss.

Shapes: R sequences, T time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from gpt_dist.data.batches import TokenBatch
from gpt_dist.model import GPT, IGNORED_LABEL

Batch = TypeVar("Batch", bound=TokenBatch[Any])


class Objective(nn.Module, Generic[Batch], ABC):
    """Gives the loss of a batch in training and its scores in evaluation.

    DeepSpeed and torch.compile know modules by `forward` alone.
    """

    @abstractmethod
    def weight(self, batch: Batch) -> int:
        """Return how many predictions the loss of a batch sums up."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Return the sum of the losses of a batch, a scalar in fp32.

        Training minimises the sum over a global batch, divided by its weight.
        """

    @abstractmethod
    def scores(self, batch: Batch) -> Tensor:
        """Return what the model is judged by."""

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(batch) if self.training else self.scores(batch)


class LanguageModelObjective(Objective[TokenBatch[Tensor]]):
    """L1 of the paper: the negative log-likelihood of the next token, in nats."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def weight(self, batch: TokenBatch[Any]) -> int:
        return int((batch.labels != IGNORED_LABEL).sum())

    def loss(self, batch: TokenBatch[Tensor]) -> Tensor:
        return self.scores(batch).sum()

    def scores(self, batch: TokenBatch[Tensor]) -> Tensor:
        """Return the loss of each token [R, T] in fp32, 0 at IGNORED_LABEL."""
        losses = self.model.token_losses(self.model(batch.tokens), batch.labels)
        return losses.masked_fill(batch.labels == IGNORED_LABEL, 0.0)


def to_device(batch: TokenBatch[Any], device: torch.device) -> Any:
    """Return a batch of arrays as one of the same type, of tensors on a device."""
    tensors = {field.name: torch.as_tensor(getattr(batch, field.name)) for field in fields(batch)}
    if device.type == "cuda":
        pinned = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        tensors = {name: tensor.to(device, non_blocking=True) for name, tensor in pinned.items()}
    return replace(batch, **tensors)
