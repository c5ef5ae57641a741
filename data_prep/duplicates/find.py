"""Find the documents of a corpus that repeat others, and passages that occur in several.

1. Workers link the documents that share fingerprints, a range of hashes each (see `search`).
2. Workers compare the texts of documents that share many, a range of documents each.
3. In one place, in a fixed order, `decide` which documents to drop.
4. Repeat this with the remaining documents until no more are dropped.
5. Workers find in the remaining documents the paragraphs that repeat an earlier document.
"""

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from data_prep.defaults import PASSAGE_WORDS
from data_prep.duplicates.buckets import BUCKETS, read_bounds, split_buckets
from data_prep.duplicates.corpus import Corpus, TextRange
from data_prep.duplicates.passages import Cut, find_passages
from data_prep.duplicates.search import SearchJob, search
from data_prep.duplicates.similarity import LinkedDocuments, Similarity, compare

NEAR_DUPLICATE = "near-duplicate"
CONTAINED = "contained"

# Two documents are near-duplicates, not one contained in the other, if their shares differ by less.
_EQUAL_SHARES = 0.05
_JOB_FINGERPRINTS = 1 << 19
_JOB_LINKS = 1 << 15

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


class PoolMap(Protocol):
    """Run a function on jobs in other processes and yield the results in order."""

    def __call__(
        self, function: Callable[[_Job], _Result], jobs: Iterable[_Job], /
    ) -> Iterator[_Result]:
        """Yield the result of each job."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Reason to drop a document: which one is kept instead, and how similar they are."""

    kept: int
    similarity: float
    """Share of the words of the dropped document that are repeated in the kept one, or in the one
    that was itself dropped later for the kept one."""
    reason: str


@dataclass(frozen=True)
class Findings:
    """Repetitions in a corpus, by the number of the document."""

    dropped: dict[int, Dropped]
    cuts: dict[int, list[Cut]]


def find_duplicates(
    documents: Sequence[TextRange],
    sketches: Sequence[Path],
    threshold: float | None,
    pool_map: PoolMap,
    work_folder: Path,
    advance: Callable[[int], None],
    *,
    passage_words: int | None = PASSAGE_WORDS,
    left_out: Collection[int] = (),
) -> Findings:
    """Find near-duplicates, contained documents and repeated passages.

    Args:
        documents: All documents of all batches in order, those left out too.
        sketches: The file of each batch that `write_sketch` wrote for its documents.
        threshold: The share of the words of a document, or of a paragraph, that another document
            must have for it to be dropped or cut; None or 0 finds nothing.
        pool_map: Runs jobs. A job takes at most 400 MB for documents of at most 32 MiB (see
            `search`, `compare` and `find_passages` for the formulas).
        work_folder: A folder for intermediate files alone, which is removed at the end: 24 bytes a
            document, and at most 48 bytes a fingerprint that another document shares.
        advance: Called with 1 after each job.
        passage_words: The least number of repeated words that are cut as a passage; None or 0 cuts
            nothing. Passages of less than 49 words may be missed.
        left_out: Numbers of documents to ignore, such as exact duplicates of others.
    """
    if not threshold or not documents:
        return Findings({}, {})
    corpus = Corpus.create(work_folder, documents, sketches, left_out)
    dropped: dict[int, Dropped] = {}
    while True:
        links = _search(corpus, pool_map, advance)
        jobs = _linked(corpus, links, threshold, passage_words)
        results = list(_run(pool_map, compare, jobs, advance))
        new = decide((pair for result in results for pair in result.similar), corpus, threshold)
        if not new:
            break
        dropped |= new
        kept = corpus.kept()
        kept[list(new)] = False
        compared = np.concatenate([corpus.compared(), *(result.pairs for result in results)])
        corpus.record(kept, compared)
    cuts: dict[int, list[Cut]] = {}
    if passage_words:
        for found in _run(pool_map, find_passages, jobs, advance):
            cuts.update(found)
    shutil.rmtree(work_folder)
    return Findings({number: _with_last_kept(dropped, number) for number in sorted(dropped)}, cuts)


def _with_last_kept(dropped: dict[int, Dropped], number: int) -> Dropped:
    """Return the reason to drop a document with the document that is kept in the end."""
    kept = dropped[number].kept
    while kept in dropped:
        kept = dropped[kept].kept
    return replace(dropped[number], kept=kept)


def decide(similar: Iterable[Similarity], corpus: Corpus, threshold: float) -> dict[int, Dropped]:
    """Decide which documents to drop: each one is similar to a document that is kept.

    Of two near-duplicates, the earlier is kept. Otherwise the one that contains the other is kept.
    """
    equal: list[tuple[int, int, float]] = []
    contained: list[tuple[int, int, float]] = []
    for pair in similar:
        difference = pair.later_share - pair.earlier_share
        if abs(difference) < _EQUAL_SHARES and pair.later_share >= threshold:
            equal.append((pair.later, pair.earlier, pair.later_share))
        elif difference > 0:
            contained.append((pair.later, pair.earlier, pair.later_share))
        else:
            contained.append((pair.earlier, pair.later, pair.earlier_share))
    sizes = corpus.sizes
    # A document is kept or dropped before those that may be dropped for it.
    contained.sort(key=lambda pair: (-int(sizes[pair[0]]), pair[0], -pair[2], pair[1]))
    equal.sort(key=lambda pair: (pair[0], -pair[2], pair[1]))
    dropped: dict[int, Dropped] = {}
    for reason, pairs in ((NEAR_DUPLICATE, equal), (CONTAINED, contained)):
        for number, kept, share in pairs:
            if number not in dropped and kept not in dropped:
                dropped[number] = Dropped(kept, share, reason)
    return dropped


def _search(corpus: Corpus, pool_map: PoolMap, advance: Callable[[int], None]) -> list[Path]:
    folder = corpus.folder / "links"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    sizes = np.zeros(BUCKETS, np.int64)
    for path, _ in corpus.sketches:
        sizes += np.diff(read_bounds(path))
    jobs = [
        SearchJob(corpus.folder, begin, end, folder / str(begin))
        for begin, end in split_buckets(sizes.tolist(), _JOB_FINGERPRINTS)
    ]
    return [file for files in _run(pool_map, search, jobs, advance) for file in files]


def _linked(
    corpus: Corpus, links: Sequence[Path], threshold: float, passage_words: int | None
) -> list[LinkedDocuments]:
    sizes = np.zeros(BUCKETS, np.int64)
    for path in links:
        sizes += np.diff(read_bounds(path))
    return [
        LinkedDocuments(corpus.folder, tuple(links), begin, end, threshold, passage_words)
        for begin, end in split_buckets(sizes.tolist(), _JOB_LINKS)
    ]


def _run(
    pool_map: PoolMap,
    function: Callable[[_Job], _Result],
    jobs: Sequence[_Job],
    advance: Callable[[int], None],
) -> Iterator[_Result]:
    for result in pool_map(function, jobs):
        advance(1)
        yield result
