"""Compare the texts of documents that share many fingerprints."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.duplicates.buckets import Records, read_buckets
from data_prep.duplicates.corpus import Corpus
from data_prep.duplicates.search import LINK
from data_prep.duplicates.words import SHINGLE_WORDS, Hashes, words_of

# A pair is compared if it shares this part of the smaller sketch, which is far less than what
# similar texts share (a chapter with a fine sketch shares 0.2 with its book if 5 % of its words
# were changed) and far more than what different books share (0.01).
_CANDIDATE_SHARE = 0.1
_CHANGED_WORDS = 16
_OWN_WORDS = 1000
_LONG_BYTES = 1 << 16


@dataclass(frozen=True)
class LinkedDocuments:
    """Links of a range of documents, as a job: buckets `begin` to `end` of files of links."""

    corpus: Path
    links: tuple[Path, ...]
    begin: int
    end: int
    share: float
    """Share of its words that make a document or a paragraph a repetition."""
    passage_words: int | None = None

    def read(self) -> Records:
        """Read the links."""
        parts = [read_buckets(path, LINK, self.begin, self.end) for path in self.links]
        return np.concatenate([np.empty(0, LINK), *parts])


class Similarity(NamedTuple):
    """Share of the words of each of two documents that the other one has too."""

    later: int
    earlier: int
    later_share: float
    earlier_share: float


class Comparisons(NamedTuple):
    """Pairs of documents that were compared, as later << 32 | earlier, and the similar ones."""

    pairs: NDArray[np.uint64]
    similar: list[Similarity]


def compare(job: LinkedDocuments) -> Comparisons:
    """Compare documents that share many fingerprints, but no pair that an earlier round compared.

    Memory: 80 bytes for each link of the job, and 60 bytes for each word of the longest document.
    """
    corpus = Corpus(job.corpus)
    links = job.read()
    pairs, counts = np.unique(
        links["later"].astype(np.uint64) << np.uint64(32) | links["earlier"], return_counts=True
    )
    later, earlier = (pairs >> np.uint64(32)).astype(np.intp), pairs.astype(np.uint32)
    smaller = np.minimum(corpus.fingerprints[later], corpus.fingerprints[earlier])
    candidates = (counts >= _CANDIDATE_SHARE * smaller) & ~np.isin(pairs, corpus.compared())
    similar: list[Similarity] = []
    shingles = _ShingleReader(corpus)
    for number, other in zip(later[candidates].tolist(), earlier[candidates].tolist(), strict=True):
        ours, theirs = shingles.read(number), shingles.read(other)
        shares = repeated_share(ours, theirs), repeated_share(theirs, ours)
        if max(shares) >= job.share:
            similar.append(Similarity(number, other, *shares))
    return Comparisons(pairs[candidates], similar)


class _ShingleReader:
    """Reader of the runs of words of documents that remembers short ones and the last two long."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._long = lru_cache(maxsize=2)(self._hash)
        self._short = lru_cache(maxsize=256)(self._hash)

    def read(self, number: int) -> Hashes:
        is_long = self._corpus.sizes[number] > _LONG_BYTES
        return self._long(number) if is_long else self._short(number)

    def _hash(self, number: int) -> Hashes:
        return words_of(self._corpus.read(number)).shingles()


def repeated_share(shingles: Hashes, others: Hashes) -> float:
    """Return the share of the words of a text that are repeated in another text.

    A text with a thousand words in a row that the other lacks counts as not repeated, so that it is
    never dropped for the other and loses only the paragraphs that both have.
    """
    if not len(shingles):
        return 0.0
    repeated = repeated_words(is_in(shingles, others))
    places = np.flatnonzero(np.pad(repeated, 1, constant_values=True))
    return 0.0 if np.diff(places).max() > _OWN_WORDS else float(repeated.mean())


def is_in(hashes: Hashes, others: Hashes) -> NDArray[np.bool_]:
    """Tell which hashes are among others."""
    if not len(others):
        return np.zeros(len(hashes), np.bool_)
    ordered = np.sort(others)
    places = np.searchsorted(ordered, hashes)
    places[places == len(ordered)] = 0
    return ordered[places] == hashes


def repeated_words(runs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell which words are repeated, given whether each run of eight words is.

    These are the words of such runs, and up to 16 changed words between two of them.
    """
    first = np.flatnonzero(np.diff(runs, prepend=False) & runs)
    last = np.flatnonzero(np.diff(runs, append=False) & runs) + SHINGLE_WORDS
    apart = first[1:] - last[:-1] > _CHANGED_WORDS
    counts = np.zeros(len(runs) + SHINGLE_WORDS, np.int32)
    counts[first[np.append(True, apart)[: len(first)]]] = 1
    counts[last[np.append(apart, True)[: len(last)]]] = -1
    return np.cumsum(counts)[:-1] > 0
