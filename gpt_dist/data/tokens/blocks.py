"""Checksums of the blocks of shards: taken while a file is hashed, compared at every later read."""

import zlib
from io import FileIO
from typing import Any

import numpy as np

from gpt_dist.files.entries import read_at

_LENGTH = 2**14
"""Bytes of a block: one is read and checked in 10 microseconds; a terabyte has 64 million."""


class BlockChecksums:
    """CRC-32 of each block of some files, each with its size; other files are not checked."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[int, np.ndarray[Any, np.dtype[np.uint32]]]] = {}

    def take(self, file: str, size: int, start: int, content: memoryview) -> None:
        """Take the checksums of the blocks from `start` on of a file of `size` bytes."""
        assert start % _LENGTH == 0, (file, start)
        _, sums = self.files.setdefault(file, (size, np.zeros(-(-size // _LENGTH), np.uint32)))
        for place in range(0, len(content), _LENGTH):
            sums[(start + place) // _LENGTH] = zlib.crc32(content[place : place + _LENGTH])

    def read(self, file: str, stream: FileIO, start: int, target: memoryview) -> None:
        """Fill `target` from a position on; ValueError where the file is shorter or has changed."""
        if file not in self.files:
            read_at(stream, start, target)
            return
        (size, sums), first = self.files[file], start // _LENGTH
        stop = min(-(-(start + len(target)) // _LENGTH) * _LENGTH, size)
        content = memoryview(bytearray(stop - first * _LENGTH))
        read_at(stream, first * _LENGTH, content)
        for place in range(0, len(content), _LENGTH):
            number = first + place // _LENGTH
            if zlib.crc32(content[place : place + _LENGTH]) != sums[number]:
                raise ValueError(f"changed since it was hashed, at byte {number * _LENGTH}")
        target[:] = content[start - first * _LENGTH :][: len(target)]
