"""Shares out samples over processes, and reads batches ahead of time."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")


def micro_batches(
    start: int, stop: int, size: int, data_parallel_size: int, data_parallel_rank: int
) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers in each micro-batch of one process, for samples start to stop.

    The samples are cut into parts of a micro-batch for every process, and process r takes the r-th
    slice of each part, so that the number of processes does not change a global batch. Every
    process gets equally many full micro-batches: numbers from `stop` on fill up the last.
    """
    own, part = data_parallel_rank * size, data_parallel_size * size
    for first in range(start + own, stop + own, part):
        yield np.arange(first, first + size)


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
