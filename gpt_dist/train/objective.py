"""Objectives: modules from a batch to its loss.

Shapes: R sequences, T time.
"""

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
    def forward(self, batch: Batch) -> Tensor:
        """Return in training a sum in fp32; a global batch's over its weight is minimised.

        In evaluation, return the predictions or losses that validation needs.
        """


class LanguageModelObjective(Objective[TokenBatch[Tensor]]):
    """L1 of the paper: the negative log-likelihood of the next token, in nats."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TokenBatch[Tensor]) -> Tensor:
        """Return the loss of each token [R, T], 0 at IGNORED_LABEL; in training their sum."""
        losses = self.model.token_losses(self.model(batch.tokens), batch.labels)
        losses = losses.masked_fill(batch.labels == IGNORED_LABEL, 0.0)
        return losses.sum() if self.training else losses


def to_device(batch: TokenBatch[Any], device: torch.device) -> Any:
    """Return a batch of arrays as one of the same type, of tensors on a device."""
    tensors = {field.name: torch.as_tensor(getattr(batch, field.name)) for field in fields(batch)}
    if device.type == "cuda":
        for name, tensor in tensors.items():
            tensors[name] = tensor.pin_memory().to(device, non_blocking=True)
    return replace(batch, **tensors)
