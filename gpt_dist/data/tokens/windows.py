"""Training samples of a token stream: windows, in an order that a seed determines."""

import numpy as np
from numpy.typing import NDArray

from gpt_dist.data.batches import TokenBatch
from gpt_dist.data.permutation import by_epoch, permutation_key, permute
from gpt_dist.data.tokens.folder import TokenStream
from gpt_dist.errors import DataError


class Windows:
    """Windows of a token stream: number i holds tokens i*T to (i+1)*T, for sequence length T.

    The last token of a window is the first of the next, so that every token but the first of the
    stream is predicted exactly once.
    """

    def __init__(self, source: TokenStream, sequence_length: int) -> None:
        self._source = source
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        return max(0, self._source.num_tokens - 1) // self.sequence_length

    def read(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the tokens [len(numbers), T + 1] of these windows."""
        length = self.sequence_length
        starts = (number * length for number in numbers.tolist())
        rows = [self._source.read(start, start + length + 1) for start in starts]
        return np.stack(rows).astype(np.int64)


def split_labels(windows: NDArray[np.int64]) -> TokenBatch[NDArray[np.int64]]:
    """Return inputs and labels, each [R, T] and in its own memory, of windows [R, T + 1]."""
    return TokenBatch(windows[:, :-1].copy(), windows[:, 1:].copy())


class ShuffledWindows:
    """Endless training samples: each epoch visits every window once, in another order.

    The seed and its number determine a sample, so that the count of consumed samples is the whole
    position in the data.
    """

    def __init__(self, windows: Windows, seed: int) -> None:
        if len(windows) == 0:
            raise DataError(
                "the training split is shorter than one window; lower model.sequence_length or "
                "prepare more text"
            )
        self._windows = windows
        self._seed = seed
        self.tokens_per_sample = float(windows.sequence_length)

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""
        return len(self._windows)

    def window_numbers(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the window of each sample."""
        size = len(self._windows)

        def order(epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
            return permute(places, size, permutation_key(self._seed, str(epoch)))

        return by_epoch(samples, size, order)

    def batch(self, samples: NDArray[np.int64]) -> TokenBatch[NDArray[np.int64]]:
        """Return the batch of these samples."""
        return split_labels(self._windows.read(self.window_numbers(samples)))
