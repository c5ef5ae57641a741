"""Fingerprints: the same from a tensor and its parts, another for what is moved or changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from gpt_dist.checkpoint.fingerprint import Place, fingerprint, total

HEADS, SIZE = 4, 8
"""Of an attention whose rows are, head by head, those of query, key and value."""


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def whole(full: Tensor) -> int:
    (number,) = fingerprint([full], Place())
    return number


def together(parts: Iterable[tuple[Tensor, Place]]) -> int:
    """The fingerprint of a tensor, summed over its parts."""
    found = ({"x": number} for part, place in parts for number in fingerprint([part], place))
    return total(found)["x"]


def parts(
    full: Tensor, dimension: int | None, shards: int, fragments: int
) -> Iterator[tuple[Tensor, Place]]:
    """Return the parts that processes hold: each shard cut into fragments of several lengths."""
    for number in range(1 if dimension is None else shards):
        shard = full if dimension is None else full.chunk(shards, dimension)[number]
        flat = shard.flatten()
        bounds = [len(flat) * one * one // fragments**2 for one in range(fragments + 1)]
        for start, stop in pairwise(bounds):
            place = Place.of_shard(full.shape, dimension, number, shards, start)
            yield flat[start:stop], place


@pytest.mark.parametrize(
    ("shape", "dimension"),
    [((96, 20), 0), ((96, 20), 1), ((96, 20), None), ((96,), 0), ((96,), None), ((4, 6, 5), 1)],
)
def test_parts_of_any_layout_have_the_fingerprint_of_the_whole(shape, dimension):
    full = drawn(*shape)
    for shards, fragments in product((1, 2), (1, 3, 7)):
        assert together(parts(full, dimension, shards, fragments)) == whole(full)


def test_a_large_tensor_is_summed_in_chunks_of_any_length():
    full, third = drawn(100_003), 33_335
    bounds = range(0, len(full), third)
    assert together((full[at : at + third], Place(at)) for at in bounds) == whole(full)
    assert fingerprint([full, full * 2], Place()) == [whole(full), whole(full * 2)]


def swap_query_and_key(full: Tensor) -> Tensor:
    rows = full.unflatten(0, (HEADS, 3, SIZE))
    return rows[:, [1, 0, 2]].flatten(0, 2)


def put_thirds_for_heads(full: Tensor) -> Tensor:
    """As a reader does that takes query, key and value for thirds of the matrix."""
    return full.unflatten(0, (HEADS, 3, SIZE)).transpose(0, 1).flatten(0, 2)


def exchange_fragments(full: Tensor) -> Tensor:
    flat = full.flatten()
    return torch.cat([flat[600:1200], flat[:600], flat[1200:]]).view(full.shape)


def exchange_shards(full: Tensor) -> Tensor:
    return torch.cat(full.chunk(2, 1)[::-1], 1)


@pytest.mark.parametrize(
    "change",
    [
        swap_query_and_key,
        put_thirds_for_heads,
        exchange_fragments,
        exchange_shards,
        lambda full: full.roll(1),
        lambda full: -full,
        lambda full: full.flip(0),
    ],
)
def test_what_is_in_another_place_has_another_fingerprint(change):
    full = drawn(3 * HEADS * SIZE, 32)
    changed = change(full)
    assert changed.shape == full.shape
    assert sorted(changed.abs().flatten().tolist()) == sorted(full.abs().flatten().tolist())
    assert whole(changed) != whole(full)


def test_a_transposed_shard_is_found():
    full = drawn(64, 64)
    first, second = full.chunk(2, 1)
    places = [Place.of_shard(full.shape, 1, number, 2) for number in range(2)]
    assert together(zip((first, second), places, strict=True)) == whole(full)
    assert together(zip((first.t(), second), places, strict=True)) != whole(full)


@pytest.mark.parametrize("dimension", [0, 1])
def test_a_shard_in_the_place_of_another_is_found(dimension):
    full = drawn(64, 64)
    places = [Place.of_shard(full.shape, dimension, number, 2) for number in (0, 1)]
    shards = full.chunk(2, dimension)
    assert together(zip(shards, places, strict=True)) == whole(full)
    assert together(zip(shards, places[::-1], strict=True)) != whole(full)


def test_the_last_bit_of_one_element_of_a_million_is_found():
    full = drawn(1000, 1000)
    for index in (0, 123_456, 999_999):
        changed = full.clone().view(-1)
        changed[index] = torch.nextafter(changed[index], torch.tensor(torch.inf))
        assert int((changed != full.view(-1)).sum()) == 1
        assert whole(changed) != whole(full)


def test_the_numbers_are_those_that_files_state():
    """A change of them would make every checkpoint that was written before a damaged one."""
    values = torch.tensor([1.0, -2.5, 0.0, 3e-41])
    assert whole(values) == 8943708644894250889
    assert fingerprint([values], Place.of_shard((4, 4), 1, 1, 2)) == [10124945853028606827]
