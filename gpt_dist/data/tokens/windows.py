"""Training samples: windows of the token stream, in an order computed from a seed and a number."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpt_dist.data.batches import TokenBatch
from gpt_dist.data.permutation import permutation_key, permute
from gpt_dist.errors import DataError


class TokenSource(Protocol):
    """What windows are cut from."""

    @property
    def num_tokens(self) -> int: ...

    def read(self, start: int, stop: int) -> NDArray[np.integer]: ...


class Windows:
    """The windows of a token stream: number i holds tokens [i*T, (i+1)*T] for sequence length T.

    Neighbours share one token, the last label of one and the first input of the next, so that every
    token but the stream's first is predicted exactly once.
    """

    def __init__(self, source: TokenSource, sequence_length: int) -> None:
        self._source = source
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        return max(0, self._source.num_tokens - 1) // self.sequence_length

    def read(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens [len(numbers), T + 1] of these windows."""
        length = self.sequence_length
        tokens = np.empty((len(numbers), length + 1), dtype=np.int64)
        for row, number in zip(tokens, numbers.tolist(), strict=True):
            row[:] = self._source.read(number * length, (number + 1) * length + 1)
        return tokens


def split_labels(windows: NDArray[np.int64]) -> TokenBatch[NDArray[np.int64]]:
    """Return inputs and labels, each [R, T] and in its own memory, of windows [R, T + 1]."""
    return TokenBatch(windows[:, :-1].copy(), windows[:, 1:].copy())


class ShuffledWindows:
    """The endless sequence of training samples: each epoch visits every window once, reshuffled.

    Sample s is a function of (seed, s) alone, so that consumed_samples is the whole data position.
    """

    def __init__(self, windows: Windows, seed: int) -> None:
        if len(windows) == 0:
            raise DataError(
                "the training split is shorter than one window; lower model.sequence_length or "
                "prepare more text"
            )
        self._windows = windows
        self._seed = seed

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self._windows)

    @property
    def tokens_per_sample(self) -> float:
        """Tokens of a window."""
        return self._windows.sequence_length

    def window_numbers(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The window of each sample number."""
        size = len(self._windows)
        numbers = np.empty_like(samples)
        epochs = samples // size
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            key = permutation_key(self._seed, str(epoch))
            numbers[chosen] = permute(samples[chosen] % size, size, key)
        return numbers

    def read(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens [len(samples), T + 1] of these samples."""
        return self._windows.read(self.window_numbers(samples))

    def batch(self, samples: NDArray[np.int64]) -> TokenBatch[NDArray[np.int64]]:
        """Return the batch of these samples."""
        return split_labels(self.read(samples))
