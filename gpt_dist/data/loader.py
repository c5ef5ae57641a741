"""Which samples each process trains on, read ahead of time by a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpt_dist.config import ResolvedConfig

Item = TypeVar("Item")


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is shared among data-parallel processes.

    Global batch k is samples [k*B, (k+1)*B) whatever the number of processes: micro-batch m of
    process r takes the r-th slice of the m-th part.
    """

    global_batch_size: int
    micro_batch_size: int
    data_parallel_size: int
    data_parallel_rank: int

    @classmethod
    def of(cls, config: ResolvedConfig, data_parallel_size: int, data_parallel_rank: int) -> Self:
        """The plan of a resolved configuration for one of its data-parallel processes."""
        training = config.training
        return cls(
            training.global_batch_size,
            training.micro_batch_size,
            data_parallel_size,
            data_parallel_rank,
        )

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches that one process adds up to an optimiser step."""
        return self.global_batch_size // (self.micro_batch_size * self.data_parallel_size)

    def micro_batches(self, step: int) -> Iterator[NDArray[np.int64]]:
        """The sample numbers of this process's micro-batches of global batch `step`."""
        start = step * self.global_batch_size + self.data_parallel_rank * self.micro_batch_size
        for part in range(self.accumulation_steps):
            first = start + part * self.micro_batch_size * self.data_parallel_size
            yield np.arange(first, first + self.micro_batch_size)

    def over(self, count: int) -> Iterator[NDArray[np.int64]]:
        """This process's micro-batches of the numbers up to `count`, for what is no training.

        Every process gets the same number of full micro-batches: numbers beyond `count` fill up.
        """
        first = self.data_parallel_rank * self.micro_batch_size
        for start in range(first, count + first, self.micro_batch_size * self.data_parallel_size):
            yield np.arange(start, start + self.micro_batch_size)


def prefetch(items: Iterator[Item], depth: int = 4) -> Generator[Item, None, None]:
    """The same items, produced up to `depth` ahead in a thread; its exceptions are raised here.

    Closing the returned generator ends the thread.
    """
    ready: queue.Queue[Any] = queue.Queue(depth)
    closed = threading.Event()
    end = object()

    def put(item: Any) -> None:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def produce() -> None:
        try:
            for item in items:
                put(item)
                if closed.is_set():
                    return
            put(end)
        except Exception as error:  # noqa: BLE001 -- the consumer must see any
            put(error)

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not end:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()
