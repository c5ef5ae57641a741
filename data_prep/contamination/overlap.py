"""Judge the texts of tests by their grams that a corpus holds, and state the result."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, ValidationError

from data_prep.contamination.grams import GRAM_WORDS, LEAST_WORDS
from data_prep.contamination.search import TaskTexts, count_documents, read_task_files
from data_prep.contamination.texts import TaskFiles
from data_prep.pool import Pool
from data_prep.progress import Progress
from gpt_dist.data.tokens.folder import SPLITS, SplitName, TokenFolder
from gpt_dist.errors import DataError, first_problem
from gpt_dist.files.entries import Record, Sha256

FORMAT = "gpt_dist.contamination"

_PASSAGE_CHARACTERS = 300


class TextOverlap(Record):
    """Text of a test that the corpus holds, or a part of it."""

    where: str
    splits: tuple[SplitName, ...]
    """Where in the corpus it was found."""
    grams: NonNegativeInt
    """The number of its 13-grams."""
    found: NonNegativeInt
    """The number of those that were found."""
    exact: bool
    """Whether a part of 8 to 12 words was found whole."""
    passage: str
    """The first words of it that were found."""


class FileOverlap(Record):
    """Counts of the texts of one file."""

    file: str
    texts: NonNegativeInt
    not_judged: NonNegativeInt
    """Texts all of whose parts are shorter than 8 words."""
    by_grams: NonNegativeInt
    """Texts with a part of 13 words or more."""
    dirty: NonNegativeInt
    """Those of which a 13-gram was found."""
    by_whole: NonNegativeInt
    """Texts with a part of 8 to 12 words."""
    exact: NonNegativeInt
    """Those of which such a part was found whole."""
    train: NonNegativeInt
    """Dirty or exact texts that were found in the training split."""
    validation: NonNegativeInt
    """The same for the validation split."""
    common: NonNegativeInt
    """Other texts, of which only grams were found that are in too many documents to count."""
    grams: NonNegativeInt
    found: NonNegativeInt
    """Number of 13-grams in all texts, and of those that were found."""
    overlaps: tuple[TextOverlap, ...]
    """All dirty or exact texts, in order."""


class Contamination(Record):
    """Result of a search for the texts of tests in a token folder."""

    format: Literal["gpt_dist.contamination"]
    version: Literal[1]
    tokens: Sha256
    """Digest of the tokens and the tokenizer of the token folder."""
    max_documents: NonNegativeInt
    """The number of documents up to which a gram counts."""
    files: tuple[FileOverlap, ...]


def find_contamination(
    folder: TokenFolder, files: TaskFiles, max_documents: int, pool: Pool, progress: Progress
) -> Contamination:
    """Search the texts of a token folder for those of tests.

    Raises:
        DataError: A file of tests cannot be read or holds no text, or a shard is corrupt.
    """
    files.check()
    tests = read_task_files(files)
    for index, path in enumerate(files.paths):
        if index not in tests.files:
            raise DataError(f"{path}: no texts in it; give a file that has some")
    total = sum(folder.manifest.splits[split].tokens for split in SPLITS)
    with progress.stage("searching", "tokens", total) as advance:
        counts = count_documents(folder, files, pool, advance)
    judged = _judge(tests, counts, max_documents)
    results = [_Count(str(path)) for path in files.paths]
    for index, text in zip(tests.files, judged, strict=True):
        results[index].add(text)
    return Contamination(
        format=FORMAT,
        version=1,
        tokens=folder.digest,
        max_documents=max_documents,
        files=tuple(result.entry() for result in results),
    )


def read_contamination(path: Path, folder: TokenFolder) -> Contamination:
    """Read a result that `contamination --json` wrote for this token folder.

    Raises:
        DataError: The file cannot be read, or is of another folder.
    """
    remedy = "make it with `python -m data_prep contamination ... --json FILE`"
    try:
        result = Contamination.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except ValidationError as error:
        raise DataError(f"{path}: not a result: {first_problem(error)}; {remedy}") from error
    if result.tokens != folder.digest:
        raise DataError(f"{path}: of another token folder than {folder.path}; {remedy}")
    return result


@dataclass
class _Judged:
    """Text of a test, with what was found of it."""

    where: str
    parts: list[int] = field(default_factory=list)
    """The lengths of its parts in words."""
    grams: int = 0
    found: int = 0
    exact: bool = False
    is_common: bool = False
    splits: set[SplitName] = field(default_factory=set)
    passage: tuple[int, int] | None = None
    """The first word, in all texts, of the first gram that was found, and its width."""


@dataclass
class _Count:
    """Collector of the texts of one file."""

    file: str
    texts: list[tuple[_Judged, str]] = field(default_factory=list)

    def add(self, text: tuple[_Judged, str]) -> None:
        self.texts.append(text)

    def entry(self) -> FileOverlap:
        texts = [text for text, _ in self.texts]
        long, short = (
            [text for text in texts if any(map(is_judged, text.parts))]
            for is_judged in (_by_grams, _by_whole)
        )
        hit = [(text, passage) for text, passage in self.texts if text.found or text.exact]
        return FileOverlap(
            file=self.file,
            texts=len(texts),
            not_judged=sum(max(text.parts, default=0) < LEAST_WORDS for text in texts),
            by_grams=len(long),
            dirty=sum(text.found > 0 for text in long),
            by_whole=len(short),
            exact=sum(bool(text.exact) for text in short),
            train=sum("train" in text.splits for text, _ in hit),
            validation=sum("validation" in text.splits for text, _ in hit),
            common=sum(text.is_common and not (text.found or text.exact) for text in texts),
            grams=sum(text.grams for text in texts),
            found=sum(text.found for text in texts),
            overlaps=tuple(
                TextOverlap(
                    where=text.where,
                    splits=tuple(split for split in SPLITS if split in text.splits),
                    grams=text.grams,
                    found=text.found,
                    exact=text.exact,
                    passage=passage,
                )
                for text, passage in hit
            ),
        )


def _by_grams(words: int) -> bool:
    return words >= GRAM_WORDS


def _by_whole(words: int) -> bool:
    return LEAST_WORDS <= words < GRAM_WORDS


def _judge(
    tests: TaskTexts, counts: dict[SplitName, list[NDArray[np.int64]]], max_documents: int
) -> Iterator[tuple[_Judged, str]]:
    """Yield every text, with what was found of it and the first words that were found."""
    judged = [_Judged(where) for where in tests.where]
    for test, length in zip(tests.test.tolist(), tests.lengths.tolist(), strict=True):
        judged[test].parts.append(length)
        judged[test].grams += max(0, length - GRAM_WORDS + 1)
    for number, grams in enumerate(tests.grams):
        firsts, hashes = tests.texts.grams(grams.width)
        places = np.minimum(np.searchsorted(grams.hashes, hashes), len(grams.hashes) - 1)
        by_split = {split: counts[split][number][places] for split in SPLITS}
        total = by_split["train"] + by_split["validation"]
        lengths = tests.lengths[tests.texts.owner[firsts]]
        known = (grams.hashes[places] == hashes) & (total > 0)
        known &= lengths == grams.width if grams.width < GRAM_WORDS else lengths >= grams.width
        for index in np.flatnonzero(known).tolist():
            text = judged[tests.test[tests.texts.owner[firsts[index]]]]
            if total[index] > max_documents:
                text.is_common = True
                continue
            text.found += grams.width == GRAM_WORDS
            text.exact |= grams.width < GRAM_WORDS
            text.splits |= {split for split in SPLITS if by_split[split][index]}
            place = (int(firsts[index]), grams.width)
            text.passage = min(text.passage or place, place)
    for text in judged:
        words = tests.texts.gram(*text.passage) if text.passage else b""
        passage = " ".join(words.decode("utf-8", "replace").split())
        yield text, passage[:_PASSAGE_CHARACTERS]
