"""Test by the command line which texts a build keeps, and what it says about them."""

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from data_prep.cli import main
from data_prep.manifest import BuiltFolder
from data_prep.pool import Pool
from gpt_dist.data.tokenizers.folder import open_tokenizer
from tests.texts import TEXTS
from tests.unit.test_sources import SAMPLE_BOOKS

SEPARATOR = "<|endoftext|>"
WHOLE = [
    *("chinese-paragraphs.txt", "no-blank-lines.txt", "one-paragraph-a-line.txt"),
    *("persian-joiners.txt", "small-print-at-end.txt", "stories-with-separators.txt"),
]
ROWS = ["array.jsonl", "chat.jsonl", "credits-in-prose.jsonl", "null-text.jsonl", "program.jsonl"]
ENCODED = {"chinese-gbk": "gbk", "french-latin1": "latin-1", "russian-cp1251": "cp1251"}


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have threads do the work, which start at once."""

    @contextmanager
    def open_threads(workers: int) -> Iterator[Pool]:
        with ThreadPoolExecutor(workers) as executor:
            yield Pool(executor, workers)

    monkeypatch.setattr("data_prep.cli.open_pool", open_threads)


def built(inputs: Path, output: Path, *more: object) -> BuiltFolder:
    options = ["--workers", 1, *([] if "--vocab-size" in more else ["--vocab-size", 400]), *more]
    assert main(["build", str(inputs), "--output", str(output), *map(str, options)]) == 0
    return BuiltFolder(output.expanduser())


def texts_in(folder: BuiltFolder) -> list[str]:
    """Return the kept texts in order, if none was held out."""
    tokenizer = open_tokenizer(folder.path)
    stream = folder.split("train")
    ids = stream.read(0, stream.num_tokens)
    ends = np.flatnonzero(ids == tokenizer.end_of_text)
    return [tokenizer.decode(part[:-1]) for part in np.split(ids, ends + 1)[:-1]]


def texts_of(path: Path) -> list[str]:
    """Return the texts of a case as they are in its file."""
    content = path.read_text(ENCODED.get(path.stem, "utf-8"))
    if path.suffix == ".txt":
        return [part.strip() for part in content.split(SEPARATOR) if part.strip()]
    rows = json.loads(content) if content.startswith("[") else map(json.loads, content.splitlines())
    return [row["text"] for row in rows if row["text"]]


@pytest.mark.parametrize("name", ["stories-with-separators.txt", "null-text.jsonl", "array.jsonl"])
def test_short_texts_are_kept(name: str, tmp_path: Path) -> None:
    folder = built(TEXTS / name, tmp_path / "tokens", "--recipe", "plain", "--vocab-size", 330)
    assert folder.manifest.totals.documents_kept == len(texts_of(TEXTS / name)) > 1
    assert folder.manifest.dropped == ({"null text": 1} if name.startswith("null") else {})
    assert folder.manifest.options.min_characters == 0


def test_every_case_comes_back_as_it_is(tmp_path: Path) -> None:
    options = ("--recipe", "plain", "--validation-fraction", 0, "--vocab-size", 1400)
    folder = built(TEXTS, tmp_path / "tokens", *options)
    files = [source.name.removeprefix("text/") for source in folder.manifest.sources]
    expected = {name: texts_of(TEXTS / name) for name in files if not name.endswith(".gz")}
    assert len(expected) == len(WHOLE) + len(ROWS) + len(ENCODED) + 4
    packed = ["tar-inside.gz"]
    assert [name for name in files if name not in expected] == packed
    kept = [text.strip() for text in texts_in(folder)]
    for name in expected:
        for text in expected[name]:
            assert text.strip() in kept, name
    manifest = folder.manifest
    assert manifest.dropped == {"null text": 1}
    assert manifest.totals.documents_read == manifest.totals.documents_kept == len(kept)


def test_equal_texts_are_kept_unless_they_are_not_wanted(tmp_path: Path) -> None:
    inputs = tmp_path / "equal"
    inputs.mkdir()
    for name in ("a", "b", "c"):
        shutil.copy(TEXTS / "one-paragraph-a-line.txt", inputs / f"{name}.txt")
    (inputs / "empty.txt").write_text("\n \n")
    for number, (options, dropped) in enumerate(
        {
            ("--recipe", "plain"): {},
            ("--recipe", "plain", "--near-duplicates", 0): {"duplicate": 2},
            ("--recipe", "plain", "--near-duplicates", 0.8): {"duplicate": 2},
            ("--recipe", "books", "--near-duplicates", 0): {"duplicate": 2},
            ("--recipe", "books", "--keep-duplicates"): {},
        }.items()
    ):
        made = built(inputs, tmp_path / str(number), *options)
        assert made.manifest.dropped == {"empty": 1, **dropped}


def test_large_equal_texts_are_encoded_side_by_side(tmp_path: Path) -> None:
    inputs = tmp_path / "equal"
    inputs.mkdir()
    text = "\n".join(f"Line {n % 977} of a text." for n in range(110_000))
    for number in range(4):
        (inputs / f"{number}.txt").write_text(text)
    options = ("--recipe", "plain", "--vocab-size", 300, "--workers", 4, "--tokenizer-sample-mb", 1)
    folder = built(inputs, tmp_path / "tokens", *options, "--validation-fraction", 0)
    assert texts_in(folder) == [text] * 4


def test_equal_texts_are_kept_in_a_dry_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.dumps({"text": "A short text of a few words."}) + "\n"
    (tmp_path / "rows.jsonl").write_text(rows * 50)
    command = ["build", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "tokens")]
    command += ["--dry-run", "--recipe", "plain", "--vocab-size", "290"]
    assert main(command) == 0
    assert "Left out" not in capsys.readouterr().out
    assert main([*command, "--near-duplicates", "0"]) == 0
    assert "Left out in the sample: 49 duplicate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "plain", "--passage-words", "50"], "--passage-words: 50 cuts what"),
        (["--near-duplicates", "0", "--passage-words", "50"], "--passage-words: 50 cuts what"),
        (["--keep-duplicates", "--passage-words", "50"], "leave --passage-words out"),
    ],
)
def test_options_of_duplicates_that_contradict_are_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(TEXTS), "--output", str(tmp_path / "tokens"), *options]) == 2
    assert message in capsys.readouterr().err


def test_the_share_held_out_is_judged_by_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The end of a text, which is held out, has numbers, which take more tokens."""
    prose = "The grey harbour watched an old lantern.\n" * 2000
    numbers = "\n".join(str(number**5) for number in range(1000, 1100))
    (tmp_path / "table.txt").write_text(prose + numbers)
    folder = built(tmp_path / "table.txt", tmp_path / "tokens", "--vocab-size", 330)
    tokens = folder.manifest.splits["validation"].tokens / folder.manifest.totals.tokens
    assert tokens > 0.015
    shown = capsys.readouterr().out
    assert "WARNING" not in shown
    found = re.search(r"held out +│ ([\d.]+) % of the text, 1 % wanted", shown)
    assert found
    assert float(found[1]) == pytest.approx(1, rel=0.2)


def refused(
    capsys: pytest.CaptureFixture[str], inputs: Path, output: Path, *options: str
) -> list[str]:
    """Return the last lines that a build and its dry run are refused with."""
    command = ["build", str(inputs), "--output", str(output), "--vocab-size", "330", *options]
    lines = []
    for more in ([], ["--dry-run"]):
        assert main([*command, "--workers", "1", *more]) == 2
        lines.append(capsys.readouterr().err.splitlines()[-1])
    return lines


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("encodings", ["--no-guess"], r"not UTF-8, seems to be cp1251.*\); leave out --no-guess"),
        ("encodings", ["--encoding", "utf-16"], r"\); give another --encoding, or give other text"),
        ("array.jsonl", [], r"2 too short\); give a smaller --min-characters than 500"),
        ("licence.txt", [], r"emptied by the step gutenberg\); give --no-gutenberg, or give other"),
        ("linked", ["--no-follow-links"], r"1 link\); leave out --no-follow-links"),
    ],
)
def test_a_build_that_keeps_nothing_names_the_option_at_fault(
    name: str,
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inputs = TEXTS / name
    if not inputs.exists():
        inputs = tmp_path / name
        inputs.write_text("End of the Project Gutenberg EBook of Moby\n\nLicence")
    if name == "linked":
        inputs = tmp_path / name
        inputs.mkdir()
        (inputs / "link.txt").symlink_to(TEXTS / "program.jsonl")
    for line in refused(capsys, inputs, tmp_path / "tokens", *options):
        assert re.search(message, line), line


def test_a_document_in_no_known_encoding_is_not_read_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    shutil.copy(TEXTS / "one-paragraph-a-line.txt", inputs / "a.txt")
    shutil.copy(TEXTS / "encodings/russian-cp1251.txt", inputs / "b.txt")
    (inputs / "c.txt").write_bytes(bytes(range(128, 256)) * 40)
    folder = built(inputs, tmp_path / "tokens", "--vocab-size", 400)
    assert folder.manifest.read_as == {"cp1251": ("in/b.txt",)}
    assert [source.encodings for source in folder.manifest.sources] == [{}, {"cp1251": 1}, {}]
    assert sum(folder.manifest.dropped.values()) == 1
    assert "unknown" not in capsys.readouterr().out


def test_a_tokenizer_that_does_not_exist_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given, fault in (("nosuch", "does not exist"), (str(TEXTS / "chat.jsonl"), "a file")):
        command = ["build", str(TEXTS), "--output", str(tmp_path / "tokens"), "--tokenizer", given]
        assert main(command) == 2
        message = f"error: {given}: {fault}; give the folder that holds the tokenizer"
        assert capsys.readouterr().err.strip() == message


def test_one_is_singular(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("A line of the text. " * 50)
    built(tmp_path / "a.txt", tmp_path / "tokens", "--validation-fraction", 0, "--vocab-size", 280)
    command = ["build", str(tmp_path / "a.txt"), "--output", str(tmp_path / "new"), "--dry-run"]
    assert main([*command, "--workers", "1", "--vocab-size", "280"]) == 0
    assert main(["report", str(tmp_path / "tokens"), "--workers", "1"]) == 0
    shown = "".join(capsys.readouterr()) + (tmp_path / "tokens-report.html").read_text()
    assert not re.findall(r"(?<![\d.,])1 [a-z]+s\b", shown)
    assert "1 worker" in shown


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copy(TEXTS / "one-paragraph-a-line.txt", tmp_path / "a.txt")
    built(Path("~/a.txt"), Path("~/tokens"))
    assert BuiltFolder(tmp_path / "tokens").manifest.totals.documents_kept == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "tokens"]


def test_gutenberg_s_editions_with_and_without_accents_are_one(tmp_path: Path) -> None:
    """Project Gutenberg has 12345.txt in ASCII and 12345-8.txt, of one book, in Latin-1."""
    inputs = tmp_path / "books"
    inputs.mkdir()
    book = (SAMPLE_BOOKS / "Bret_Harte___The_Three_Partners.txt").read_text()
    accented = book.replace("e of ", "é of ").replace("Jack", "Jàck").replace("ou", "oû")
    assert sum(map(accented.count, "éàû")) > 1000
    other = (SAMPLE_BOOKS / "Jack_London___Children_of_the_Frost.txt").read_text()
    for name, text, encoding in (
        ("12345.txt", book, "ASCII"),
        ("12345-8.txt", accented, "ISO-8859-1"),
        ("678-8.txt", other.replace("The", "Thé"), "ISO-8859-1"),
    ):
        header = (
            "The Project Gutenberg EBook of A Book, by A Writer\n\nTitle: A Book\n\n"
            f"Character set encoding: {encoding}\n\n"
            f"*** START OF THIS PROJECT GUTENBERG EBOOK {name} ***\n\n"
        )
        end = f"\n\n*** END OF THIS PROJECT GUTENBERG EBOOK {name} ***\n\n***** {name} *****\n"
        data = (header + text + end).replace("\n", "\r\n").encode(encoding)
        (inputs / name).write_bytes(data)
    manifest = built(inputs, tmp_path / "tokens", "--vocab-size", 600).manifest
    assert manifest.totals.documents_kept == 2
    (drop,) = manifest.drops
    assert (drop.name, drop.reason) == ("books/12345.txt", "near-duplicate")
    assert drop.detail == "1.000 of it is in books/12345-8.txt"
