"""Machines by name: their memory, rates and links, and the time that an operation takes there."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread

import psutil
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from gpt_dist.memory import keep_freed_memory
from planning.gpus import CPU, GPUS, INTERCONNECTS, Gpu
from planning.operations import Operation, TensorLike

GIB = 2**30

SUSTAINED_PRODUCTS, SUSTAINED_MEMORY, SUSTAINED_LINK = 0.7, 0.8, 0.7
"""Shares of the rates of data sheets that large kernels and messages reach."""

KERNEL_SECONDS, MESSAGE_SECONDS = 6e-6, 25e-6
"""Least time of a kernel that PyTorch starts without compilation, and of a step of a ring."""

CACHE_BYTES = 2**26
"""Bytes that operations must touch so that none finds its arguments in the cache."""

TRIAL_SECONDS = 0.01
"""Time for which an operation is tried on the CPU."""

GLOO_RATE = 1e9
"""Bytes/s of gloo between processes of a host, assumed."""

GPU_RESERVE = 1.5 * GIB
"""Memory that CUDA, NCCL and cuBLAS hold beside tensors."""


@dataclass(frozen=True)
class Machine:
    """A device of a cluster, with the time of operations on it."""

    name: str
    memory: float
    """Bytes of a process."""
    reserve: float
    """Bytes that a process holds beside tensors."""
    per_host: int
    gpu: Gpu | None
    """None for the CPU of this machine, where each operation is tried out."""
    network: float
    """Bytes/s to other hosts."""
    _tried: dict[Operation, float] = field(default_factory=dict, compare=False)

    def seconds(self, operation: Operation) -> float:
        """Return the time of an operation."""
        if operation.ranks:
            return self._communication(operation)
        if self.gpu is None:
            if operation not in self._tried:
                self._tried[operation] = _try_out(operation, self.per_host - 1)
            return self._tried[operation]
        rate = self.gpu.products / (16 if operation.dtype == torch.float32 else 1)
        products = operation.flops / (rate * SUSTAINED_PRODUCTS)
        memory = operation.bytes / (self.gpu.memory_rate * SUSTAINED_MEMORY)
        return max(KERNEL_SECONDS, products, memory)

    def _communication(self, operation: Operation) -> float:
        """Return the time of a collective over a ring."""
        size = len(operation.ranks)
        turns = 2 if "allreduce" in str(operation.function) else 1
        is_inside = operation.ranks[-1] - operation.ranks[0] < self.per_host
        rate = self.gpu.link if self.gpu and is_inside else self.network
        sent = turns * operation.bytes * (size - 1) / size
        return sent / (rate * SUSTAINED_LINK) + turns * (size - 1) * MESSAGE_SECONDS


def find_machine(name: str, processes: int, per_host: int, interconnect: str) -> Machine:
    """Return a GPU of the table, or `cpu`: this machine, shared by the processes."""
    if name != CPU:
        gpu, network = GPUS[name], INTERCONNECTS[interconnect]
        return Machine(name, gpu.memory * GIB, GPU_RESERVE, per_host, gpu, network)
    keep_freed_memory()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))
    memory = psutil.virtual_memory().total / processes
    return Machine(name, memory, psutil.Process().memory_info().rss, processes, None, GLOO_RATE)


def _try_out(operation: Operation, peers: int) -> float:
    """Return the least time of an operation on this machine while as many peers do the same.

    The runs take turns with several sets of arguments, since in a step few are in the cache.
    """
    copies = max(1, min(8, CACHE_BYTES // max(1, operation.bytes)))
    sets = [tree_map_only(TensorLike, _make, operation.arguments) for _ in range(copies)]
    times: list[float] = []
    begin = time.perf_counter()
    with _busy(operation, peers), torch.no_grad():
        while len(times) < 3 or (len(times) < 25 and time.perf_counter() - begin < TRIAL_SECONDS):
            args, kwargs = sets[len(times) % copies]
            start = time.perf_counter()
            operation.function(*args, **kwargs)
            times.append(time.perf_counter() - start)
    return min(times)


@contextmanager
def _busy(operation: Operation, peers: int) -> Iterator[None]:
    """Keep other cores at the same operation, which shares the memory's rate."""
    done = Event()

    def repeat() -> None:
        args, kwargs = tree_map_only(TensorLike, _make, operation.arguments)
        with torch.no_grad():
            while not done.is_set():
                operation.function(*args, **kwargs)

    threads = [Thread(target=repeat) for _ in range(peers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _make(like: TensorLike) -> Tensor:
    """Return a tensor of these properties, whose values are valid positions too."""
    size = 1 + sum((n - 1) * step for n, step in zip(like.shape, like.stride, strict=True))
    flat = torch.zeros(size, dtype=like.dtype)
    if like.dtype.is_floating_point:
        flat.uniform_(0.1, 1)
    return flat.as_strided(like.shape, like.stride)
