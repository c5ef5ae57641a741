"""Sum a model's losses over sliding windows of a token stream."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed import ProcessGroup

from gpt_dist.model import GPT, IGNORED_LABEL

Read = Callable[[int, int], NDArray[Any]]
"""Function that returns tokens [start, stop) of a stream."""


@dataclass(frozen=True)
class SlidingWindows:
    """Windows over a stream of `num_tokens` tokens, each `stride` further than the one before.

    A window predicts the tokens that no earlier one did. So every token but the stream's first is
    predicted once, from at least sequence_length - stride tokens before it, or all there are.
    """

    num_tokens: int
    sequence_length: int
    stride: int

    def __len__(self) -> int:
        beyond_first = max(0, self.num_tokens - 1 - self.sequence_length)
        return math.ceil(beyond_first / self.stride) + (self.num_tokens > 1)

    def read(self, number: int, read: Read) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return inputs and labels [T] of a window; labels not to predict are negative."""
        length, start = self.sequence_length, number * self.stride
        stop = min(start + length + 1, self.num_tokens)
        ids = read(start, stop)
        inputs = np.zeros(length, dtype=np.int64)
        labels = np.full_like(inputs, IGNORED_LABEL)
        inputs[: len(ids) - 1] = ids[:-1]
        known = length - self.stride if number else 0
        labels[known : len(ids) - 1] = ids[1 + known :]
        return inputs, labels


def total_loss(
    model: GPT,
    num_tokens: int,
    read: Read,
    stride: int,
    batch_size: int,
    group: ProcessGroup,
    report: Callable[[int, int], None],
) -> float:
    """Return the sum of the losses, in nats, of all tokens of a stream but the first.

    All processes of the data-parallel group `group` call this, share the work and get the same.
    `report` is called with the numbers of windows that this process has done and has to do.
    """
    windows = SlidingWindows(num_tokens, model.config.sequence_length, stride)
    device = next(model.parameters()).device
    numbers = range(group.rank(), len(windows), group.size())
    total = torch.zeros((), dtype=torch.float64, device=device)
    for first in range(0, len(numbers), batch_size):
        batch = [windows.read(number, read) for number in numbers[first : first + batch_size]]
        inputs, labels = (
            torch.from_numpy(np.stack(part)).to(device) for part in zip(*batch, strict=True)
        )
        with torch.no_grad():
            losses = model.token_losses(model(inputs), labels)  # [B, T]
        total += (losses.double() * (labels != IGNORED_LABEL)).sum()
        report(first + len(batch), len(numbers))
    dist.all_reduce(total, group=group)
    return float(total)
