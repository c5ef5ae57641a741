"""Random draws that differ between tensor-parallel peers, although their generators agree."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gpt_dist.model.group import Group


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
