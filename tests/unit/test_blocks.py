"""Reads of a shard are compared with the checksums that were taken while it was hashed."""

from __future__ import annotations

import random
from io import FileIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data_prep.shards import SUFFIXES, ShardWriter
from gpt_dist.data.tokens.blocks import BlockChecksums, BlockSums
from gpt_dist.data.tokens.folder import SplitEntry, TokenManifest, TokenStream, refuse
from gpt_dist.errors import DataError
from gpt_dist.files.entries import describe_file
from gpt_dist.files.shared import SharedFiles

SIZE = 300_001


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(random.Random(0).randbytes(SIZE))
    return path


def taken(file: Path) -> BlockChecksums:
    """Return the checksums of a file, taken as training takes them."""
    checksums = BlockChecksums()
    SharedFiles(file.parent, {file.name: describe_file(file)}, refuse, checksums.take).verify()
    return checksums


def stated(file: Path) -> BlockChecksums:
    """Return the checksums of a file, as the file beside a shard states them."""
    sums, draws, content = BlockSums(), random.Random(3), file.read_bytes()
    bounds = [0, *sorted(draws.sample(range(SIZE), 40)), SIZE]
    for start, stop in pairwise(bounds):
        sums.update(content[start:stop])
    path = file.with_suffix(".sums")
    path.write_bytes(sums.content())
    checksums = BlockChecksums()
    checksums.state(file.name, SIZE, path)
    return checksums


SOURCES = pytest.mark.parametrize("checksums_of", [taken, stated])


def read(checksums: BlockChecksums, file: Path, start: int, stop: int) -> bytes:
    target = bytearray(stop - start)
    with FileIO(file) as stream:
        checksums.read(file.name, stream, start, memoryview(target))
    return bytes(target)


def flip(file: Path, position: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


@SOURCES
def test_any_part_of_an_unchanged_file_is_read(file: Path, checksums_of):
    checksums, content, draws = checksums_of(file), file.read_bytes(), random.Random(1)
    bounds = [(0, SIZE), (0, 0), (SIZE, SIZE), (SIZE - 1, SIZE), (2**14, 2**15), (2**14 - 1, 2**14)]
    bounds += [tuple(sorted(draws.sample(range(SIZE), 2))) for _ in range(100)]
    for start, stop in bounds:
        assert read(checksums, file, start, stop) == content[start:stop]


@pytest.mark.row(30, case="any bit of a block, checksums {checksums_of.__name__}")
@SOURCES
def test_every_flipped_bit_is_found_by_whoever_reads_its_block(file: Path, checksums_of):
    checksums, draws = checksums_of(file), random.Random(2)
    for position in [0, 2**14 - 1, 2**14, SIZE - 1, *draws.sample(range(SIZE), 50)]:
        bit = draws.randrange(8)
        flip(file, position, bit)
        start = max(0, position - draws.randrange(1, 1000))
        with pytest.raises(ValueError, match=f"at byte {position // 2**14 * 2**14}"):
            read(checksums, file, start, position + 1)
        flip(file, position, bit)
        read(checksums, file, start, position + 1)


@SOURCES
def test_a_file_that_has_become_shorter_is_refused(file: Path, checksums_of):
    checksums = checksums_of(file)
    file.write_bytes(file.read_bytes()[:-1])
    assert read(checksums, file, 0, 2**14)
    with pytest.raises(ValueError, match=f"ends at byte {SIZE - 1}"):
        read(checksums, file, SIZE - 10, SIZE - 5)


def test_a_stream_of_tokens_names_the_shard_that_has_changed(tmp_path: Path):
    writers = [ShardWriter(tmp_path / f"shard-{n:05d}", np.dtype("<u2")) for n in (0, 1)]
    ids = np.arange(40_000, dtype="<u2")
    (tmp_path / "train").mkdir()
    shards = []
    for writer, part in zip(writers, (ids[:25_000], ids[25_000:]), strict=True):
        writer.write(part.tobytes())
        writer.add_lengths(np.array([len(part)]))
    for number, writer in enumerate(writers):
        shards.append(writer.close(f"train/shard-{number:05d}"))
        for suffix in SUFFIXES:
            name = f"shard-{number:05d}{suffix}"
            (tmp_path / name).rename(tmp_path / "train" / name)
    split = SplitEntry(tokens=40_000, documents=2, shards=tuple(shards))
    manifest = TokenManifest.model_construct(dtype="uint16", vocab_size=40_000)
    checksums = BlockChecksums()
    entries = {f"{shard.name}.bin": shard.bin for shard in shards}
    SharedFiles(tmp_path, entries, refuse, checksums.take).verify()
    stream = TokenStream(tmp_path, split, manifest, checksums)
    assert (stream.read(24_000, 27_000) == ids[24_000:27_000]).all()
    flip(tmp_path / "train/shard-00001.bin", 3)
    assert (stream.read(0, 25_000) == ids[:25_000]).all()
    with pytest.raises(
        DataError, match=r"shard-00001.bin: changed since its checksums were taken, at byte 0"
    ):
        stream.read(24_000, 27_000)
    (tmp_path / "train/shard-00001.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"shard-00001.bin: it ends at byte 0"):
        stream.read(25_000, 25_010)
