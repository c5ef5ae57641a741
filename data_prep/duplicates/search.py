"""Search a range of buckets for fingerprints that several documents share.

Each document is linked to the first document that has the same fingerprint and to the two last
ones before it: a fingerprint of a thousand documents gives three thousand links, not half a
million. A document linked to dropped ones alone finds others in the next round (see `find`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.duplicates.buckets import BUCKETS, Records, read_buckets, write_buckets
from data_prep.duplicates.corpus import Corpus
from data_prep.duplicates.sketch import FINGERPRINT

LINK = np.dtype(
    [
        ("later", "<u4"),
        ("earlier", "<u4"),
        ("later_position", "<u4"),
        ("earlier_position", "<u4"),
    ]
)
_NEIGHBOURS = 2
_STEP = 1 << 19  # fingerprints read at a time
_FLUSH = 1 << 20  # links held before they are written


@dataclass(frozen=True)
class SearchJob:
    """Job of linking the documents that share a fingerprint of the buckets `begin` to `end`."""

    corpus: Path
    begin: int
    end: int
    output: Path  # of the file of links; a number is added for each


def search(job: SearchJob) -> list[Path]:
    """Write the links of a job, sorted by the later document, and return the files.

    Memory: 100 bytes x (D + S) + 120 bytes x (L + S), where D is the number of fingerprints of the
    buckets, but of one that many kept documents share only three, S = 2^19 the number read at a
    time (or that of one sketch's buckets, if more), and L = 2^20 the number of links held. With
    D = 2^20 (see `find`), 350 MB; 130 MB were measured.
    """
    corpus = Corpus(job.corpus)
    held = np.empty(0, FINGERPRINT)
    links: list[Records] = []
    files: list[Path] = []
    for records in _read_steps(corpus, job.begin, job.end):
        found, held = _link(held, records)
        links.append(found)
        if sum(map(len, links)) > _FLUSH:
            files.append(_write_links(links, job.output, len(files), len(corpus)))
            links = []
    if any(map(len, links)):
        files.append(_write_links(links, job.output, len(files), len(corpus)))
    return files


def _read_steps(corpus: Corpus, begin: int, end: int) -> Iterator[Records]:
    """Yield the fingerprints of kept documents, in the order of documents, some at a time."""
    kept = corpus.kept()
    step: list[Records] = []
    for path, first in corpus.sketches:
        records = read_buckets(path, FINGERPRINT, begin, end)
        records["document"] += np.uint32(first)
        step.append(records[kept[records["document"]]])
        if sum(map(len, step)) >= _STEP:
            yield np.concatenate(step)
            step = []
    if step:
        yield np.concatenate(step)


def _link(held: Records, records: Records) -> tuple[Records, Records]:
    """Link new fingerprints to those held and to each other, and return the links and the held."""
    old = len(held)
    records = np.concatenate([held, records])
    order = np.argsort(records["hash"], kind="stable")
    records, new = records[order], order >= old
    same = np.concatenate(([False], records["hash"][1:] == records["hash"][:-1]))
    indexes = np.arange(len(records))
    first = np.maximum.accumulate(np.where(same, 0, indexes))
    links = [_pairs(records, new & same, first)]
    for distance in range(1, _NEIGHBOURS + 1):
        links.append(_pairs(records, new & (indexes - distance > first), indexes - distance))
    ends = np.append(np.flatnonzero(~same)[1:], len(records))
    last = np.repeat(ends, np.diff(ends, prepend=0))
    return np.concatenate(links), records[~same | (last - indexes <= _NEIGHBOURS)]


def _pairs(records: Records, which: NDArray[np.bool_], partners: NDArray[np.intp]) -> Records:
    later = records[which]
    earlier = records[partners[which]]
    links = np.empty(len(later), LINK)
    links["later"], links["later_position"] = later["document"], later["position"]
    links["earlier"], links["earlier_position"] = earlier["document"], earlier["position"]
    return links


def _write_links(links: list[Records], output: Path, number: int, documents: int) -> Path:
    records = np.concatenate(links)
    records = records[np.argsort(records["later"], kind="stable")]
    path = output.with_name(f"{output.name}-{number}")
    write_buckets(path, records, records["later"].astype(np.int64) * BUCKETS // documents)
    return path
