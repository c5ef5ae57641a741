"""Dropout that compiles on the CPU to a part of the step where it is used.

There an element's random bits are a hash of its row, its column and two numbers of the default
generator. So tensor-parallel processes draw the masks of their own heads and positions, the same at
every degree. torch's own dropout, which is used elsewhere, takes half of a compiled step on the
CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt_dist.model.regions import Group, SingleProcess


def uses_compiled_forms() -> bool:
    """Return whether the model is being compiled, and so takes the forms made for it."""
    return torch.compiler.is_compiling()


def hashes_masks(values: Tensor) -> bool:
    """Return whether masks of these values are hashed."""
    return uses_compiled_forms() and values.device.type == "cpu"


def keep_mask(rows: Tensor, columns: Tensor, rate: float) -> Tensor:
    """Return a bool tensor that is False at a `rate` of its elements.

    Rows and columns are int32 numbers, and are broadcast: an element's value follows from its own
    two. Each call advances the default generator by the same amount.
    """
    first, second = torch.randint(-(2**31), 2**31, (2,), dtype=torch.int64).to(torch.int32)
    # Products wrap around. The steps are those of MurmurHash3's finalizer, begun by two numbers.
    bits = rows * -1640531527 + columns * -862048943 ^ first
    bits = (bits ^ (bits >> 16 & 0xFFFF)) * -2048144789 + second
    bits = (bits ^ (bits >> 13 & 0x7FFFF)) * -1028477387
    bits ^= bits >> 16 & 0xFFFF
    return bits >= round(rate * 2**32) - 2**31


@contextmanager
def fork_rng_for_tensor_parallel(
    group: Group, device: torch.device, enabled: bool
) -> Iterator[None]:
    """Draw from a generator of this peer's own inside the context.

    Each process holds other heads, and under sequence parallelism other positions, so their masks
    must be independent, while replicated activations need equal masks. The inner seed is drawn from
    the shared default generator: there is no second state to save, and activation checkpointing,
    which restores the default generators, repeats the inner draws too.
    """
    if not enabled or group.size() == 1:
        yield
        return
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed + group.rank())
        yield


def dropout(values: Tensor, rate: float, group: Group) -> Tensor:
    """Return values [..., T/tp, C] with a `rate` of them zeroed and the others scaled up.

    `group` has split them along T; it is a single process where they are whole.
    """
    if rate == 0 or not hashes_masks(values):
        if group.size() == 1:
            return F.dropout(values, rate)
        with fork_rng_for_tensor_parallel(group, values.device, enabled=rate > 0):
            return F.dropout(values, rate)
    *outer, length, width = values.shape
    count = values.numel() // width * group.size()
    rows = torch.arange(count, dtype=torch.int32).view(-1, group.size(), length)[:, group.rank()]
    rows = rows.reshape(*outer, length, 1)
    columns = torch.arange(width, dtype=torch.int32)
    return values.where(keep_mask(rows, columns, rate), 0.0) / (1 - rate)


class Dropout(nn.Module):
    """Zeroes a share of the elements in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.group: Group = SingleProcess()
        """The processes that have split the values along time."""

    def forward(self, values: Tensor) -> Tensor:
        """Return values of any shape, equal on the processes that hold them whole."""
        return dropout(values, self.rate, self.group) if self.training else values
