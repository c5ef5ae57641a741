"""Clean documents of a build, which lie as byte ranges in files of its work folder."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.sources import Source

Range = tuple[int, int]
"""Bytes begin to end."""


@dataclass(frozen=True, slots=True)
class CleanDocument:
    """Clean text of a document, which lies in a file as UTF-8, perhaps in several pieces."""

    number: int
    """Place among all documents, also those that are left out."""
    name: str
    source: Source
    file: Path
    ranges: tuple[Range, ...]
    """Byte ranges of the file, whose texts make up the document."""
    digest: str
    """SHA-256 of the text, or for a part of a document, of that and the bounds."""

    @property
    def size(self) -> int:
        """The number of bytes."""
        return sum(end - begin for begin, end in self.ranges)

    def data(self) -> bytes:
        """Read the text as UTF-8."""
        with self.file.open("rb") as stream:
            return b"".join(_read(stream.fileno(), piece) for piece in self.ranges)

    def text(self) -> str:
        """Read the text."""
        return self.data().decode()

    def part(self, begin: int, end: int) -> "CleanDocument":
        """Return the bytes `begin` to `end` of the text as a document."""
        ranges = tuple(_within(self.ranges, begin, end))
        digest = hashlib.sha256(f"{self.digest} {begin} {end}".encode()).hexdigest()
        return replace(self, ranges=ranges, digest=digest)

    def without(self, cuts: Iterable[Range]) -> "CleanDocument":
        """Return the document without some byte ranges of its text, given in order."""
        position, cuts = 0, list(cuts)
        ranges: list[Range] = []
        for begin, end in [*cuts, (self.size, self.size)]:
            ranges += _within(self.ranges, position, begin)
            position = end
        digest = hashlib.sha256(f"{self.digest} without {cuts}".encode()).hexdigest()
        return replace(self, ranges=tuple(ranges), digest=digest)

    def cut(self, position: int, slack: float) -> "tuple[CleanDocument, CleanDocument] | None":
        """Cut the document in two near the byte `position`, or return None if it is a single word.

        The cut is at the nearest line end, or at the nearest space if no line end lies within
        `slack` bytes.
        """
        data = self.data()
        line_ends, spaces = (
            {data.rfind(mark, 0, position), data.find(mark, position)} - {-1}
            for mark in (b"\n", b" ")
        )
        near = {place for place in line_ends if abs(place - position) <= slack}
        places = near or line_ends | spaces
        if not places:
            return None
        place = min(places, key=lambda place: (abs(place - position), place))
        return self.part(0, place), self.part(place + 1, len(data))


def lines_between(data: bytes, begin: int, end: int) -> list[str]:
    """Return the lines of a text that begin in its bytes `begin` to `end`."""
    first = data.find(b"\n", begin - 1) + 1 if begin else 0
    last = data.find(b"\n", end - 1) if end < len(data) else len(data)
    if begin and not first:
        return []
    return data[first : len(data) if last < 0 else last].decode().split("\n")


def _within(ranges: Iterable[Range], begin: int, end: int) -> Iterator[Range]:
    """Yield the file ranges of the bytes `begin` to `end` of a text."""
    for first, last in ranges:
        start, stop = max(first, first + begin), min(last, first + end)
        if start < stop:
            yield start, stop
        begin, end = begin - (last - first), end - (last - first)


def _read(descriptor: int, piece: Range) -> bytes:
    begin, end = piece
    return os.pread(descriptor, end - begin, begin)
