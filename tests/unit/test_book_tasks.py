"""Test that tasks made of books are balanced, held out by place, and reproducible."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from data_prep.cli import main
from gpt_dist.config import TaskConfig
from gpt_dist.config.file import load_config
from gpt_dist.data.tasks.checks import check_task
from gpt_dist.data.tasks.reading import Example, read_split
from tests.folders import contents
from tests.texts import clean_text

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "data_prep/sample_books"
SPLITS = ("train", "dev")


def make(*arguments: object) -> int:
    return main(["tasks", *map(str, arguments)])


def configured(name: str) -> TaskConfig:
    task = load_config(ROOT / f"configs/finetune/book-{name}.yaml", []).task
    assert task is not None
    return task


def read(folder: Path, name: str) -> dict[str, list[Example]]:
    return {split: read_split(folder / name, configured(name), split) for split in SPLITS}


def write_book(folder: Path, author: str, title: str, sentences: int) -> None:
    """Write chapters of eight sentences of about ten words; every fourth names the title."""
    folder.mkdir(exist_ok=True)
    chapters = []
    for chapter in range(sentences // 8):
        place = title if chapter % 4 == 0 else "the hills"
        said = [f"{author[0]} went {chapter} miles to {place}, on day {day}." for day in range(8)]
        chapters.append(f"CHAPTER {chapter}.\n\n{' '.join(said)}")
    file = folder / f"{author.replace(' ', '_')}___{title.replace(' ', '_')}.txt"
    file.write_text("\n\n".join(chapters))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "tasks"
    assert make(SAMPLES, "--output", folder) == 0
    return folder


@pytest.fixture(scope="module")
def books() -> dict[str, str]:
    """Return the clean text of the sample books on one line, by author and title."""
    return {file.stem: " ".join(clean_text(file).split()) for file in SAMPLES.glob("*.txt")}


def test_the_shipped_configurations_read_them(made):
    for name in ("author", "next"):
        check_task(made / name, configured(name))
        assert {split: len(rows) for split, rows in read(made, name).items()} == {
            "train": 1600,
            "dev": 400,
        }


def test_authors_are_balanced_and_right(made, books):
    labels = configured("author").labels
    assert labels == sorted({name.split("___")[0].replace("_", " ") for name in books})
    for split, examples in read(made, "author").items():
        assert set(Counter(example.label for example in examples).values()) == {
            len(examples) // len(labels)
        }, split
        for example in examples:
            (name,) = {name for name, text in books.items() if example.texts[0] in text}
            assert name.split("___")[0].replace("_", " ") == labels[example.label]


def test_passages_are_whole_sentences_of_some_length(made):
    for examples in read(made, "author").values():
        for (text,) in (example.texts for example in examples):
            assert 40 <= len(text.split()) <= 70
            assert re.search(r"[.!?:,;-][\"')\]]*$", text)
            assert text == text.lower()


def test_neither_author_nor_title_is_given_away(made, books):
    for name, task in itertools.product(books, ("author", "next")):
        given_away = [" ".join(part.split("_")).lower() for part in name.split("___")]
        for example in itertools.chain(*read(made, task).values()):
            words = " ".join(re.findall(r"[^\W_]+", " ".join(example.texts)))
            assert not any(part in words for part in given_away)


@pytest.mark.parametrize("name", ["author", "next"])
def test_what_is_asked_for_lies_in_other_parts_of_the_books(made, books, name):
    """Check that examples of one split come in long stretches of a book, not by chance."""
    places = [
        (book, text.index(example.texts[0]), split)
        for split, examples in read(made, name).items()
        for example in examples
        for book, text in books.items()
        if example.texts[0] in text
    ]
    splits = [split for _, _, split in sorted(places)]
    changes = sum(here != there for here, there in itertools.pairwise(splits))
    by_chance = 2 * splits.count("dev") * splits.count("train") / len(splits)
    assert changes < by_chance / 2
    texts = {split: {e.texts for e in examples} for split, examples in read(made, name).items()}
    assert not texts["train"] & texts["dev"]


def test_the_right_sentence_is_the_next_one_and_the_other_is_elsewhere_in_the_book(made, books):
    for examples in read(made, "next").values():
        assert Counter(example.label for example in examples) == {
            0: len(examples) / 2,
            1: len(examples) / 2,
        }
        for example in examples:
            right, wrong = example.choices[example.label], example.choices[1 - example.label]
            text = next(t for t in books.values() if f"{example.texts[0]} {right}" in t)
            assert wrong in text
            assert f"{example.texts[0]} {wrong}" not in text


def test_the_wrong_sentence_is_of_the_same_split(made):
    wrong = {
        split: {example.choices[1 - example.label] for example in examples}
        for split, examples in read(made, "next").items()
    }
    right = {
        split: {example.choices[example.label] for example in examples}
        for split, examples in read(made, "next").items()
    }
    assert not wrong["dev"] & right["train"]
    assert not wrong["train"] & right["dev"]


def test_the_same_books_give_the_same_bytes_however_they_are_given(made, tmp_path):
    assert make(*sorted(SAMPLES.glob("*.txt"), reverse=True), "--output", tmp_path / "a") == 0
    with zipfile.ZipFile(tmp_path / "books.zip", "w") as archive:
        for file in SAMPLES.glob("*.txt"):
            archive.write(file, f"deep/{file.name}")
    assert make(tmp_path / "books.zip", "--output", tmp_path / "b") == 0
    assert contents(made) == contents(tmp_path / "a") == contents(tmp_path / "b")


def test_fewer_examples_in_upper_case_and_a_book_given_twice_counts_once(tmp_path, capsys):
    shutil.copytree(SAMPLES, tmp_path / "books")
    twice = tmp_path / "books" / "Z_Other___Another_Name.txt"
    shutil.copy(SAMPLES / "P_G_Wodehouse___Psmith_Journalist.txt", twice)
    output = tmp_path / "tasks"
    assert make(tmp_path / "books", "--output", output, "--examples", 300, "--no-lowercase") == 0
    examples = read(output, "author")
    assert {split: len(rows) for split, rows in examples.items()} == {"train": 240, "dev": 60}
    assert any(example.texts[0] != example.texts[0].lower() for example in examples["dev"])
    assert re.search(r"books\W+9\W", capsys.readouterr().out)


def test_authors_without_enough_text_are_left_out_and_named(tmp_path, capsys):
    for author, sentences in (("Ann O'Able", 4000), ("Bob Brief", 300), ("Cy Copious, Jr", 4000)):
        write_book(tmp_path / "books", author, "Days Gone", sentences)
    (tmp_path / "books" / "notes.txt").write_text("Not a book.")
    made = tmp_path / "t t"
    assert make(tmp_path / "books", "--output", made, "--examples", 200) == 0
    rows = (made / "author/train.tsv").read_text().splitlines()[1:]
    assert Counter(row.split("\t")[1] for row in rows) == {"Ann O'Able": 80, "Cy Copious, Jr": 80}
    assert not any("days gone" in row for row in rows)
    told = capsys.readouterr().out
    assert re.search(r"left out: too little text\W+Bob Brief", told)
    assert re.search(r"left out: not Author___Title\.txt\W+1 file\b", told)
    _, _, config, *overrides = shlex.split(told.partition("Next:")[2])
    config = load_config(ROOT / config, overrides)
    assert config.data.path == str(made / "author")
    assert config.task.labels == ["Ann O'Able", "Cy Copious, Jr"]


@pytest.mark.parametrize(
    ("books", "message"),
    [
        ([], "no book found among 1 documents; name the files Author___Title.txt"),
        ([("Ann Able", 4000)], "no two of 1 author(s) have enough passages"),
        (
            [("Ann Able", 4000), ("Cy Copious", 4000)],
            "no two of 2 author(s) have enough passages for 2000",
        ),
    ],
)
def test_too_little_is_refused_and_nothing_is_left(tmp_path, capsys, books, message):
    for author, sentences in books:
        write_book(tmp_path / "books", author, "Days Gone", sentences)
    (tmp_path / "books").mkdir(exist_ok=True)
    (tmp_path / "books" / "notes.txt").write_text("Not a book.")
    assert make(tmp_path / "books", "--output", tmp_path / "t") == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["books"]


def test_an_existing_folder_is_kept(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    assert make(SAMPLES, "--output", tmp_path / "mine") == 2
    assert "mine: exists already" in capsys.readouterr().err
    assert contents(tmp_path / "mine") == {"file": b"precious"}


def test_lines_of_the_next_sentence_are_json_as_documented(made):
    first = json.loads((made / "next/train.jsonl").read_text().splitlines()[0])
    assert list(first) == ["context", "choices", "label"]
    assert len(first["choices"]) == 2
