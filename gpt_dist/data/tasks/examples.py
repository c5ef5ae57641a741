"""Encoded examples in memory, batches of them, and their order in training."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_dist.config import IGNORED_LABEL
from gpt_dist.data.batches import TaskBatch
from gpt_dist.data.permutation import by_epoch, permutation_key, permute
from gpt_dist.data.tasks.reading import Example
from gpt_dist.data.tasks.transforms import Transformation

_CHUNK_BATCHES = 50


@dataclass(frozen=True, eq=False)
class EncodedSplit:
    """The token sequences of a split, one after another, and the targets of its examples."""

    tokens: NDArray[np.int32]
    sequence_starts: NDArray[np.int64]
    """Sequence i is tokens[sequence_starts[i] : sequence_starts[i + 1]]."""
    example_starts: NDArray[np.int64]
    """Example i has the sequences from example_starts[i] up to example_starts[i + 1]."""
    targets: NDArray[Any] | None
    """Classes or choices as int64, or scores as float32; None in a split without labels."""
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the number of tokens in each example's longest sequence."""
        return np.maximum.reduceat(np.diff(self.sequence_starts), self.example_starts[:-1])


def encode_split(examples: Sequence[Example], transformation: Transformation) -> EncodedSplit:
    """Encode one example or more; raises DataError where one has no room for its answer."""
    tokens, sequence_starts, example_starts = array("i"), array("q", [0]), array("q", [0])
    for example in examples:
        for sequence in transformation.sequences(example):
            tokens.frombytes(sequence.tobytes())
            sequence_starts.append(len(tokens))
        example_starts.append(len(sequence_starts) - 1)
    labels = [example.label for example in examples]
    label_type = np.float32 if isinstance(labels[0], float) else np.int64
    return EncodedSplit(
        tokens=np.frombuffer(tokens, dtype=np.int32),
        sequence_starts=np.frombuffer(sequence_starts, dtype=np.int64),
        example_starts=np.frombuffer(example_starts, dtype=np.int64),
        targets=None if labels[0] is None else np.array(labels, dtype=label_type),
        ids=tuple(example.id for example in examples),
    )


def collate(split: EncodedSplit, numbers: NDArray[np.int64]) -> TaskBatch[NDArray[Any]]:
    """Return the batch of these examples, in this order."""
    first, last = split.example_starts[numbers], split.example_starts[numbers + 1]
    sequences = np.concatenate([np.arange(*bounds) for bounds in zip(first, last, strict=True)])
    starts, stops = split.sequence_starts[sequences], split.sequence_starts[sequences + 1]
    lengths = stops - starts
    tokens = np.zeros((len(sequences), lengths.max()), dtype=np.int64)
    for row, start, stop in zip(tokens, starts, stops, strict=True):
        row[: stop - start] = split.tokens[start:stop]
    has_next = np.arange(tokens.shape[1]) < lengths[:, None] - 1
    unknown = np.zeros(len(numbers), dtype=np.int64)
    return TaskBatch(
        tokens=tokens,
        labels=np.where(has_next, np.roll(tokens, -1, axis=1), IGNORED_LABEL),
        ends=lengths - 1,
        owners=np.repeat(np.arange(len(numbers)), last - first),
        targets=unknown if split.targets is None else split.targets[numbers],
    )


class TaskSamples:
    """Endless training samples, with examples of similar length in a global batch.

    Each epoch visits every example once, in another order: chunks of 50 global batches are sorted
    by length, and their batches shuffled. Only a global batch that two epochs share mixes lengths.
    The seed and its number determine a sample.
    """

    def __init__(self, split: EncodedSplit, global_batch_size: int, seed: int) -> None:
        self._split = split
        self._lengths = split.lengths
        self._global_batch_size = global_batch_size
        self._seed = seed
        self._order = lru_cache(2)(self._compute_order)
        self.tokens_per_sample = len(split.tokens) / len(split)
        """Average number of tokens in all sequences of an example."""

    def batch(self, samples: NDArray[np.int64]) -> TaskBatch[NDArray[Any]]:
        """Return the batch of these samples."""
        return collate(self._split, self.numbers(samples))

    def numbers(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the example of each sample."""
        return by_epoch(samples, len(self._lengths), lambda epoch, at: self._order(epoch)[at])

    def _compute_order(self, epoch: int) -> NDArray[np.int64]:
        """Return all examples in the order of an epoch."""
        size, batch_size = len(self._lengths), self._global_batch_size
        shuffled = permute(np.arange(size), size, permutation_key(self._seed, str(epoch)))
        # The first examples complete the global batch that the epoch before has begun.
        head, rest = np.split(shuffled, [min(size, -epoch * size % batch_size)])
        chunks = np.arange(len(rest)) // (_CHUNK_BATCHES * batch_size)
        rest = rest[np.lexsort((self._lengths[rest], chunks))]
        batches, tail = np.split(rest, [len(rest) // batch_size * batch_size])
        batches = batches.reshape(-1, batch_size)
        if len(batches):
            key = permutation_key(self._seed, f"{epoch}/batches")
            batches = batches[permute(np.arange(len(batches)), len(batches), key)]
        return np.concatenate([head, batches.ravel(), tail])
