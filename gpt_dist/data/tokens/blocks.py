"""Checksums of the blocks of shards, compared at every read.

They are taken while a shard is hashed, or read from the file of checksums beside it.
"""

import zlib
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gpt_dist.files.entries import read_at

BLOCK_LENGTH = 2**14
"""Bytes of a block: one is read and checked in 10 microseconds; a terabyte has 64 million."""

Sums = np.ndarray[Any, np.dtype[np.uint32]]


class _AnySums(Protocol):
    def __getitem__(self, blocks: slice, /) -> Sums: ...


class _SumsFile:
    """CRC-32 of each block of a file, in another file of little-endian uint32."""

    def __init__(self, path: Path) -> None:
        self._stream = FileIO(path)

    def __getitem__(self, blocks: slice) -> Sums:
        """Read the checksums of some blocks."""
        sums = np.empty(blocks.stop - blocks.start, "<u4")
        read_at(self._stream, blocks.start * sums.itemsize, sums.data.cast("B"))
        return sums


class BlockSums:
    """Checksums of the blocks of a file that is being written."""

    def __init__(self) -> None:
        self._sums: list[int] = []
        self._bytes = 0

    def update(self, content: bytes | memoryview) -> None:
        """Take the next bytes."""
        rest = memoryview(content)
        while rest:
            done = self._bytes % BLOCK_LENGTH
            part = rest[: BLOCK_LENGTH - done]
            if done:
                self._sums[-1] = zlib.crc32(part, self._sums[-1])
            else:
                self._sums.append(zlib.crc32(part))
            rest, self._bytes = rest[len(part) :], self._bytes + len(part)

    def content(self) -> bytes:
        """Return the content of the file of checksums."""
        return np.array(self._sums, "<u4").tobytes()


class BlockChecksums:
    """CRC-32 of each block of some files, each with its size; other files are not checked."""

    def __init__(self) -> None:
        self.taken: dict[str, tuple[int, Sums]] = {}
        self._stated: dict[str, tuple[int, _SumsFile]] = {}

    def take(self, file: str, size: int, start: int, content: memoryview) -> None:
        """Take the checksums of the blocks from `start` on of a file of `size` bytes."""
        assert start % BLOCK_LENGTH == 0, (file, start)
        blocks = -(-size // BLOCK_LENGTH)
        _, sums = self.taken.setdefault(file, (size, np.zeros(blocks, np.uint32)))
        for place in range(0, len(content), BLOCK_LENGTH):
            part = content[place : place + BLOCK_LENGTH]
            sums[(start + place) // BLOCK_LENGTH] = zlib.crc32(part)

    def state(self, file: str, size: int, sums: Path) -> None:
        """Have a file of `size` bytes compared with the checksums in another file."""
        self._stated[file] = size, _SumsFile(sums)

    def read(self, file: str, stream: FileIO, start: int, target: memoryview) -> None:
        """Fill `target` from a position on; ValueError where the file is shorter or has changed."""
        found: tuple[int, _AnySums] | None = self.taken.get(file) or self._stated.get(file)
        if not found or not target:
            read_at(stream, start, target)
            return
        (size, sums), first = found, start // BLOCK_LENGTH
        last = -(-(start + len(target)) // BLOCK_LENGTH)
        content = memoryview(bytearray(min(last * BLOCK_LENGTH, size) - first * BLOCK_LENGTH))
        read_at(stream, first * BLOCK_LENGTH, content)
        for number, expected in enumerate(sums[first:last].tolist()):
            place = number * BLOCK_LENGTH
            if zlib.crc32(content[place : place + BLOCK_LENGTH]) != expected:
                changed = first * BLOCK_LENGTH + place
                raise ValueError(f"changed since its checksums were taken, at byte {changed}")
        target[:] = content[start - first * BLOCK_LENGTH :][: len(target)]
