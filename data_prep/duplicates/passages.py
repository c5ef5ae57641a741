"""Find the paragraphs of documents that repeat passages of earlier documents."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.duplicates.buckets import Records
from data_prep.duplicates.corpus import Corpus
from data_prep.duplicates.similarity import LinkedDocuments, is_in, repeated_words
from data_prep.duplicates.words import SHINGLE_WORDS, words_of

# Two shared fingerprints belong to one passage if they are near each other in both documents, at
# about the same distance.
_NEAR = 1000  # bytes
_DRIFT = 300  # bytes
# Length of text compared before the first fingerprint of a passage and after the last.
_MARGIN = 1000  # bytes


class Cut(NamedTuple):
    """Range of bytes of a document, at bounds of paragraphs, that repeats another document."""

    begin: int
    end: int
    source: int


class _Passage(NamedTuple):
    """Range of bytes of a document that may repeat one of an earlier document."""

    earlier: int
    begin: int
    end: int
    earlier_begin: int
    earlier_end: int


def find_passages(job: LinkedDocuments) -> list[tuple[int, list[Cut]]]:
    """Return the repeated passages of each document of a job that has any.

    Memory: 150 bytes for each link of the job, and 60 bytes for each word of the longest document.
    """
    corpus = Corpus(job.corpus)
    links = _first_sources(job.read())
    bounds = np.flatnonzero(np.diff(links["later"].astype(np.int64), prepend=-1, append=-1))
    found: list[tuple[int, list[Cut]]] = []
    for begin, end in pairwise(bounds):
        number = int(links["later"][begin])
        passages = list(_passages(links[begin:end]))
        if passages and (cuts := _cuts(corpus, number, passages, job)):
            found.append((number, cuts))
    return found


def _first_sources(links: Records) -> Records:
    """Leave only the link of each fingerprint to the first document that has it.

    The links come sorted by document, then source, then position.
    """
    links = _sort(links, "later", "later_position", "earlier")
    new = np.ones(len(links), np.bool_)
    new[1:] = np.any(
        [links[key][1:] != links[key][:-1] for key in ("later", "later_position")], axis=0
    )
    return _sort(links[new], "later", "earlier", "later_position", "earlier_position")


def _sort(links: Records, *keys: str) -> Records:
    return links[np.lexsort([links[key] for key in reversed(keys)])]


def _passages(links: Records) -> Iterator[_Passage]:
    """Yield the passages that two or more links of one document show."""
    later, earlier = (links[key].astype(np.int64) for key in ("later_position", "earlier_position"))
    steps, other_steps = np.diff(later), np.diff(earlier)
    apart = (
        (np.diff(links["earlier"].astype(np.int64)) != 0)
        | (steps > _NEAR)
        | (np.abs(steps - other_steps) > _DRIFT)
    )
    bounds = np.concatenate(([0], np.flatnonzero(apart) + 1, [len(links)]))
    for begin, end in pairwise(bounds):
        if end - begin > 1:
            others = earlier[begin:end]
            yield _Passage(
                int(links["earlier"][begin]),
                int(later[begin]),
                int(later[end - 1]),
                int(others.min()),
                int(others.max()),
            )


def _cuts(corpus: Corpus, number: int, passages: list[_Passage], job: LinkedDocuments) -> list[Cut]:
    text = corpus.read(number)
    words = words_of(text)
    shingles = words.shingles()
    sources = np.full(len(shingles), -1, np.int64)
    for passage in sorted(passages):
        begin, end = np.searchsorted(
            words.begins[: len(shingles)], (passage.begin - _MARGIN, passage.end + _MARGIN)
        )
        other = corpus.read(
            passage.earlier, passage.earlier_begin - _MARGIN, passage.earlier_end + _MARGIN
        )
        part = sources[begin:end]
        part[(part < 0) & is_in(shingles[begin:end], words_of(other).shingles())] = passage.earlier
    assert job.passage_words is not None
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
    bounds = np.unique(np.concatenate(([0], ends, [len(text)])))
    repeated = repeated_words(sources >= 0)
    return [
        Cut(
            int(bounds[first]),
            int(bounds[last]),
            _main_source(sources, words.begins, bounds[[first, last]]),
        )
        for first, last in _repeated(words.begins, repeated, bounds, job.share, job.passage_words)
    ]


def _repeated(
    begins: NDArray[np.uint32],
    is_repeated: NDArray[np.bool_],
    bounds: NDArray[np.intp],
    share: float,
    passage_words: int,
) -> Iterator[tuple[int, int]]:
    """Yield ranges of paragraphs that are repeated and have enough repeated words.

    A few words, less than a run, may stand between two repeated paragraphs, such as the number of a
    chapter.
    """
    paragraph = np.searchsorted(bounds, begins, side="right") - 1
    sizes = np.bincount(paragraph, minlength=len(bounds) - 1)
    repetitions = np.bincount(paragraph[is_repeated], minlength=len(bounds) - 1)
    repeated = np.flatnonzero((sizes > 0) & (repetitions >= share * sizes))
    before = np.concatenate(([0], np.cumsum(sizes)))
    breaks = before[repeated[1:]] - before[repeated[:-1] + 1] >= SHINGLE_WORDS
    for run in np.split(repeated, np.flatnonzero(breaks) + 1):
        if repetitions[run].sum() >= passage_words:
            yield int(run[0]), int(run[-1]) + 1


def _main_source(
    sources: NDArray[np.int64], begins: NDArray[np.uint32], bounds: NDArray[np.intp]
) -> int:
    """Return the document that most runs of words of a range of bytes come from."""
    begin, end = np.searchsorted(begins[: len(sources)], bounds)
    numbers, counts = np.unique(sources[begin:end], return_counts=True)
    known = numbers >= 0
    return int(numbers[known][np.argmax(counts[known])])
