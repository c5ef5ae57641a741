"""Fingerprints of tensors, by which stored and live state prove to be the same in any layout.

The fingerprint of a tensor is the sum modulo 2^64, over its elements, of the bits of the fp32 value
times an odd number that follows from the element's index in the full tensor. Parts of the tensor
can be summed apart, on any process; a value that changed, however little, or that is in another
place changes the sum.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from gpt_dist.errors import GptDistError

Kind = Literal["weight", "exp_avg", "exp_avg_sq"]
"""The fp32 weight and Adam's two moments."""
KINDS: tuple[Kind, ...] = get_args(Kind)

Fingerprints = dict[str, int]
"""Fingerprints by `KIND/PARAMETER`; the kind LAYERS is the weight in the precision of forward."""
LAYERS = "layers"

_FACTORS = (0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64)
"""The multipliers of SplitMix64 (Steele, Lea, Flood 2014), as int64."""
_CHUNKS = {"cpu": 2**15, "cuda": 2**24}
"""Elements at a time: on the CPU, what stays in the cache."""


@dataclass(frozen=True)
class Place:
    """The elements of a full tensor that a flat one holds: those of a shard, from `offset` on."""

    offset: int = 0
    row: int = 1
    """Elements of a shard that are neighbours in the full tensor too."""
    shard: int = 0
    shards: int = 1

    @classmethod
    def of_shard(
        cls, shape: Sequence[int], dimension: int | None, shard: int, shards: int, offset: int = 0
    ) -> Self:
        """Return the place in a shard of a full shape that is split on a dimension, if it is."""
        if dimension is None:
            return cls(offset)
        return cls(offset, math.prod(shape[dimension:]) // shards, shard, shards)

    def full_indices(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Return the indices in the full tensor of the elements start to stop."""
        index = torch.arange(self.offset + start, self.offset + stop, device=device)
        if self.shards == 1:
            return index
        return index + (index // self.row * (self.shards - 1) + self.shard) * self.row


def fingerprint(tensors: Sequence[Tensor], place: Place) -> list[int]:
    """Return the fingerprint of each of some contiguous fp32 tensors, all of one place."""
    device = tensors[0].device
    bits = [tensor.detach().reshape(-1).view(torch.int32) for tensor in tensors]
    sums = torch.zeros(len(tensors), dtype=torch.int64, device=device)
    step = _CHUNKS[device.type]
    for start in range(0, len(bits[0]), step):
        stop = min(start + step, len(bits[0]))
        factors = _odd_numbers(place.full_indices(start, stop, device))
        sums += torch.stack([(one[start:stop] * factors).sum() for one in bits])
    return [number % 2**64 for number in sums.tolist()]


def total(parts: Iterable[Fingerprints]) -> Fingerprints:
    """Return the fingerprints of whole tensors from those of their parts."""
    sums: Fingerprints = {}
    for part in parts:
        for name, number in part.items():
            sums[name] = (sums.get(name, 0) + number) % 2**64
    return sums


def check_equal(
    found: Fingerprints, expected: Fingerprints, refuse: Callable[[str], GptDistError]
) -> None:
    """Raise the error that `refuse` makes for the first name whose number is not the expected."""
    for name, number in expected.items():
        if found[name] != number:
            raise refuse(name)


def _odd_numbers(index: Tensor) -> Tensor:
    """Mix the bits of indices by two multiplications and a shift, as SplitMix64 does."""
    state = (index + 1) * _FACTORS[0]
    state ^= (state >> 32) & 0xFFFFFFFF  # int64 has no shift that leaves the sign out
    return state * _FACTORS[1] | 1
