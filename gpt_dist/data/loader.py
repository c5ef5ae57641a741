"""Shares out samples over processes, and reads batches ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpt_dist.config import Config

Item = TypeVar("Item")


@dataclass(frozen=True)
class BatchPlan:
    """The share of one data-parallel process in ranges of samples.

    A range is cut into parts of a micro-batch for every process, and process r takes the r-th
    slice of each part. So the number of processes does not change what a global batch holds.
    """

    micro_batch_size: int
    data_parallel_size: int
    data_parallel_rank: int

    @classmethod
    def of(cls, config: Config, data_parallel_size: int, data_parallel_rank: int) -> Self:
        """Return the plan of one data-parallel process."""
        micro_batch_size = config.training.micro_batch_size
        assert micro_batch_size is not None, "the configuration is not resolved yet"
        return cls(micro_batch_size, data_parallel_size, data_parallel_rank)

    def micro_batches(self, start: int, stop: int) -> Iterator[NDArray[np.int64]]:
        """Yield the numbers in each micro-batch of this process, for samples start to stop.

        Every process gets equally many full micro-batches: numbers from `stop` on fill up the last.
        """
        own = self.data_parallel_rank * self.micro_batch_size
        part = self.data_parallel_size * self.micro_batch_size
        for first in range(start + own, stop + own, part):
            yield np.arange(first, first + self.micro_batch_size)


def prefetch(items: Iterator[Item], depth: int = 4) -> Generator[Item, None, None]:
    """Yield the same items, produced up to `depth` ahead in a thread; its exceptions are raised.

    Closing the returned generator ends the thread.
    """
    end = object()
    thread = ThreadPoolExecutor(1, "prefetch")
    try:
        ready: deque[Any] = deque(thread.submit(next, items, end) for _ in range(depth))
        while (item := ready.popleft().result()) is not end:
            ready.append(thread.submit(next, items, end))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
