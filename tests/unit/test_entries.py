"""Size and hashes of files: the same however they are computed, and what they are divided into."""

from __future__ import annotations

import hashlib
from io import FileIO
from pathlib import Path

import pytest
from pydantic import ValidationError

from gpt_dist.files.entries import (
    BLOCK_BYTES,
    ChunkedEntry,
    FileEntry,
    HashedFile,
    describe_file,
    file_sha256,
    pieces_of,
    read_at,
    read_small,
)

SIZES = [0, 1, BLOCK_BYTES, 2 * BLOCK_BYTES - 1, 2 * BLOCK_BYTES, 5 * BLOCK_BYTES + 12_345]


def content(size: int) -> bytes:
    return bytes(range(251)) * (size // 251) + bytes(size % 251)


@pytest.mark.parametrize("size", SIZES)
def test_a_file_is_described_while_it_is_written_as_when_it_is_read(tmp_path: Path, size: int):
    data, path = content(size), tmp_path / "file"
    file = HashedFile(path, size)
    for start in range(0, size, 700_001):
        file.write(data[start : start + 700_001])
    entry = file.close()
    assert path.read_bytes() == data
    assert entry == describe_file(path)
    assert (entry.bytes, entry.sha256) == (size, hashlib.sha256(data).hexdigest())
    assert entry.sha256 == file_sha256(path)
    assert len(entry.chunks) == (size // BLOCK_BYTES if size >= 2 * BLOCK_BYTES else 0)


@pytest.mark.parametrize("size", SIZES)
def test_pieces_are_the_file_and_have_the_hashes_of_their_bytes(tmp_path: Path, size: int):
    (tmp_path / "file").write_bytes(data := content(size))
    entry = describe_file(tmp_path / "file")
    unchunked = FileEntry(bytes=size, sha256=entry.sha256)
    for known, stated in ((entry, True), (unchunked, True), (size, False)):
        pieces = pieces_of("file", known)
        assert b"".join(data[piece.start : piece.stop] for piece in pieces) == data
        for piece in pieces:
            found = hashlib.sha256(data[piece.start : piece.stop]).hexdigest()
            assert piece.sha256 == (found if stated else None)
    assert len(pieces_of("file", size)) == max(1, len(entry.chunks))


def test_a_large_file_is_in_no_more_than_64_pieces():
    pieces = pieces_of("file", 10**12 + 1)
    assert len(pieces) == 64
    assert pieces[-1].stop == 10**12 + 1


def test_a_file_of_unknown_length_has_no_chunks(tmp_path: Path):
    file = HashedFile(tmp_path / "file")
    file.write(content(3 * BLOCK_BYTES))
    assert file.close().chunks == ()


@pytest.mark.parametrize("chunks", [("0" * 64,) * 4, ("0" * 63,), ("x" * 64,)])
def test_chunks_that_a_file_cannot_have_are_refused(chunks: tuple[str, ...]):
    with pytest.raises(ValidationError):
        ChunkedEntry(bytes=5, sha256="0" * 64, chunks=chunks)


def test_reading_at_a_place_fills_the_target_or_says_where_the_file_ends(tmp_path: Path):
    (tmp_path / "file").write_bytes(data := content(1000))
    with FileIO(tmp_path / "file") as stream:
        for start, length in ((0, 1000), (990, 10), (7, 0)):
            target = bytearray(length)
            read_at(stream, start, memoryview(target))
            assert target == data[start : start + length]
        with pytest.raises(ValueError, match="it ends at byte 1000"):
            read_at(stream, 990, memoryview(bytearray(11)))


def test_a_file_above_the_limit_is_not_read(tmp_path: Path):
    (tmp_path / "file").write_bytes(data := content(1000))
    assert read_small(tmp_path / "file", 1000) == data
    with pytest.raises(ValueError, match="larger than 999 bytes"):
        read_small(tmp_path / "file", 999)
