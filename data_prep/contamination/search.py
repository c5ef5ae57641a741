"""Search the texts of a token folder for grams, in parallel parts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data_prep.contamination.grams import WIDTHS, GramSet, WordedTexts
from data_prep.contamination.texts import TaskFiles, read_texts
from data_prep.pool import Pool
from data_prep.token_parts import DocumentPiece, TokenPart, divide, read_documents, tokenizer_of
from gpt_dist.data.tokens.folder import SPLITS, SplitName, TokenFolder

_PART_TOKENS = 1 << 21
_BATCH_BYTES = 1 << 20


@dataclass(frozen=True)
class TaskTexts:
    """The texts of tests, part by part, and their grams."""

    where: tuple[str, ...]
    """The file and place of each text."""
    files: tuple[int, ...]
    """The index of the file of each text."""
    test: NDArray[np.intp]
    """The index of the text of each part."""
    texts: WordedTexts
    lengths: NDArray[np.intp]
    """The number of words of each part."""
    grams: tuple[GramSet, ...]


@lru_cache(maxsize=1)
def read_task_files(files: TaskFiles) -> TaskTexts:
    """Read all files of tests; the last are kept for the next call.

    Takes about 100 bytes a word.
    """
    where: list[str] = []
    file: list[int] = []
    test: list[int] = []
    parts: list[bytes] = []
    for index, path in enumerate(files.paths):
        for text in read_texts(path, files):
            test += [len(where)] * len(text.parts)
            parts += [part.encode("utf-8", "replace") for part in text.parts]
            where.append(text.where)
            file.append(index)
    texts = WordedTexts(parts)
    lengths = np.bincount(texts.owner, minlength=len(parts))
    grams = (GramSet.collect(texts, width, lengths) for width in WIDTHS)
    chosen = tuple(one for one in grams if len(one.hashes))
    return TaskTexts(tuple(where), tuple(file), np.array(test, np.intp), texts, lengths, chosen)


@dataclass(frozen=True)
class _SearchJob:
    part: TokenPart
    files: TaskFiles


@dataclass(frozen=True)
class _Found:
    """For each set of grams, which of them were found, and in how many documents."""

    split: SplitName
    tokens: int
    grams: list[tuple[NDArray[np.intp], NDArray[np.intp]]]


def count_documents(
    folder: TokenFolder, files: TaskFiles, pool: Pool, advance: Callable[[int], None]
) -> dict[SplitName, list[NDArray[np.int64]]]:
    """Return in how many documents of each split each gram stands, for each set of grams.

    Args:
        folder: The corpus.
        files: The tests.
        pool: The workers. Each takes about 100 MB beside the tests.
        advance: Called with a number of tokens that were searched since.
    """
    sets = read_task_files(files).grams
    counts: dict[SplitName, list[NDArray[np.int64]]] = {
        split: [np.zeros(len(grams.hashes), np.int64) for grams in sets] for split in SPLITS
    }
    jobs = [_SearchJob(part, files) for part in divide(folder, _PART_TOKENS)]
    for found in pool.map(_search, jobs):
        for count, (indexes, documents) in zip(counts[found.split], found.grams, strict=True):
            count[indexes] += documents
        advance(found.tokens)
    return counts


def _search(job: _SearchJob) -> _Found:
    sets = read_task_files(job.files).grams
    pairs: list[list[NDArray[np.intp]]] = [[] for _ in sets]  # grams and documents
    for documents, corpus in _batches(job.part):
        for grams, found in zip(sets, pairs, strict=True):
            indexes, owners = grams.find(corpus)
            found.append(np.unique(np.stack([indexes, documents[owners]]), axis=1))
    return _Found(job.part.split, job.part.end - job.part.begin, [_per_gram(one) for one in pairs])


def _per_gram(pairs: list[NDArray[np.intp]]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return each gram with its number of documents."""
    if not pairs:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    return np.unique(np.unique(np.concatenate(pairs, axis=1), axis=1)[0], return_counts=True)


def _batches(part: TokenPart) -> Iterator[tuple[NDArray[np.intp], WordedTexts]]:
    """Yield texts of a part, about a megabyte at a time, and the document of each."""
    tokenizer = tokenizer_of(part.path)
    documents: list[int] = []
    texts: list[bytes] = []
    size = 0
    for piece in read_documents(part, tokenizer.end_of_text):
        documents.append(piece.document)
        texts.append(_whole_words(tokenizer.decode(piece.ids.tolist()), piece).encode())
        size += len(texts[-1])
        if size >= _BATCH_BYTES:
            yield np.array(documents), WordedTexts(texts)
            documents, texts, size = [], [], 0
    if texts:
        yield np.array(documents), WordedTexts(texts)


def _whole_words(text: str, piece: DocumentPiece) -> str:
    """Return a text without the words that may be cut at the ends of a piece."""
    begin = end = 0
    if piece.continues:
        begin = next((i for i, mark in enumerate(text) if not mark.isalnum()), 0)
    if piece.goes_on:
        end = next((i for i, mark in enumerate(reversed(text)) if not mark.isalnum()), 0)
    return text[begin : len(text) - end]
