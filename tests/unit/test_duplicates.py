"""Test the search for near-duplicates and repeated passages on planted and on real ones."""

import random
import re
import tarfile
import textwrap
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from data_prep.defaults import THRESHOLD
from data_prep.duplicates import Findings, TextRange, find_duplicates, write_sketch

ROOT = Path(__file__).parents[2]
SAMPLE_BOOKS = sorted((ROOT / "data_prep/sample_books").iterdir())
DATA = ROOT.parent / "shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")

LICENCE = (
    "this book is for the use of anyone anywhere at no cost and with almost no restrictions "
    "whatsoever you may copy it give it away or use it again under the terms of the licence "
    "which is part of this book or can be read on the pages of the society that made it and "
    "keeps it for all readers and if you live in another country please check the laws of your "
    "country before you copy or give away this book or anything else of the society since the "
    "laws of countries differ and the society cannot tell what is lawful in each of them nor "
    "answer for any harm that comes of it whatever its cause may be now or in later years"
)
VERSE = (
    "For God so loved the world, that he gave his only begotten Son, that whosoever believeth in "
    "him should not perish, but have everlasting life."
)


def find(
    texts: Sequence[str],
    folder: Path,
    threshold: float | None = THRESHOLD,
    batch: int = 3,
    pool_map: Any = map,
    **options: Any,
) -> Findings:
    """Write texts and their sketches in batches, as the cleaning workers do, and search them."""
    folder.mkdir(exist_ok=True)
    documents: list[TextRange] = []
    sketches: list[Path] = []
    for begin in range(0, len(texts), batch):
        encoded = [text.encode() for text in texts[begin : begin + batch]]
        file = folder / f"{begin}.txt"
        file.write_bytes(b"".join(encoded))
        for number, data in enumerate(encoded):
            documents.append(TextRange(file, sum(map(len, encoded[:number])), len(data)))
        sketches.append(folder / f"{begin}.sketch")
        write_sketch(encoded, sketches[-1])
    return find_duplicates(
        documents, sketches, threshold, pool_map, folder / "work", lambda _: None, **options
    )


def read_book(data: bytes) -> str:
    """Return a book with one paragraph a line."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    blocks = re.split(r"\n{2,}", text.replace("\r", "").strip("\n"))
    return "\n".join(block.replace("\n", " ") for block in blocks)


def story(seed: int, words: int = 150) -> str:
    """Return a text of random words, which has paragraphs of 50 words."""
    generator = random.Random(seed)
    made = ["".join(generator.choices("aeioulnrst", k=6)) for _ in range(words)]
    return "\n".join(" ".join(made[begin : begin + 50]) for begin in range(0, words, 50))


def change_words(text: str, share: float = 0.05) -> str:
    generator = random.Random(text)
    words = text.split(" ")
    return " ".join("another" if generator.random() < share else word for word in words)


def add_accents(text: str) -> str:
    return re.sub(r"e(?=\w\b)", "é", text).replace("ae", "æ")


def curl_quotes(text: str) -> str:
    text = re.sub('"([^"]*)"', r"“\1”", text).replace("'", "’").replace("--", "—")
    return text.replace(";", ",").replace("...", "…")


def middle(text: str, share: float) -> str:
    paragraphs = text.split("\n")
    begin = len(paragraphs) // 3
    return "\n".join(paragraphs[begin : begin + max(1, round(share * len(paragraphs)))])


NEAR_DUPLICATES: dict[str, Callable[[str], str]] = {
    "changed words": change_words,
    "header": lambda text: f"THE CLASSICS LIBRARY\n{LICENCE}\nEdited for students\n{text}",
    "wrapping": lambda text: "\n".join(textwrap.wrap(text, 60)),
    "punctuation": curl_quotes,
    "accents": add_accents,
    "upper case": str.upper,
    "everything": lambda text: textwrap.fill(change_words(curl_quotes(text), 0.03), 70),
}
PARTS: dict[str, Callable[[str], str]] = {
    "half": lambda text: middle(text, 0.5),
    "chapter": lambda text: middle(text, 0.06),
    "changed half": lambda text: change_words(middle(text, 0.5)),
}


@pytest.fixture(scope="module")
def books() -> list[str]:
    return [read_book(path.read_bytes()) for path in SAMPLE_BOOKS]


def test_different_books_are_kept_whole(books: list[str], tmp_path: Path) -> None:
    assert find(books, tmp_path) == Findings({}, {})


@pytest.mark.parametrize("kind", NEAR_DUPLICATES)
def test_a_later_near_duplicate_is_dropped(kind: str, books: list[str], tmp_path: Path) -> None:
    findings = find([books[0], books[1], NEAR_DUPLICATES[kind](books[1])], tmp_path)
    assert list(findings.dropped) == [2]
    assert findings.dropped[2].kept == 1
    assert findings.dropped[2].similarity > 0.95
    assert findings.dropped[2].reason == "near-duplicate"
    assert not findings.cuts


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", PARTS)
def test_the_whole_book_is_kept_and_its_part_is_dropped(
    kind: str, first: bool, books: list[str], tmp_path: Path
) -> None:
    part = PARTS[kind](books[1])
    texts = [part, books[0], books[1]] if first else [books[1], books[0], part]
    findings = find(texts, tmp_path)
    assert list(findings.dropped) == [0 if first else 2]
    (dropped,) = findings.dropped.values()
    assert (dropped.kept, dropped.reason) == (2 if first else 0, "contained")
    assert not findings.cuts


@pytest.mark.parametrize("kind", NEAR_DUPLICATES)
def test_near_duplicates_of_short_stories_are_found(kind: str, tmp_path: Path) -> None:
    if kind == "header":
        pytest.skip("the header would be longer than the story")
    texts = [story(seed) for seed in range(60)]
    findings = find([*texts, *map(NEAR_DUPLICATES[kind], texts)], tmp_path, batch=25)
    assert len(findings.dropped) >= 0.98 * len(texts)
    assert all(dropped.kept == number - 60 for number, dropped in findings.dropped.items())


@pytest.mark.parametrize(
    "alphabet", ["бвгдежзиклмно", "αβγδεζηθικλμν", "書店主人公園日本語文学", "कखगघचछजझटठ"]
)
def test_texts_in_any_script_are_compared(alphabet: str, tmp_path: Path) -> None:
    generator = random.Random(0)
    blank = "" if alphabet.startswith("書") else " "
    texts = [
        blank.join("".join(generator.choices(alphabet, k=5)) for _ in range(200)) for _ in range(4)
    ]
    findings = find([*texts, f"«{texts[2].upper()}»"], tmp_path)
    assert {number: dropped.kept for number, dropped in findings.dropped.items()} == {4: 2}


def test_a_chapter_inside_another_book_is_cut_at_its_bounds(
    books: list[str], tmp_path: Path
) -> None:
    chapter = middle(books[0], 0.05)
    head, tail = middle(books[1], 0.3), middle(books[2], 0.3)
    findings = find([books[0], f"{head}\n{chapter}\n{tail}"], tmp_path)
    assert not findings.dropped
    begin = len(head.encode()) + 1
    assert findings.cuts == {1: [(begin, begin + len(chapter.encode()) + 1, 0)]}


def test_a_changed_chapter_is_cut(books: list[str], tmp_path: Path) -> None:
    chapter = textwrap.fill(change_words(curl_quotes(middle(books[0], 0.05))), 70)
    findings = find([books[0], f"{middle(books[1], 0.3)}\n{chapter}\n{story(0)}"], tmp_path)
    assert sum(cut.end - cut.begin for cut in findings.cuts[1]) > 0.9 * len(chapter.encode())


def test_a_licence_is_cut_from_all_documents_but_the_first(tmp_path: Path) -> None:
    texts = [f"{story(seed)}\n{LICENCE}\n{story(1000 + seed)}" for seed in range(300)]
    findings = find(texts, tmp_path, batch=50)
    assert not findings.dropped
    begin = len(story(0)) + 1
    assert findings.cuts == {
        number: [(begin, begin + len(LICENCE) + 1, 0)] for number in range(1, 300)
    }


def test_a_verse_and_a_sentence_may_be_repeated(tmp_path: Path) -> None:
    quoted = f"{VERSE}\nIt was the best of times, it was the worst of times."
    texts = [f"{story(seed)}\n{quoted}\n{story(100 + seed)}" for seed in range(20)]
    assert find(texts, tmp_path) == Findings({}, {})


def test_the_least_length_of_a_passage_is_an_option(tmp_path: Path) -> None:
    passage = story(0, 60).replace("\n", " ")
    texts = [f"{story(1)}\n{passage}\n{story(2)}", f"{story(3)}\n{passage}\n{story(4)}"]
    begin = len(story(3)) + 1
    cut = {1: [(begin, begin + len(passage) + 1, 0)]}
    assert find(texts, tmp_path, passage_words=60).cuts == cut
    assert find(texts, tmp_path, passage_words=61).cuts == {}
    assert find(texts, tmp_path, passage_words=None).cuts == {}


@pytest.mark.parametrize("threshold", [None, 0])
def test_the_search_can_be_switched_off(threshold: float | None, tmp_path: Path) -> None:
    assert find([story(0), story(0)], tmp_path, threshold) == Findings({}, {})


def test_the_threshold_is_an_option(tmp_path: Path) -> None:
    texts = [story(0, 1000), story(0, 700) + "\n" + story(1, 300)]
    cuts = {1: [(0, len(story(0, 700)) + 1, 0)]}
    assert list(find(texts, tmp_path, 0.6).dropped) == [1]
    assert find(texts, tmp_path, 0.8) == Findings({}, cuts)


def test_a_document_with_a_long_text_of_its_own_is_cut_but_not_dropped(tmp_path: Path) -> None:
    texts = [story(0, 10_000), story(0, 9_000) + "\n" + story(1, 1_200)]
    assert find(texts, tmp_path) == Findings({}, {1: [(0, len(story(0, 9_000)) + 1, 0)]})


def test_a_passage_whose_first_document_is_dropped_is_kept_in_the_next(tmp_path: Path) -> None:
    passage = story(1).replace("\n", " ")
    copy = f"{story(0, 2000)}\n{passage}"
    texts = [story(0, 2000), change_words(copy), f"{story(2, 1000)}\n{passage}"]
    # The second document is longer than the first by the passage, and is kept instead of it.
    assert list(find(texts, tmp_path).dropped) == [0]
    texts = [copy, change_words(copy), f"{story(2, 1000)}\n{passage}", story(2, 1000)]
    findings = find(texts, tmp_path, left_out=[0])
    assert {number: each.kept for number, each in findings.dropped.items()} == {3: 2}
    assert list(findings.cuts) == [2]
    findings = find(texts, tmp_path, left_out=[0, 1])
    assert not findings.cuts


def test_of_many_near_copies_one_is_kept(tmp_path: Path) -> None:
    generator = random.Random(5)
    words = story(0, 600).split(" ")
    texts = [
        " ".join(word if generator.random() > 0.02 else "other" for word in words)
        for _ in range(100)
    ]
    findings = find(texts, tmp_path, batch=7)
    assert len(findings.dropped) == 99
    assert {dropped.kept for dropped in findings.dropped.values()} == {0}


def test_the_document_named_as_kept_is_kept_in_the_end(tmp_path: Path) -> None:
    texts = [story(0, 500), change_words(story(0, 500), 0.02), story(0, 2000)]
    findings = find(texts, tmp_path)
    assert {number: each.kept for number, each in findings.dropped.items()} == {0: 2, 1: 2}


def test_workers_and_batches_make_no_difference(books: list[str], tmp_path: Path) -> None:
    texts = [*books, *(make(books[0]) for make in PARTS.values()), change_words(books[1])]
    texts += [f"{story(seed)}\n{LICENCE}" for seed in range(20)]
    expected = find(texts, tmp_path / "1")
    assert expected.dropped
    assert expected.cuts
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        assert find(texts, tmp_path / "2", batch=4, pool_map=pool.map) == expected


@pytest.mark.parametrize("text", ["", "\n", "one two three", "- - -", "word " * 500, "é" * 300_000])
def test_odd_texts_are_kept(text: str, tmp_path: Path) -> None:
    assert find([story(0), text, story(1)], tmp_path) == Findings({}, {})


# Each pair was judged by reading: the same text in another edition, or in a collection.
TRUE_DUPLICATES = {
    "James Matthew Barrie___Peter and Wendy",
    "John Ruskin___The Elements of Drawing",
    "Joseph Conrad___Some Reminiscences",
    "Robert Louis Stevenson___Catriona",
    "Robert Louis Stevenson___Familiar Studies of Men & Books",
    "Robert Louis Stevenson___Memories and Portraits",
    "Robert Louis Stevenson___The Dynamiter",
    "Rudyard Kipling___The Light That Failed",
    "Rudyard Kipling___The Phantom Rickshaw and Other Ghost Stories",
    "Rudyard Kipling___Under the Deodars",
    "William Dean Howells___Literature and Life",
}


def real_books() -> Iterable[tuple[str, str]]:
    for path in sorted((DATA / "books").glob("*.txt")):
        yield path.stem, read_book(path.read_bytes())
    with tarfile.open(DATA / "books-large.tar.xz", "r|xz") as archive:
        for member in archive:
            if (content := archive.extractfile(member)) is not None:
                yield Path(member.name).stem, read_book(content.read())


@needs_data
def test_planted_and_true_duplicates_of_real_books_are_found(tmp_path: Path) -> None:
    names, texts = map(list, zip(*real_books(), strict=True))
    originals = len(texts)
    planted: dict[int, int] = {}
    kinds = list((NEAR_DUPLICATES | PARTS).values())
    for number in range(5, len(names), 36):
        if names[number] not in TRUE_DUPLICATES:
            planted[len(texts)] = number
            texts.append(kinds[number // 36 % len(kinds)](texts[number]))
    findings = find(texts, tmp_path, batch=20)
    dropped = {names[number] for number in findings.dropped if number < originals}
    found = {number for number in planted if number in findings.dropped}
    assert len(found) >= 0.98 * len(planted)
    assert all(findings.dropped[number].kept == planted[number] for number in found)
    assert dropped == TRUE_DUPLICATES
