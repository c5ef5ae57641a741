"""Batches: the arrays that an objective takes, the share of each process, and reading ahead."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpt_dist.config import IGNORED_LABEL

Array = TypeVar("Array", bound=Any)
"""NumPy's array where a batch is read, torch's tensor where the model takes it."""


@dataclass(frozen=True, eq=False)
class TokenBatch(Generic[Array]):
    """R sequences of T tokens each."""

    tokens: Array
    """[R, T]: token ids."""
    labels: Array
    """[R, T]: the next token, or IGNORED_LABEL where nothing is to be predicted."""

    @property
    def weight(self) -> int:
        """Number of predictions whose losses an objective sums up."""
        return int((self.labels != IGNORED_LABEL).sum())


@dataclass(frozen=True, eq=False)
class TaskBatch(TokenBatch[Array]):
    """R sequences of B examples, padded on the right with 0 to the longest, T tokens.

    A label is IGNORED_LABEL at the last token of a sequence and in the padding.
    """

    ends: Array
    """[R]: the position of the extract token."""
    owners: Array
    """[R]: the sequence's example, counted within the batch, in ascending order."""
    targets: Array
    """[B]: classes or choices as int64, or scores as float32; 0 in a split without labels."""

    @property
    def weight(self) -> int:
        """Number of examples."""
        return len(self.targets)


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


def batch_of(step: int, left_out: Iterable[int]) -> int:
    """Return the global batch of a step, counted from 1: batches in order, but for some."""
    number = step - 1
    for batch in sorted(left_out):
        number += batch <= number
    return number


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
