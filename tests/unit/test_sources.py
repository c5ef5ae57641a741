"""Test that every kind of file gives the same documents, and that hostile files are refused."""

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.documents import DOCUMENT_BYTES, SourceReader, read_text
from data_prep.reading.documents import Document
from data_prep.sources import find_sources
from gpt_dist.errors import DataError

TEXTS = {"a.txt": "First book.\nSecond line.", "b/c.txt": "Café.", "b/d.txt": "Third."}


def read_all(*inputs: Path, text_field: str = "text") -> list[Document]:
    reader = SourceReader(text_field)
    return [document for source in find_sources(inputs)[0] for document in reader.read(source)]


def texts_of(*inputs: Path) -> list[str]:
    contents = [document.content for document in read_all(*inputs)]
    return [text if isinstance(text, str) else text.decode() for text in contents]


def write_folder(path: Path) -> Path:
    for name, text in TEXTS.items():
        (path / "books" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "books" / name).write_text(text)
    return path / "books"


def write_jsonl(path: Path) -> Path:
    lines = [json.dumps({"text": text}) for text in TEXTS.values()]
    (path / "books.jsonl").write_text("\n".join([*lines, "", ""]))
    return path / "books.jsonl"


def write_jsonl_gz(path: Path) -> Path:
    file = path / "books.jsonl.gz"
    file.write_bytes(gzip.compress(write_jsonl(path).read_bytes()))
    return file


def write_zip(path: Path) -> Path:
    with zipfile.ZipFile(path / "books.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in TEXTS.items():
            archive.writestr(name, text)
        archive.writestr("cover.png", b"\x89PNG")
        archive.writestr("b/.hidden.txt", "no")
    return path / "books.zip"


def write_tar(path: Path, mode: str, suffix: str) -> Path:
    file = path / f"books{suffix}"
    with tarfile.open(file, mode) as archive:
        for name, text in TEXTS.items():
            add_member(archive, name, text.encode())
        add_member(archive, "cover.png", b"\x89PNG")
    return file


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def write_gz_inside_tar(path: Path) -> Path:
    with tarfile.open(path / "nested.tar", "w") as archive:
        for name, text in TEXTS.items():
            add_member(archive, name + ".gz", gzip.compress(text.encode()))
    return path / "nested.tar"


@pytest.mark.parametrize(
    "write",
    [
        write_folder,
        write_jsonl,
        write_jsonl_gz,
        write_zip,
        write_gz_inside_tar,
        lambda path: write_tar(path, "w", ".tar"),
        lambda path: write_tar(path, "w:gz", ".tar.gz"),
        lambda path: write_tar(path, "w:gz", ".tgz"),
        lambda path: write_tar(path, "w:xz", ".tar.xz"),
    ],
)
def test_every_kind_of_source_gives_the_same_documents(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    assert texts_of(write(tmp_path)) == list(TEXTS.values())


def test_folder_is_read_in_order_and_others_are_counted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "cover.png").write_bytes(b"")
    (folder / ".hidden.txt").write_text("no")
    sources, skipped = find_sources([folder])
    assert [source.name for source in sources] == [f"books/{name}" for name in TEXTS]
    assert skipped == ["books/cover.png"]


def test_archive_members_that_are_skipped_are_named(tmp_path: Path) -> None:
    reader = SourceReader("text")
    (source,), _ = find_sources([write_zip(tmp_path)])
    list(reader.read(source))
    assert reader.skipped == ["books.zip:cover.png"]


@pytest.mark.parametrize("name", ["absent.txt", "book.pdf"])
def test_unreadable_input_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "book.pdf").write_bytes(b"")
    with pytest.raises(DataError, match=name):
        find_sources([tmp_path / name])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', "line 2: not valid JSON"),
        ('{"body": "x"}', r'line 2: has no text in field "text".*--text-field'),
        ('{"text": 5}', "line 2: has no text"),
        ("[]", "line 2: has no text"),
        ("[" * 100_000, "line 2: not valid JSON"),
    ],
)
def test_malformed_jsonl_names_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"rows\.jsonl, {message}"):
        read_all(file)


def test_text_field_is_a_choice(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"body": "words"}\n')
    assert read_all(tmp_path / "rows.jsonl", text_field="body")[0].content == "words"


@pytest.mark.parametrize("kind", ["books.tar", "books.tar.gz", "books.tar.xz", "books.jsonl.gz"])
def test_truncated_archive_is_named(tmp_path: Path, kind: str) -> None:
    whole = {
        "books.tar": lambda: write_tar(tmp_path, "w", ".tar"),
        "books.tar.gz": lambda: write_tar(tmp_path, "w:gz", ".tar.gz"),
        "books.tar.xz": lambda: write_tar(tmp_path, "w:xz", ".tar.xz"),
        "books.jsonl.gz": lambda: write_jsonl_gz(tmp_path),
    }[kind]()
    length = 700 if kind == "books.tar" else whole.stat().st_size - 6
    whole.write_bytes(whole.read_bytes()[:length])
    with pytest.raises(DataError, match=rf"{kind}: cannot be read"):
        read_all(whole)


def test_broken_zip_and_damaged_tar_header_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match=r"broken\.zip: cannot be read"):
        read_all(broken)
    damaged = write_tar(tmp_path, "w", ".tar")
    data = bytearray(damaged.read_bytes())
    data[1024:1030] = b"XXXXXX"
    damaged.write_bytes(data)
    with pytest.raises(DataError, match=r"books\.tar: cannot be read"):
        read_all(damaged)


def test_hostile_tar_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "in" / "evil.tar"
    file.parent.mkdir()
    with tarfile.open(file, "w") as archive:
        add_member(archive, "../evil.txt", b"climbs out")
        add_member(archive, "/tmp/evil-absolute.txt", b"is absolute")
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../evil.txt")):
            link = tarfile.TarInfo(f"link{kind!r}.txt")
            link.type, link.linkname = kind, target
            archive.addfile(link)
        fifo = tarfile.TarInfo("fifo.txt")
        fifo.type = tarfile.FIFOTYPE
        archive.addfile(fifo)
    assert texts_of(file) == ["climbs out", "is absolute"]
    assert sorted(tmp_path.rglob("*")) == [file.parent, file]
    assert not Path("/tmp/evil-absolute.txt").exists()


@pytest.mark.parametrize("suffix", [".zip", ".tar.xz", ".txt.gz"])
def test_bombs_are_refused(tmp_path: Path, suffix: str) -> None:
    file, zeros = tmp_path / f"bomb{suffix}", bytes(20 << 20)
    if suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("bomb.txt", zeros)
    elif suffix == ".txt.gz":
        file.write_bytes(gzip.compress(zeros))
    else:
        with tarfile.open(file, "w:xz", preset=0) as archive:
            add_member(archive, "bomb.txt", zeros)
    with pytest.raises(DataError, match=r"bomb.*100 times"):
        read_all(file)


SENTENCES = "".join(f"`` the {n} th sentence , '' she said .\n" for n in range(60_000))


def test_bookcorpus_form_is_cut_at_line_ends() -> None:
    documents = list(read_text("any.txt", io.BytesIO(SENTENCES.encode())))
    assert {document.form for document in documents} == {"sentences"}
    assert b"".join(document.content for document in documents) == SENTENCES.encode()
    assert all(len(document.content) <= 1 << 20 for document in documents)
    assert all(document.content.endswith(b".\n") for document in documents)
    assert len({document.name for document in documents}) == len(documents) == 3


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
def test_bookcorpus_form_is_told_by_name_or_content(name: str, text: str, form: str) -> None:
    (document, *_) = read_text(name, io.BytesIO(text.encode()))
    assert document.form == form


@pytest.mark.parametrize(
    "unit", [b"line of a book\n", b"words without line ends ", "é".encode(), b"x" * 7]
)
def test_huge_text_is_cut_between_characters(unit: bytes) -> None:
    data = unit * (DOCUMENT_BYTES // len(unit) + 10)
    documents = list(read_text("huge.txt", io.BytesIO(data)))
    assert [document.name for document in documents] == ["huge.txt#1", "huge.txt#2"]
    assert b"".join(document.content for document in documents) == data
    for document in documents:
        assert len(document.content) <= DOCUMENT_BYTES
        document.content.decode()


def test_a_bare_gz_is_text(tmp_path: Path) -> None:
    (tmp_path / "book.gz").write_bytes(gzip.compress(b"words"))
    assert [document.content for document in read_all(tmp_path / "book.gz")] == [b"words"]
