"""Objectives: modules from a batch to its loss.

Shapes: R sequences, T time.
"""

from abc import ABC, abstractmethod
from dataclasses import fields, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from gpt_dist.data.batches import TokenBatch
from gpt_dist.model import GPT

Batch = TypeVar("Batch", bound=TokenBatch[Any])


class Objective(nn.Module, Generic[Batch], ABC):
    """Gives the loss of a batch, for training, and its scores, for validation."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Return the sum of a batch's losses, in fp32.

        Training minimises this sum over the global batch, divided by the sum of `batch.weight`.
        """

    @abstractmethod
    def scores(self, batch: Batch) -> Tensor:
        """Return the predictions, or the losses of single tokens, that validation needs."""

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss in training, else the scores: DeepSpeed and torch.compile call this."""
        return self.loss(batch) if self.training else self.scores(batch)


class LanguageModelObjective(Objective[TokenBatch[Tensor]]):
    """L1 of the paper: the negative log-likelihood of the next token, in nats."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def loss(self, batch: TokenBatch[Tensor]) -> Tensor:
        """Return the sum of the losses of all tokens."""
        return self.scores(batch).sum()

    def scores(self, batch: TokenBatch[Tensor]) -> Tensor:
        """Return the loss of each token [R, T], 0 at IGNORED_LABEL."""
        return self.model.token_losses(self.model(batch.tokens), batch.labels)


def to_device(batch: TokenBatch[Any], device: torch.device) -> Any:
    """Return a batch of arrays as one of the same type, of tensors on a device."""
    tensors = {field.name: torch.as_tensor(getattr(batch, field.name)) for field in fields(batch)}
    if device.type == "cuda":
        for name, tensor in tensors.items():
            tensors[name] = tensor.pin_memory().to(device, non_blocking=True)
    return replace(batch, **tensors)
