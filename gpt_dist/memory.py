"""Memory of this process: how much it has held, and keeping what is freed."""

import ctypes
import resource
from contextlib import suppress

import torch

# Parameters of glibc's mallopt.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this process has held: in tensors on a GPU, or all on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def keep_freed_memory() -> None:
    """Have the C library keep freed memory of the host for the next step, where it can.

    By default glibc returns each large tensor to the kernel, which clears its pages again and again
    for the same tensors of every step, a sixth of a step's time on the CPU.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 1 << 26)):
            library.mallopt(parameter, value)
