"""Files of records sorted by bucket, of which one can read some buckets alone.

A file holds the bounds of its buckets (int64), then its records, then one more array.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUCKETS = 4096

Records = NDArray[np.void]

_BOUNDS = np.dtype("<i8")
_HEADER_BYTES = (BUCKETS + 1) * _BOUNDS.itemsize


def write_buckets(
    path: Path, records: Records, buckets: NDArray[Any], extra: NDArray[Any] | None = None
) -> None:
    """Write records that are sorted by their buckets, and an array `extra` that belongs to them."""
    bounds = np.searchsorted(buckets, np.arange(BUCKETS + 1)).astype(_BOUNDS)
    with path.open("wb") as stream:
        for array in (bounds, records, *([] if extra is None else [extra])):
            stream.write(np.ascontiguousarray(array).data)


def read_bounds(path: Path) -> NDArray[np.int64]:
    """Return for each bucket the number of records before it, and last the number of all."""
    return np.fromfile(path, _BOUNDS, BUCKETS + 1)


def read_buckets(path: Path, dtype: np.dtype[Any], begin: int, end: int) -> Records:
    """Read the records of the buckets `begin` to `end`."""
    first, last = np.fromfile(path, _BOUNDS, end - begin + 1, offset=begin * _BOUNDS.itemsize)[
        [0, -1]
    ]
    return np.fromfile(
        path, dtype, int(last - first), offset=_HEADER_BYTES + int(first) * dtype.itemsize
    )


def read_extra(path: Path, record: np.dtype[Any], extra: np.dtype[Any]) -> NDArray[Any]:
    """Read the array that lies behind the records."""
    records = int(read_bounds(path)[-1])
    return np.fromfile(path, extra, offset=_HEADER_BYTES + records * record.itemsize)


def split_buckets(sizes: Iterable[int], limit: int) -> list[tuple[int, int]]:
    """Split the buckets into ranges of at most `limit` records, or of one bucket."""
    ranges: list[tuple[int, int]] = []
    begin = total = 0
    end = 0
    for size in sizes:
        if total and total + size > limit:
            ranges.append((begin, end))
            begin, total = end, 0
        total += size
        end += 1
    return [*ranges, (begin, end)] if total else ranges
