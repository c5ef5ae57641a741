"""Test that every kind of file gives the right documents."""

import bz2
import codecs
import gzip
import json
import lzma
import random
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd

from data_prep.build.spool import read_raw, write_raw
from data_prep.cleaning.clean import clean
from data_prep.reading.documents import Document, LeftOut, ReadOptions
from data_prep.reading.units import Unit, read_unit
from data_prep.steps import RECIPES
from tests.reading import FIXTURES, add_member, read_all, reasons_in, source_of, texts_of

TEXTS = {"a.txt": "First book.\nSecond line.", "b/c.md": "Café.", "b/d.txt": "Third."}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": zstd.compress,
}


def write_folder(path: Path) -> Path:
    for name, text in TEXTS.items():
        (path / "books" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "books" / name).write_text(text)
    return path / "books"


def write_jsonl(path: Path) -> Path:
    lines = [json.dumps({"text": text}) for text in TEXTS.values()]
    (path / "books.jsonl").write_text("\n".join([*lines, "", ""]))
    return path / "books.jsonl"


def write_json(path: Path) -> Path:
    (path / "books.json").write_text(json.dumps(list(TEXTS.values()), indent=2))
    return path / "books.json"


def write_packed_jsonl(path: Path, kind: str) -> Path:
    file = path / f"books.jsonl.{kind}"
    file.write_bytes(PACKERS[kind](write_jsonl(path).read_bytes()))
    return file


def write_zip(path: Path) -> Path:
    with zipfile.ZipFile(path / "books.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in TEXTS.items():
            archive.writestr(name, text)
        archive.writestr("cover.png", b"\x89PNG")
        archive.writestr("b/.hidden.txt", "no")
    return path / "books.zip"


def write_tar(path: Path, kind: str | None) -> Path:
    with tarfile.open(path / "books.tar", "w") as archive:
        for name, text in TEXTS.items():
            add_member(archive, name, text.encode())
        add_member(archive, "cover.png", b"\x89PNG")
    if kind is None:
        return path / "books.tar"
    file = path / f"books.tar.{kind}"
    file.write_bytes(PACKERS[kind]((path / "books.tar").read_bytes()))
    return file


def write_nested(path: Path) -> Path:
    with tarfile.open(path / "nested.tar.gz", "w:gz") as archive:
        add_member(archive, "deep/books.zip", write_zip(path).read_bytes())
    return path / "nested.tar.gz"


def renamed(file: Path, name: str) -> Path:
    return shutil.move(file, file.with_name(name))


@pytest.mark.parametrize(
    "write",
    [
        write_folder,
        write_jsonl,
        write_json,
        write_zip,
        write_nested,
        *(lambda path, kind=kind: write_packed_jsonl(path, kind) for kind in PACKERS),
        *(lambda path, kind=kind: write_tar(path, kind) for kind in [None, *PACKERS]),
        lambda path: renamed(write_tar(path, "gz"), "books.tgz"),
        lambda path: renamed(write_tar(path, "xz"), "books.gz.TXZ"),
        lambda path: renamed(write_tar(path, "zst"), "books"),
        lambda path: renamed(write_zip(path), "books.txt"),
    ],
)
def test_every_kind_of_source_gives_the_same_documents(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    assert texts_of(write(tmp_path)) == list(TEXTS.values())


def test_names_lead_to_the_member(tmp_path: Path) -> None:
    documents, left_out = read_all(write_nested(tmp_path))
    archive = "nested.tar.gz:deep/books.zip"
    assert [document.name for document in documents] == [f"{archive}:{name}" for name in TEXTS]
    assert {item.name: item.reason for item in left_out} == {
        f"{archive}:cover.png": "not read: .png",
        f"{archive}:b/.hidden.txt": "hidden",
    }


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("array.jsonl", ["array.jsonl:1", "array.jsonl:2"]),
        ("null-text.jsonl", ["null-text.jsonl:1", "null-text.jsonl:3"]),
        ("tar-inside.gz", ["tar-inside.gz:inside.txt"]),
        (
            "stories-with-separators.txt",
            [f"stories-with-separators.txt#{n + 1}" for n in range(60)],
        ),
    ],
)
def test_inputs_that_showed_faults(name: str, names: list[str]) -> None:
    documents, left_out = read_all(FIXTURES / name)
    assert [document.name for document in documents] == names
    assert all("<|endoftext|>" not in str(document.content) for document in documents)
    assert all(str(document.content).strip("b'\"\\n")[:4] == "The " for document in documents)
    assert [(item.name, item.reason) for item in left_out] == (
        [("null-text.jsonl:2", "null text")] if name == "null-text.jsonl" else []
    )


@pytest.mark.parametrize("name", ["chat.jsonl", "program.jsonl", "credits-in-prose.jsonl"])
def test_rows_keep_their_lines(name: str) -> None:
    documents, _ = read_all(FIXTURES / name)
    rows = [json.loads(line)["text"] for line in (FIXTURES / name).read_text().splitlines()]
    assert [document.content for document in documents] == rows
    assert {document.form for document in documents} == {"record"}


def test_rows_without_text_are_left_out_by_name(tmp_path: Path) -> None:
    rows = [
        ('{"text": "fine"}', None),
        ("", None),
        ('{"text": "cut', "not valid JSON"),
        ('{"body": "x"}', 'no field "text" (choose with --text-field)'),
        ('{"text": 5}', '"text" is no text'),
        ("[]", '"text" is no text'),
        ('{"text": " \\n"}', "empty"),
        ("[" * 100_000, "not valid JSON"),
        ('{"text": "caf\xe9"}', "not UTF-8 (give --encoding)"),  # in Latin-1
        ('"a string"', None),
        ('{"text": "half of a pair: \\ud83d", "score": NaN}', None),
    ]
    file = tmp_path / "rows.jsonl"
    file.write_bytes("\n".join(row for row, _ in rows).encode("latin-1"))
    documents, left_out = read_all(file)
    assert [(item.name, item.reason) for item in left_out] == [
        (f"rows.jsonl:{number}", reason) for number, (_, reason) in enumerate(rows, 1) if reason
    ]
    assert [document.content for document in documents] == [
        "fine",
        "a string",
        "half of a pair: \ufffd",
    ]


def test_text_field_is_a_choice(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"body": "words"}\n')
    assert texts_of(tmp_path / "rows.jsonl", options=ReadOptions(text_field="body")) == ["words"]


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "one"},\n {"text": "two"}]',
        '["one", "two"]',
        '{"text": "one"}\n{"text": "two"}\n',
        '{\n "text": "one"\n}\n{\n "text": "two"\n}',
        '\ufeff{"text": "one"}\r\n{"text": "two"}',
        '["one"]\n["two"]',
    ],
)
def test_every_shape_of_json_is_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "rows.json").write_text(content, encoding="utf-8")
    assert texts_of(tmp_path / "rows.json") == ["one", "two"]


def test_rows_after_broken_ones_of_an_array_are_read(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    (tmp_path / "a.json").write_text(f'["one", {deep}, "two", oops, "three"]')
    documents, left_out = read_all(tmp_path / "a.json")
    assert [document.content for document in documents] == ["one", "two", "three"]
    assert [item.reason for item in left_out] == [
        "not valid JSON",
        "not valid JSON",
    ]


ROW = '{"text": "one"}'
LAST = '{"text": "two \\"quoted\\" [\u5149"}'
REST = "not valid JSON, nor read from here on"


@pytest.mark.parametrize("gap", [", ", ",\n", ",\n  ", "\n"])
@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        ('{"text": "\\ud83d"}', None),
        ('{"text": "tab\tand"}', None),
        ('{"text": null}', "null text"),
        ("null", "null text"),
        ("5", '"text" is no text'),
        ("{}", 'no field "text" (choose with --text-field)'),
        ('{"text": "caf\udce9"}', "not UTF-8 (give --encoding)"),
        ("NaNa", "not valid JSON"),
        ("{text: 'a'}", "not valid JSON"),
        ('{"text": "a", "of": [{"text": "no"}, {"text": "no"}], "b": }', "not valid JSON"),
        ('{"text": "say "hi" to"}', "not valid JSON"),
        ('{"text": "say "hi, to {you}}"}', "not valid JSON"),
        ('{"text": "no end}', "not valid JSON"),
        ('{"text": "no bracket"', "not valid JSON"),
        ('{"text": "\\x"}', "not valid JSON"),
        ('{"text": "' + "long " * 30_000 + '", "of": nothing}', "not valid JSON"),
    ],
)
def test_one_damaged_value_takes_no_other_along(
    tmp_path: Path, damaged: str, reason: str | None, gap: str
) -> None:
    values = gap.join([ROW, damaged, ROW, LAST, damaged, ROW])
    content = values if gap == "\n" else f"[{values}]"
    (tmp_path / "a.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    documents, left_out = read_all(tmp_path / "a.json")
    texts = [document.content for document in documents]
    kept = ["one"] if reason else ["one", texts[1]]
    assert texts == [*kept, "one", json.loads(LAST)["text"], *kept[1:], "one"]
    assert left_out == [LeftOut(f"a.json:{n}", str(reason)) for n in (2, 5) if reason]


def test_what_cannot_be_read_on_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f"[{ROW},\n{ROW},\n" + '{"text": "cut' + " off" * 50_000)
    (tmp_path / "b.json").write_text('["one", "two" "three')
    documents, left_out = read_all(tmp_path)
    assert [document.content for document in documents] == ["one", "one", "one"]
    name = (
        f"{tmp_path.name}/{{}}.json:{{}} (line {{}}, character {{}}, to the end: {{}} characters)"
    )
    assert left_out == [
        LeftOut(name.format("a", 3, 3, 36, 200_013), REST),
        LeftOut(name.format("b", 2, 1, 9, 12), REST),
    ]


@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
def test_values_do_not_depend_on_how_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("data_prep.reading.rows._CHUNK", chunk)
    first, last = {"text": 'a "b" \\'}, {"text": "}{[, \U0001f600", "of": [{"text": "no"}]}
    rows = [first, 1.5e10, -3, True, last]
    for text in (json.dumps(rows), "\n".join(json.dumps(row, indent=1) for row in rows)):
        (tmp_path / "a.json").write_text(f" {text}")
        documents, left_out = read_all(tmp_path / "a.json")
        assert [document.content for document in documents] == ['a "b" \\', "}{[, \U0001f600"]
        assert [item.reason for item in left_out] == ['"text" is no text'] * 3


def test_many_damaged_values_hide_no_others(tmp_path: Path) -> None:
    values = ['{"text": "say "hi"}', ROW] * 3_000
    (tmp_path / "a.json").write_text(f"[{', '.join(values)}]")
    documents, left_out = read_all(tmp_path / "a.json")
    assert (len(documents), len(left_out)) == (3_000, 3_000)


@pytest.mark.parametrize("indent", ["", " ", "\t"])
@pytest.mark.parametrize("gap", ["\n", "\n\n", "\r\n"])
def test_objects_over_several_lines_are_read_from_jsonl(
    tmp_path: Path, indent: str, gap: str
) -> None:
    rows = [{"text": "one", "of": {"n": 1}}, {"text": None}, {"text": "two"}]
    (tmp_path / "a.jsonl").write_text(gap.join(json.dumps(row, indent=indent) for row in rows))
    documents, left_out = read_all(tmp_path / "a.jsonl")
    assert [(one.name, one.content) for one in documents] == [
        ("a.jsonl:1", "one"),
        ("a.jsonl:3", "two"),
    ]
    assert left_out == [LeftOut("a.jsonl:2", "null text")]


@pytest.mark.parametrize(
    ("separator", "texts"),
    [
        ("<|endoftext|>", ["one ", " two", "three"]),
        ("", ["one <|endoftext|> two<|endoftext|><|endoftext|>three<|endoftext|>\n"]),
        ("absent", ["one <|endoftext|> two<|endoftext|><|endoftext|>three<|endoftext|>\n"]),
    ],
)
@pytest.mark.parametrize("kind", ["txt", "jsonl", "html"])
def test_separators_divide_documents_of_any_kind(
    tmp_path: Path, kind: str, separator: str, texts: list[str]
) -> None:
    content = "one <|endoftext|> two<|endoftext|><|endoftext|>three<|endoftext|>\n"
    encode = {"jsonl": json.dumps, "html": lambda text: f"<p>{text.replace('<', '&lt;')}</p>"}
    file = tmp_path / f"a.{kind}"
    file.write_text(encode.get(kind, str)(content))
    found = texts_of(file, options=ReadOptions(separator=separator))
    assert [text.strip() for text in found] == [text.strip() for text in texts]


def test_utf16_is_read_with_its_separators(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("où<|endoftext|>là".encode("utf-16"))
    (tmp_path / "b.txt").write_bytes("où<|endoftext|>là".encode("utf-16-be"))
    assert texts_of(tmp_path / "a.txt") == ["où", "là"]
    assert texts_of(tmp_path / "b.txt", options=ReadOptions(encoding="utf-16-be")) == ["où", "là"]


def test_utf16_is_named_and_its_broken_characters_are_counted(tmp_path: Path) -> None:
    data = "words ".encode("utf-16-le") * 99 + b"\x00\xd8" + "end".encode("utf-16-le")
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF16_LE + data)
    (document,), _ = read_all(tmp_path / "a.txt")
    result = clean(document, RECIPES["plain"])
    assert (result.encoding, result.effects) == ("utf-16", {"encoding": 1})
    assert result.text == "words " * 99 + "\ufffdend"


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE])
def test_noise_after_a_byte_order_mark_is_left_out(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(mark + random.Random(0).randbytes(20_000))
    name = "utf-32" if mark == codecs.BOM_UTF32_LE else "utf-16"
    assert read_all(tmp_path / "a.txt") == ([], [LeftOut("a.txt", f"not text in {name}")])


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.jsonl"])
def test_utf16_without_the_mark_that_it_needs_is_left_out(tmp_path: Path, name: str) -> None:
    options = ReadOptions(encoding="utf-16")
    (tmp_path / name).write_text('"words"')
    reason = "not text in utf-16 (no byte-order mark)"
    assert read_all(tmp_path / name, options=options) == ([], [LeftOut(name, reason)])
    (tmp_path / name).write_text('"words"', encoding="utf-16")
    assert [text.strip('"') for text in texts_of(tmp_path / name, options=options)] == ["words"]


ROWS = [{"text": "Старый рыбак"}, {"text": "медленно шёл"}, {"text": "plain"}]


@pytest.mark.parametrize(
    ("encoding", "stated"),
    [("cp1251", "cp1251"), ("utf-16", None), ("utf-16-be", "utf-16-be"), ("utf-8-sig", "cp1251")],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "b.json"])
def test_rows_are_read_in_a_stated_encoding(
    tmp_path: Path, name: str, encoding: str, stated: str | None
) -> None:
    write_rows(tmp_path / name, encoding)
    documents, left_out = read_all(tmp_path / name, options=ReadOptions(encoding=stated))
    assert [document.content for document in documents] == [row["text"] for row in ROWS]
    expected = "utf-8" if encoding == "utf-8-sig" else encoding
    assert ({document.encoding for document in documents}, left_out) == ({expected}, [])


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "b.json"])
def test_rows_that_are_not_in_their_encoding_are_left_out(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / name, "cp1251")
    documents, left_out = read_all(tmp_path / name)
    assert [document.content for document in documents] == ["plain"]
    assert left_out == [LeftOut(f"{name}:{n}", "not UTF-8 (give --encoding)") for n in (1, 2)]
    documents, left_out = read_all(tmp_path / name, options=ReadOptions(encoding="ascii"))
    assert [document.content for document in documents] == ["plain"]
    assert left_out == [LeftOut(f"{name}:{n}", "not text in ascii") for n in (1, 2)]


def write_rows(file: Path, encoding: str) -> None:
    """Write rows as an array to `b.json`, and else one a line."""
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    if file.name == "b.json":
        text = json.dumps(ROWS, ensure_ascii=False)
    file.write_bytes(text.encode(encoding))


def test_files_without_suffix_are_read_if_they_are_text(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "README").write_text("words")
    (tmp_path / "in" / "program").write_bytes(b"\x7fELF" + bytes(range(32)) * 9)
    (tmp_path / "in" / "page").write_text("<!DOCTYPE html><p>para</p>")
    (tmp_path / "in" / "book.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "in" / "12345.txt.utf-8").write_text("numbered")
    assert texts_of(tmp_path / "in") == ["numbered", "words", "packed", "para"]
    assert reasons_in(tmp_path / "in") == {"in/program": "not read: no text"}


SENTENCES = "".join(f"`` the {n} th sentence , '' she said .\n" for n in range(80_000))


def test_bookcorpus_form_is_cut_at_line_ends(tmp_path: Path) -> None:
    (tmp_path / "any.txt").write_text(SENTENCES)
    documents, _ = read_all(tmp_path / "any.txt")
    assert [document.name for document in documents] == ["any.txt#1", "any.txt#2", "any.txt#3"]
    assert {document.form for document in documents} == {"sentences"}
    assert b"".join(document.content for document in documents) == SENTENCES.encode()
    assert all(document.content.endswith(b".\n") for document in documents)
    assert all(len(document.content) < (3 << 19) + 100 for document in documents)


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        ("books_large_p1.txt", "few lines\n", "sentences"),
        ("a.txt", SENTENCES.replace("she", "She"), "text"),
        ("a.txt", SENTENCES.replace("\n", "\n\n"), "text"),
        ("a.txt", SENTENCES.replace(" .\n", "\n"), "text"),
        ("a.txt", "", "text"),
    ],
)
def test_bookcorpus_form_is_told_by_name_or_content(
    tmp_path: Path, name: str, text: str, form: str
) -> None:
    (tmp_path / name).write_text(text)
    (document, *_), _ = read_all(tmp_path / name)
    assert document.form == form


def test_missing_libraries_are_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt.zst").write_bytes(zstd.compress(b"text"))
    for module in ("data_prep.reading.tables", "data_prep.reading.markup", "backports"):
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("a.parquet", "b.html"):
        (tmp_path / name).write_bytes(b"")
        (left_out,) = read_unit(Unit(source_of(tmp_path / name), 0, None), ReadOptions())
        assert "pip install 'gpt_dist[text]'" in left_out.reason
    assert reasons_in(tmp_path / "a.txt.zst") == {
        "a.txt.zst": "not read: .zst without backports (pip install 'gpt_dist[text]')"
    }


def test_documents_between_workers_keep_their_encoding(tmp_path: Path) -> None:
    items = (
        Document("a", "half \udcff", "record", "cp1251"),
        LeftOut("b", "empty"),
        Document("c", b"\xff", "text"),
    )
    write_raw(tmp_path / "0", items)
    assert tuple(read_raw(tmp_path / "0")) == items


def test_documents_of_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "b.txt").write_bytes(codecs.BOM_UTF8 + b"text")
    assert read_all(tmp_path / "a.txt")[0] == [Document("a.txt", b"", "text")]
    assert read_all(tmp_path / "b.txt")[0] == [Document("b.txt", codecs.BOM_UTF8 + b"text", "text")]
