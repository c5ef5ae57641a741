"""Permute range(size) by a key, for any positions, without storing the permutation."""

import hashlib
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15


def permutation_key(seed: int, name: str) -> int:
    """Return a 64-bit key for `permute`, different for each seed and name."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def permute(positions: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """Return the images of positions under the permutation of range(size) that key selects.

    A Feistel network of eight rounds over pairs (x mod columns, x // columns), each adding a hash
    of one half to the other, permutes the smallest rectangle that holds range(size); images that
    fall outside are mapped again until they fall inside (cycle walking; Black and Rogaway 2002).
    The time per position is that of a few hashes, and does not depend on size.
    """
    assert np.all((positions >= 0) & (positions < size))
    columns = math.isqrt(size - 1) + 1
    rows = -(-size // columns)
    images = positions.astype(np.uint64)
    outside = np.arange(len(images))
    while len(outside):
        right, left = np.divmod(images[outside], columns)
        for step in range(0, 8, 2):
            left = (left + _hash(right, key, step) % columns) % columns
            right = (right + _hash(left, key, step + 1) % rows) % rows
        images[outside] = right * columns + left
        outside = outside[images[outside] >= size]
    return images.astype(np.int64)


def _hash(values: NDArray[np.uint64], key: int, step: int) -> NDArray[np.uint64]:
    """Apply SplitMix64's output function (Steele et al. 2014) to values offset by key and round."""
    x = values + np.uint64((key + (step + 1) * _GOLDEN) % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def by_epoch(
    samples: NDArray[np.int64],
    size: int,
    order: Callable[[int, NDArray[np.int64]], NDArray[np.int64]],
) -> NDArray[np.int64]:
    """Return the item of each endless sample: `order` gives those at some places of an epoch."""
    epochs, places = np.divmod(samples, size)
    items = np.empty_like(samples)
    for epoch in np.unique(epochs).tolist():
        chosen = epochs == epoch
        items[chosen] = order(epoch, places[chosen])
    return items
