"""Test that ranges of a large file, read apart, give the documents of the whole."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.reading.documents import DOCUMENT_BYTES, ReadOptions
from data_prep.reading.text import BLOCK_BYTES
from data_prep.reading.units import plan_units
from tests.reading import PLAIN, read_all, source_of, text_of

MIB = 1 << 20


def write_lines(path: Path) -> Path:
    with (path / "a.jsonl").open("w") as file:
        for number in range(41):
            text = f"{number} " + "words " * (number * 8_000)
            file.write(json.dumps({"text": text}) + "\n" * (number % 3 + 1))
    return path / "a.jsonl"


def write_separated(path: Path) -> Path:
    with (path / "a.txt").open("w") as file:
        for number in range(400):
            file.write(f"story {number} " + "Some words\n" * (number * 50) + "<|endoftext|>")
    return path / "a.txt"


def write_straddling(path: Path) -> Path:
    """Put a separator over each place at which ranges of text may meet."""
    separator = b"<|endoftext|>"
    data = bytearray(b"Some words of it\n" * (4 * BLOCK_BYTES // 17))
    for number, shift in enumerate([3, 12, 0], 1):
        begin = number * BLOCK_BYTES - shift
        data[begin : begin + len(separator)] = separator
    (path / "a.txt").write_bytes(data)
    return path / "a.txt"


def write_plain(path: Path) -> Path:
    paragraph = "Some words of a line,\nand more of them.\n\n"
    (path / "a.txt").write_text(paragraph * (70 * MIB // len(paragraph)))
    return path / "a.txt"


def write_sentences(path: Path) -> Path:
    (path / "a.txt").write_text("he said so , and so did she .\n" * (40 * MIB // 30))
    return path / "a.txt"


@pytest.mark.parametrize(
    "write", [write_lines, write_separated, write_straddling, write_plain, write_sentences]
)
def test_documents_do_not_depend_on_the_ranges(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    file = write(tmp_path)
    assert file.stat().st_size > DOCUMENT_BYTES
    plans = [plan_units(source_of(file), PLAIN, size) for size in (1, 40 * MIB, 1 << 40)]
    assert len(plans[0]) > len(plans[1]) > len(plans[2]) == 1
    whole = read_all(file, unit_bytes=1 << 40)
    assert read_all(file, unit_bytes=40 * MIB) == whole
    assert read_all(file, unit_bytes=1) == whole
    # Nothing but separators and blank lines is lost.
    texts = list(map(text_of, whole[0]))
    if file.suffix == ".txt":
        assert "".join(texts) == file.read_text().replace("<|endoftext|>", "")
        assert all(len(text) <= DOCUMENT_BYTES for text in texts)
    else:
        assert [text.split()[0] for text in texts] == [str(number) for number in range(41)]


def test_names_in_ranges_state_the_byte(tmp_path: Path) -> None:
    file = write_lines(tmp_path)
    data = file.read_bytes()
    for document in read_all(file)[0]:
        offset = int(document.name.removeprefix("a.jsonl@"))
        line = data[offset : data.index(b"\n", offset)]
        assert json.loads(line)["text"] == document.content


def test_ranges_of_lines_are_read_in_a_stated_encoding(tmp_path: Path) -> None:
    rows = [f"{number} " + "слова " * 900_000 for number in range(7)]
    lines = [json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in rows]
    (tmp_path / "a.jsonl").write_text("".join(lines), encoding="cp1251")
    options = ReadOptions(encoding="cp1251")
    assert len(plan_units(source_of(tmp_path / "a.jsonl"), options, 1)) > 1
    documents, _ = read_all(tmp_path / "a.jsonl", options=options, unit_bytes=1)
    assert [document.content for document in documents] == rows
    assert {document.encoding for document in documents} == {"cp1251"}


def test_plain_text_is_cut_at_paragraphs(tmp_path: Path) -> None:
    documents, _ = read_all(write_plain(tmp_path))
    assert len(documents) == 4
    assert all(text_of(document).endswith("them.\n\n") for document in documents[:-1])


@pytest.mark.parametrize("line", [b"words without line ends ", "é".encode(), b"x" * 7])
def test_huge_text_is_cut_between_characters(tmp_path: Path, line: bytes) -> None:
    data = line * (DOCUMENT_BYTES // len(line) + 10)
    (tmp_path / "huge.txt").write_bytes(data)
    documents, _ = read_all(tmp_path / "huge.txt")
    assert len(documents) == 2
    assert "".join(map(text_of, documents)) == data.decode()


@pytest.mark.parametrize("name", ["a.json", "a.txt.gz", "a.html", "a.parquet", "a.zip"])
def test_other_files_are_read_whole(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"[" + b" " * DOCUMENT_BYTES)
    assert len(plan_units(source_of(tmp_path / name), PLAIN, 1)) == 1


def test_utf16_is_read_whole(tmp_path: Path) -> None:
    text = "Some words of a line.\n\n" * (DOCUMENT_BYTES // 44)
    (tmp_path / "a.txt").write_bytes(text.encode("utf-16"))
    assert len(plan_units(source_of(tmp_path / "a.txt"), PLAIN, 1)) == 1
    assert "".join(map(text_of, read_all(tmp_path / "a.txt")[0])) == text


@pytest.mark.parametrize(
    ("name", "head", "tail"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": "', b'"}\n{"text": "two"}\n'),
        ("a.json", b'[{"text": "one"}, {"text": ["\\"', b'\\\\"]}, {"text": "two"}]'),
        ("a.ndjson", b'{"text": "one"}\n', b'\n{"text": "two"}'),
    ],
)
def test_a_long_row_is_left_out_without_holding_it(
    tmp_path: Path, name: str, head: bytes, tail: bytes
) -> None:
    with (tmp_path / name).open("wb") as file:
        file.write(head)
        for _ in range(200):
            file.write(b"x" * MIB)
        file.write(tail)
    tracemalloc.start()
    documents, left_out = read_all(tmp_path / name, options=ReadOptions(separator=""))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [document.content for document in documents] == ["one", "two"]
    assert [item.reason for item in left_out] == ["longer than 32 MiB"]
    assert peak < 190 * MIB
