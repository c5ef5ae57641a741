"""Batches: the named arrays that an objective takes."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Array = TypeVar("Array", bound=Any)
"""NumPy's array where a batch is read, torch's tensor where the model takes it."""


@dataclass(frozen=True, eq=False)
class TokenBatch(Generic[Array]):
    """R sequences of T tokens each."""

    tokens: Array
    """[R, T]: token ids."""
    labels: Array
    """[R, T]: the next token, or -1 where nothing is to be predicted."""

    @property
    def weight(self) -> int:
        """Number of predictions whose losses an objective sums up."""
        return int((self.labels != -1).sum())


@dataclass(frozen=True, eq=False)
class TaskBatch(TokenBatch[Array]):
    """R sequences of B examples, padded on the right with 0 to the longest, T tokens.

    A label is -1 at the last token of a sequence and in the padding.
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
