"""Find the blocks of lines that blank lines separate, and join the lines of plain ones.

All of it is done on arrays of characters, because most blocks of most books need no closer look.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LINE_FEED, _SPACE = ord("\n"), ord(" ")
_MARKS = frozenset(" -*•+–—(")
"""Beside digits, the characters that may begin a line that is indented, or an item of a list."""
_DASHES = np.array([ord(mark) for mark in "-‐–—"])
_SECTION = 1 << 20

Codes = NDArray[np.uint8] | NDArray[np.uint32]
"""The characters of a text as numbers."""


@dataclass(frozen=True)
class Blocks:
    """Blocks of a section of a text, each with the numbers of its first and its last line."""

    text: str
    begins: NDArray[np.intp]
    """Indexes of the first character of each line."""
    ends: NDArray[np.intp]
    """Indexes of the character after each line."""
    first: NDArray[np.intp]
    last: NDArray[np.intp]
    marked: NDArray[np.bool_]
    """Tells of each line whether it is indented or may be an item of a list."""
    dashed: NDArray[np.bool_]
    """Tells of each line whether it ends in a hyphen or a dash."""
    gaps: NDArray[np.bool_]
    """Tells of each line whether it has three spaces in a row."""

    def __len__(self) -> int:
        return len(self.first)

    def bounds(self, number: int) -> tuple[int, int]:
        """Return the indexes of the first character of a block and of the one after it."""
        return int(self.begins[self.first[number]]), int(self.ends[self.last[number]])

    def several(self) -> NDArray[np.intp]:
        """Return the numbers of the blocks of two lines or more."""
        return np.flatnonzero(self.last > self.first)

    def plain(
        self, numbers: NDArray[np.intp], shortest: int, longest: int, most: int
    ) -> NDArray[np.bool_]:
        """Tell which blocks of two lines or more are plain.

        These have no indents, gaps of three spaces, items of a list or hyphens at the ends of
        their lines.

        Args:
            numbers: The numbers of the blocks.
            shortest: The least length of all lines but the last.
            longest: The length that at least one line exceeds.
            most: The greatest number of lines.
        """
        if not len(numbers):
            return np.zeros(0, np.bool_)
        first, last = self.first[numbers], self.last[numbers]
        lengths = self.ends - self.begins
        # Every second range lies between two blocks.
        ranges = np.stack([first, last], axis=1).ravel()
        least = np.minimum.reduceat(lengths, ranges)[::2]
        greatest = np.maximum(np.maximum.reduceat(lengths, ranges)[::2], lengths[last])
        return (
            (least >= shortest)
            & (greatest > longest)
            & (last - first < most)
            & ~_any(self.marked, first + 1, last + 1)
            & ~_any(self.dashed, first, last)
            & ~_any(self.gaps, first, last + 1)
        )

    def joined(self, numbers: NDArray[np.intp]) -> str:
        """Return the text with a space for each line end inside some blocks."""
        if not len(numbers):
            return self.text
        steps = np.zeros(len(self.begins) + 1, np.int8)
        steps[self.first[numbers]] += 1
        steps[self.last[numbers]] -= 1
        codes = _codes(self.text).copy()
        codes[self.ends[np.cumsum(steps[:-1]) > 0]] = _SPACE
        return codes.tobytes().decode("latin-1" if codes.itemsize == 1 else "utf-32-le")


def find_blocks(text: str) -> Iterator[Blocks]:
    """Yield the sections of a text, which end between two blocks, with their blocks."""
    begin = 0
    while begin < len(text):
        end = text.find("\n\n", begin + _SECTION)
        end = len(text) if end < 0 else end + 1
        yield _blocks_of(text[begin:end])
        begin = end


def _blocks_of(text: str) -> Blocks:
    codes = _codes(f"{text}\n")
    ends = np.flatnonzero(codes == _LINE_FEED)
    begins = np.concatenate(([0], ends[:-1] + 1))
    bounds = np.flatnonzero(np.diff(ends > begins, prepend=False, append=False))
    gaps = np.zeros(len(ends), np.bool_)
    if "   " in text:
        spaces = codes == _SPACE
        places = np.flatnonzero(spaces[:-2] & spaces[1:-1] & spaces[2:])
        gaps[np.searchsorted(ends, places)] = True
    marks = [
        code
        for code in np.unique(codes[begins]).tolist()
        if chr(code) in _MARKS or chr(code).isdecimal()
    ]
    marked, dashed = np.isin(codes[begins], marks), np.isin(codes[ends - 1], _DASHES)
    return Blocks(text, begins, ends, bounds[::2], bounds[1::2] - 1, marked, dashed, gaps)


def _codes(text: str) -> Codes:
    try:
        return np.frombuffer(text.encode("latin-1"), np.uint8)
    except UnicodeEncodeError:
        return np.frombuffer(text.encode("utf-32-le"), "<u4")


def _any(
    flags: NDArray[np.bool_], begins: NDArray[np.intp], ends: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Tell in which ranges of lines any is flagged."""
    before = np.concatenate(([0], np.cumsum(flags)))
    return before[ends] > before[begins]
