"""The tensor-parallel group as far as a model needs it, and random draws that differ within it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed import ProcessGroup


class SingleProcess:
    """The group of a process that holds whole layers, with or without torch.distributed."""

    def size(self) -> int:
        """Return 1."""
        return 1

    def rank(self) -> int:
        """Return 0."""
        return 0


Group = ProcessGroup | SingleProcess
"""The tensor-parallel group, whose processes share each layer."""


@contextmanager
def fork_rng_for_tensor_parallel(
    group: Group, device: torch.device, enabled: bool
) -> Iterator[None]:
    """Draw from a generator of this peer's own inside the context.

    Each process holds other heads, so their attention masks must be independent, while replicated
    activations need equal masks. The inner seed is drawn from the shared default generator: there
    is no second state to save, and activation checkpointing, which restores the default generators,
    repeats the inner draws too.
    """
    if not enabled or group.size() == 1:
        yield
        return
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed + group.rank())
        yield
