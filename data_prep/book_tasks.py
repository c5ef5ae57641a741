"""Make two small tasks of books: who wrote a passage, and which sentence comes next.

Rules:
- Read are text files named `Author___Title.txt`, archived or not; a book found again is left out.
- A book is cut into blocks of about 2,000 words, and a fifth of them are for `dev`: what is asked
  there lies in other parts of the books than what is trained on.
- Sentences come from paragraphs of prose. Headings are left out, and so are paragraphs that name
  the author or the title.
- `author`: passages of whole sentences, 40 to 70 words, as many of each author. Authors are as many
  as can give an equal share each.
- `next`: two sentences, and a choice of the third and one from elsewhere in the same book and the
  same split. Each is of 4 to 25 words; the right one comes first as often as second.
- Whatever is drawn is drawn by the hash of its text: nothing depends on the order of the input.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data_prep.clean import clean
from data_prep.documents import SourceReader
from data_prep.report import Progress
from data_prep.sources import Source, find_sources
from gpt_dist.errors import DataError
from gpt_dist.files.folders import new_folder

SPLITS = ("train", "dev")
DEV_PART = 5
"""One in so many examples, and one in so many blocks, is for `dev`."""

_BLOCK_WORDS = 2000
_PASSAGE_WORDS = (40, 70)  # nearly all fit into 128 tokens of a vocabulary of 4,096
_SENTENCE_WORDS = (4, 25)
_ELSEWHERE = 20  # sentences away, or more
_LEAST_PASSAGES = 20  # of an author

_NAME = re.compile(
    r"(?:^|[/:])(?P<author>[^/:]+?)___(?P<title>[^/]+?)\.txt(?:\.[gx]z)?(?:#\d+)?$", re.IGNORECASE
)
_WORD = re.compile(r"[^\W_]+")
# A heading ends otherwise.
_PROSE_END = re.compile(r"""[.!?:,;-]["')\]]*$""")
_SENTENCE_END = re.compile(
    r"""(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\b[A-Z])[.!?]["')\]]*(?= ["'(\[]*[A-Z])"""
)

Run = list[str]
"""Sentences that follow one another."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class BookTasks:
    """What was made of what."""

    books: int
    unnamed: int
    """Files that were left out for their names."""
    authors: tuple[str, ...]
    """The classes of `author`, sorted."""
    authors_left_out: tuple[str, ...]
    """Those without enough text for an equal share."""
    examples: dict[str, dict[str, int]]
    """By task and split."""


@dataclass(frozen=True)
class _Book:
    author: str
    runs: dict[str, list[Run]]  # by split


@dataclass(frozen=True)
class _Question:
    """Two sentences, the one that follows, and another one."""

    context: str
    right: str
    wrong: str

    @property
    def text(self) -> str:
        return f"{self.context} {self.right}"


def make_tasks(
    inputs: list[Path], output: Path, examples: int, lowercase: bool, progress: Progress
) -> BookTasks:
    """Make the folder `output` of two tasks, each with up to `examples` examples.

    That is `author/train.tsv`, `author/dev.tsv`, `next/train.jsonl` and `next/dev.jsonl`. Raises
    DataError for any fault of input or disk, or where the books have too little text; nothing is
    left behind then.
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
        unnamed=unnamed + len(skipped),
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
    """The books in an order of their content alone, and the number of documents without a name."""
    books: dict[bytes, _Book] = {}
    reader = SourceReader("text")
    unnamed = 0
    with progress.stage("reading books", "books", None) as advance:
        for source in sorted(sources, key=lambda source: source.name):
            if ".jsonl" in source.name.lower():
                unnamed += 1
                continue
            for document in reader.read(source):
                name = _NAME.search(document.name)
                if name is None:
                    unnamed += 1
                    continue
                text = clean(document.data, document.form, lowercase=False).text
                if (digest := _hash(text)) not in books:
                    author, title = _plain(name["author"]), _plain(name["title"])
                    books[digest] = _book(author, title, text, lowercase)
                advance(1)
    if not books:
        raise DataError(
            f"no book found among {unnamed} documents: name the files Author___Title.txt"
        )
    return [books[digest] for digest in sorted(books)], unnamed + len(reader.skipped)


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _book(author: str, title: str, text: str, lowercase: bool) -> _Book:
    """A book cut into blocks, and those into runs of sentences."""
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
        # Lower-cased last: where a sentence ends shows in the capital that follows.
        found = ([s.lower() for s in run] if lowercase else run for run in _runs(block))
        runs["dev" if id(block) in dev else "train"] += found
    return _Book(author, runs)


def _paragraphs(text: str, names: Iterable[str]) -> Iterator[str]:
    """The paragraphs of prose that hold none of the names; an empty one where others were."""
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
    """The words with one space around each."""
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
    """By split, passages with their authors; and the authors."""
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
    """As many authors as can give an equal share of every split; those with most text first."""
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
        f"of {len(found)} author(s), no two have passages enough for {sum(sizes.values())} "
        f"examples, {_LEAST_PASSAGES} each at least; give more books, or other --examples"
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
                f"the books have {len(new)} of {size} examples of the next sentence for {split}; "
                "give more books, or fewer --examples"
            )
        seen |= found.keys()
    return drawn


def _questions(runs: list[Run]) -> Iterator[_Question]:
    """Of every three sentences that fit, one question."""
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
    """The `count` items whose texts have the lowest hashes, in that order."""
    return sorted(items, key=lambda item: _hash(text(item)))[:count]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
