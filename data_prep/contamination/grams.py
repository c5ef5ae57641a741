"""Runs of words, in the texts of tests and in a corpus, by the hashes of `duplicates.words`.

As in GPT-3's appendix C (Brown et al. 2020), a part of a test with 13 words or more is judged by
its 13-grams. A shorter one of 8 words or more is judged as a whole, which is one gram; 8 is the
least N there. Words are compared without letter case, accents and punctuation. There, punctuation
is deleted; here it also divides words (`well-known` has two), so that text that was tokenized
before, as many tests were, is found too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data_prep.duplicates.words import Hashes, spelled, words_of

GRAM_WORDS = 13
LEAST_WORDS = 8
WIDTHS = range(LEAST_WORDS, GRAM_WORDS + 1)

_FILTER_CELLS = 32  # for each gram
_MAX_FILTER_BITS = 26


class WordedTexts:
    """Some texts with their words."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.data = b"\n".join(texts)
        self.words = words_of(self.data)
        starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
        self.owner = np.searchsorted(starts, self.words.begins, side="right") - 1
        """The index of the text of each word."""
        self._ends = np.append(self.words.begins[1:], len(self.data))

    def grams(self, width: int) -> tuple[NDArray[np.intp], Hashes]:
        """Return the first word and the hash of each run of `width` words within a text."""
        hashes = self.words.runs(width)
        within = self.owner[: len(hashes)] == self.owner[width - 1 :][: len(hashes)]
        firsts = np.flatnonzero(within)
        return firsts, hashes[firsts]

    def gram(self, first: int, width: int) -> bytes:
        """Return the text from one word on to the end of `width` words."""
        return self.data[self.words.begins[first] : self._ends[first + width - 1]]


@dataclass(frozen=True)
class GramSet:
    """Different grams of one width in the texts of tests, sorted by hash."""

    texts: WordedTexts
    width: int
    hashes: Hashes
    firsts: NDArray[np.intp]
    """The first word of each gram, in `texts`."""

    @classmethod
    def collect(cls, texts: WordedTexts, width: int, lengths: NDArray[np.intp]) -> "GramSet":
        """Collect the grams of the texts that are judged by this width.

        Args:
            texts: The parts of all tests.
            width: The number of words of a gram.
            lengths: The number of words of each of the texts.
        """
        firsts, hashes = texts.grams(width)
        judged = lengths >= width if width == GRAM_WORDS else lengths == width
        chosen = judged[texts.owner[firsts]]
        hashes, indexes = np.unique(hashes[chosen], return_index=True)
        return cls(texts, width, hashes, firsts[chosen][indexes])

    def find(self, corpus: WordedTexts) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return which of these grams a corpus holds, and in which of its texts.

        The hashes decide what is compared; the words decide what is found.
        """
        firsts, hashes = corpus.grams(self.width)
        maybe = np.flatnonzero(self._filter[hashes >> self._shift])
        firsts, hashes = firsts[maybe], hashes[maybe]
        places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        equal = self.hashes[places] == hashes
        firsts, places = firsts[equal], places[equal]
        pairs, once = np.unique(np.stack([places, corpus.owner[firsts]]), axis=1, return_index=True)
        same = [
            spelled(corpus.gram(first, self.width)) == self.spelled(place)
            for place, first in zip(pairs[0].tolist(), firsts[once].tolist(), strict=True)
        ]
        found = pairs[:, np.array(same, np.bool_)]
        return found[0], found[1]

    def spelled(self, index: int) -> list[bytes]:
        """Return the words of a gram."""
        return spelled(self.texts.gram(int(self.firsts[index]), self.width))

    @cached_property
    def _bits(self) -> int:
        return min(_MAX_FILTER_BITS, (_FILTER_CELLS * len(self.hashes)).bit_length())

    @property
    def _shift(self) -> np.uint64:
        return np.uint64(64 - self._bits)

    @cached_property
    def _filter(self) -> NDArray[np.bool_]:
        """Whether there is a gram whose hash begins with some bits."""
        cells = np.zeros(1 << self._bits, np.bool_)
        cells[self.hashes >> self._shift] = True
        return cells
