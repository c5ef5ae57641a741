"""The tensor-parallel group as far as a model needs it."""

from typing import Protocol


class Group(Protocol):
    """The part of `ProcessGroup` that says which slice of a layer a process holds."""

    def size(self) -> int:
        """Return the number of processes that share each layer."""

    def rank(self) -> int:
        """Return this process's place among them."""


class SingleProcess:
    """The group of a process that holds whole layers, with or without torch.distributed."""

    def size(self) -> int:
        """Return 1."""
        return 1

    def rank(self) -> int:
        """Return 0."""
        return 0
