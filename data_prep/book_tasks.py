"""Make two small tasks of books: name the author of a passage, and choose the next sentence.

The rules:
- Books are text files named `Author___Title.txt`, archived or not. Equal books count once.
- A book is cut into blocks of about 2,000 words. A fifth of the blocks are for `dev`, so that its
  examples come from other parts of the books than the training examples.
- Sentences come from paragraphs of prose, without headings and without paragraphs that name the
  author or the title.
- `author`: passages of whole sentences, 40 to 70 words, the same number for each author. The task
  has as many authors as can give an equal share.
- `next`: two sentences, and a choice between the third and one from elsewhere in the same book and
  split. Each sentence has 4 to 25 words. The right one comes first as often as second.
- Examples are drawn by the hashes of their texts, so that the order of the input does not matter.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data_prep.cleaning.clean import clean
from data_prep.defaults import DEV_PART
from data_prep.progress import Progress
from data_prep.reading.documents import Document, ReadOptions
from data_prep.reading.units import Unit, read_unit
from data_prep.sources import Source, find_sources
from data_prep.steps import RECIPES
from gpt_dist.errors import DataError
from gpt_dist.files.folders import new_folder

SPLITS = ("train", "dev")

_BLOCK_WORDS = 2000
_PASSAGE_WORDS = (40, 70)  # nearly all fit into 128 tokens of a vocabulary of 4,096
_SENTENCE_WORDS = (4, 25)
_ELSEWHERE = 20  # sentences away, or more
_LEAST_PASSAGES = 20  # of an author

_STEPS = RECIPES["books"].model_copy(update={"lowercase": False})
_NAME = re.compile(
    r"(?:^|[/:])(?P<author>[^/:]+?)___(?P<title>[^/]+?)\.txt(?:\.(?:gz|xz|bz2|zst))?(?:#\d+)?$",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+")
# A heading does not end in punctuation.
_PROSE_END = re.compile(r"""[.!?:,;-]["')\]]*$""")
_SENTENCE_END = re.compile(
    r"""(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\b[A-Z])[.!?]["')\]]*(?= ["'(\[]*[A-Z])"""
)

Run = list[str]
"""Sentences that follow one another."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class BookTasks:
    """Counts of the books that were read and of the examples that were made."""

    books: int
    unnamed: int
    """The number of documents that were left out because of their names."""
    unread: int
    """The number of files that are of no kind that is read, hidden, or dead links."""
    authors: tuple[str, ...]
    """The classes of `author`, sorted."""
    authors_left_out: tuple[str, ...]
    """The authors without enough text for an equal share, sorted."""
    examples: dict[str, dict[str, int]]
    """The number of examples by task and split."""


@dataclass(frozen=True)
class _Book:
    author: str
    runs: dict[str, list[Run]]  # by split


@dataclass(frozen=True)
class _Question:
    """Two sentences, the sentence that follows them, and one that does not."""

    context: str
    right: str
    wrong: str

    @property
    def text(self) -> str:
        return f"{self.context} {self.right}"


def make_tasks(
    inputs: list[Path], output: Path, examples: int, lowercase: bool, progress: Progress
) -> BookTasks:
    """Make a folder of two tasks.

    Its files are `author/train.tsv`, `author/dev.tsv`, `next/train.jsonl` and `next/dev.jsonl`.

    Args:
        inputs: The files and folders to read.
        output: The folder to make. It must be absent or empty.
        examples: The largest number of examples of each task.
        lowercase: Whether to lower-case the examples.
        progress: The display of the stages.

    Raises:
        DataError: An input or the disk is at fault, or the books have too little text. Nothing is
            left behind.
    """
    with new_folder(output, DataError, "a few megabytes") as folder:
        sources, skipped = find_sources(inputs)
        books, unnamed = _read_books(sources, lowercase, progress)
        sizes = {"train": examples - examples // DEV_PART, "dev": examples // DEV_PART}
        passages, authors = _draw_passages(books, sizes)
        questions = _draw_questions(books, sizes)
        for task in ("author", "next"):
            (folder / task).mkdir()
        for split in SPLITS:
            rows = ("\t".join(row) for row in [("text", "author"), *passages[split]])
            _write(folder / "author" / f"{split}.tsv", rows)
            lines = (_line(*numbered) for numbered in enumerate(questions[split]))
            _write(folder / "next" / f"{split}.jsonl", lines)
    return BookTasks(
        books=len(books),
        unnamed=unnamed,
        unread=len(skipped),
        authors=authors,
        authors_left_out=tuple(sorted({book.author for book in books} - {*authors})),
        examples={
            "author": {split: len(drawn) for split, drawn in passages.items()},
            "next": {split: len(drawn) for split, drawn in questions.items()},
        },
    )


def _read_books(
    sources: list[Source], lowercase: bool, progress: Progress
) -> tuple[list[_Book], int]:
    """Read books in an order that depends on their texts alone, and count files without a name."""
    books: dict[bytes, _Book] = {}
    unnamed = 0
    with progress.stage("reading books", "books", None) as advance:
        for source in sorted(sources, key=lambda source: source.name):
            for document in read_unit(Unit(source, 0, None), ReadOptions()):
                name = _NAME.search(document.name)
                if name is None or not isinstance(document, Document):
                    unnamed += 1
                    continue
                text = clean(document, _STEPS).text
                if (digest := _hash(text)) not in books:
                    author, title = _plain(name["author"]), _plain(name["title"])
                    books[digest] = _book(author, title, text, lowercase)
                advance(1)
    if not books:
        raise DataError(
            f"no book found among {unnamed} documents; name the files Author___Title.txt"
        )
    return [books[digest] for digest in sorted(books)], unnamed


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _book(author: str, title: str, text: str, lowercase: bool) -> _Book:
    """Cut a book into blocks, and the blocks into runs of sentences."""
    blocks: list[list[str]] = [[]]
    size = 0
    for paragraph in _paragraphs(text, (author, title)):
        if size >= _BLOCK_WORDS:
            blocks.append([])
            size = 0
        blocks[-1].append(paragraph)
        size += len(paragraph.split())
    count = max(1, round(len(blocks) / DEV_PART)) if len(blocks) > 1 else 0
    dev = {id(block) for block in _lowest(blocks, count, "\n".join)}
    runs: dict[str, list[Run]] = {split: [] for split in SPLITS}
    for block in blocks:
        # Lower-case last, because a capital shows that a new sentence begins.
        found = ([s.lower() for s in run] if lowercase else run for run in _runs(block))
        runs["dev" if id(block) in dev else "train"] += found
    return _Book(author, runs)


def _paragraphs(text: str, names: Iterable[str]) -> Iterator[str]:
    """Yield the paragraphs of prose without the names, and an empty one for any other."""
    given_away = [_words_of(name) for name in names]
    for paragraph in text.split("\n"):
        words = _words_of(paragraph)
        if (
            _PROSE_END.search(paragraph)
            and not paragraph.isupper()
            and not any(name in words for name in given_away)
        ):
            yield paragraph
        else:
            yield ""


def _words_of(text: str) -> str:
    """Return the words of a text in lower case, with a space around each."""
    return f" {' '.join(_WORD.findall(text.lower()))} "


def _runs(paragraphs: list[str]) -> Iterator[Run]:
    run: Run = []
    for paragraph in paragraphs:
        if paragraph:
            run += _sentences(paragraph)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _sentences(paragraph: str) -> Iterator[str]:
    begin = 0
    for end in _SENTENCE_END.finditer(paragraph):
        yield paragraph[begin : end.end()].strip()
        begin = end.end()
    yield paragraph[begin:].strip()


def _draw_passages(
    books: list[_Book], sizes: dict[str, int]
) -> tuple[dict[str, list[tuple[str, str]]], tuple[str, ...]]:
    """Draw passages with their authors for each split, and return them and all authors."""
    found: dict[str, dict[str, set[str]]] = {}
    for book in books:
        passages = found.setdefault(book.author, {split: set() for split in SPLITS})
        for split, runs in book.runs.items():
            passages[split].update(passage for run in runs for passage in _passages(run))
    for passages in found.values():
        passages["dev"] -= passages["train"]
    authors = _choose_authors(found, sizes)
    drawn: dict[str, list[tuple[str, str]]] = {}
    for split, size in sizes.items():
        share = size // len(authors)
        rows = [
            (passage, author)
            for author in authors
            for passage in _lowest(found[author][split], share, str)
        ]
        drawn[split] = _lowest(rows, len(rows), "\t".join)
    return drawn, authors


def _passages(run: Run) -> Iterator[str]:
    shortest, longest = _PASSAGE_WORDS
    passage: list[str] = []
    size = 0
    for sentence in run:
        words = len(sentence.split())
        if size + words > longest:
            passage, size = [], 0
        if words <= longest:
            passage.append(sentence)
            size += words
        if size >= shortest:
            yield " ".join(passage)
            passage, size = [], 0


def _choose_authors(
    found: dict[str, dict[str, set[str]]], sizes: dict[str, int]
) -> tuple[str, ...]:
    """Choose as many authors as can give an equal share of every split, by the length of text."""
    by_size = sorted(found, key=lambda author: (-len(found[author]["train"]), author))
    for count in range(min(len(by_size), sum(sizes.values()) // _LEAST_PASSAGES), 1, -1):
        able = [
            author
            for author in by_size
            if all(len(found[author][split]) >= size // count for split, size in sizes.items())
        ]
        if len(able) >= count:
            return tuple(sorted(able[:count]))
    raise DataError(
        f"no two of {len(found)} author(s) have enough passages for {sum(sizes.values())} examples "
        f"with at least {_LEAST_PASSAGES} each; give more books, or another number of --examples"
    )


def _draw_questions(books: list[_Book], sizes: dict[str, int]) -> dict[str, list[_Question]]:
    drawn: dict[str, list[_Question]] = {}
    seen: set[str] = set()
    for split, size in sizes.items():
        found = {
            question.text: question for book in books for question in _questions(book.runs[split])
        }
        new = [question for text, question in found.items() if text not in seen]
        drawn[split] = _lowest(new, size, lambda question: question.text)
        if len(drawn[split]) < size:
            raise DataError(
                f"the books give only {len(new)} of {size} examples of the task next for {split}; "
                "give more books, or fewer --examples"
            )
        seen |= found.keys()
    return drawn


def _questions(runs: list[Run]) -> Iterator[_Question]:
    """Yield a question for every three sentences in a row that are fit for it."""
    sentences = [sentence for run in runs for sentence in run]
    fitting = [number for number, sentence in enumerate(sentences) if _fits(sentence)]
    begin = 0
    for run in runs:
        for first in range(begin, begin + len(run) - 2, 3):
            window = sentences[first : first + 3]
            if all(map(_fits, window)):
                context = " ".join(window[:2])
                start = int.from_bytes(_hash(context)[:8], "big")
                places = (fitting[(start + step) % len(fitting)] for step in range(len(fitting)))
                for place in places:
                    if abs(place - first) >= _ELSEWHERE and sentences[place] not in window:
                        yield _Question(context, window[2], sentences[place])
                        break
        begin += len(run)


def _fits(sentence: str) -> bool:
    fewest, most = _SENTENCE_WORDS
    return fewest <= len(sentence.split()) <= most


def _line(number: int, question: _Question) -> str:
    label = number % 2
    choices = [question.right, question.wrong]
    row = {"context": question.context, "choices": choices[:: -1 if label else 1], "label": label}
    return json.dumps(row, ensure_ascii=False)


def _lowest(items: Iterable[Item], count: int, text: Callable[[Item], str]) -> list[Item]:
    """Return the `count` items whose texts have the lowest hashes, in that order."""
    return sorted(items, key=lambda item: _hash(text(item)))[:count]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
