"""Test which files of an input are found, and that the others are named."""

import os
import shutil
import socket
import subprocess
import zipfile
from pathlib import Path

import pytest

from data_prep.reading.documents import LeftOut, ReadOptions
from data_prep.sources import Source, find_sources
from gpt_dist.errors import DataError
from tests.reading import reasons_in, texts_of

SAMPLE_BOOKS = Path(__file__).parents[2] / "data_prep/sample_books"
FIXTURES = Path(__file__).parents[1] / "fixtures" / "text"


def found(
    *inputs: Path, follow_links: bool = True, suffixes: tuple[str, ...] = ()
) -> tuple[list[str], dict[str, str]]:
    sources, left_out = find_sources(inputs, follow_links, suffixes)
    return [source.name for source in sources], {item.name: item.reason for item in left_out}


def make(path: Path, content: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_the_sample_books_are_nine_documents() -> None:
    names, left_out = found(SAMPLE_BOOKS)
    assert left_out == {}
    assert len(names) == 9
    assert all(name.count("___") == 1 for name in names)


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURES / "linked", tmp_path / "linked")
    shutil.copytree(FIXTURES / "store", tmp_path / "store")
    (tmp_path / "linked" / "elsewhere").symlink_to("../store/more")
    (tmp_path / "linked" / "gone").symlink_to("../store/absent")
    return tmp_path / "linked"


def test_folder_is_read_in_order_and_others_are_named(tmp_path: Path) -> None:
    for name in ("b/c.txt", "a.txt", "b.txt", "B.TXT", "no suffix", "Vol. 2", "Mr. Smith"):
        make(tmp_path / "books" / name)
    for name in ("cover.png", "b/paper.PDF", ".hidden.txt", ".git/config"):
        make(tmp_path / "books" / name)
    names, left_out = found(tmp_path / "books")
    assert names == [
        f"books/{name}"
        for name in ("B.TXT", "Mr. Smith", "Vol. 2", "a.txt", "b/c.txt", "b.txt", "no suffix")
    ]
    assert left_out == {
        "books/.git": "hidden",
        "books/.hidden.txt": "hidden",
        "books/b/paper.PDF": "not read: .pdf (convert it with pdftotext or the like)",
        "books/cover.png": "not read: .png",
    }


def test_files_of_other_suffixes_are_read_if_the_user_names_them(tmp_path: Path) -> None:
    make(tmp_path / "code" / "a.py", "print()")
    make(tmp_path / "code" / "b.rs")
    (tmp_path / "code" / "c.PY").write_bytes(bytes(range(32)))
    with zipfile.ZipFile(tmp_path / "code" / "d.zip", "w") as archive:
        archive.writestr("e.py", "pass")
    _, left_out = found(tmp_path / "code")
    remedy = "if it is text, give --read-suffix"
    assert left_out["code/a.py"] == f"not read: .py ({remedy} py)"
    assert left_out["code/b.rs"] == f"not read: .rs ({remedy} rs)"
    with pytest.raises(DataError, match=rf"a\.py: not read: \.py \({remedy} py\)"):
        find_sources([tmp_path / "code" / "a.py"])
    names, _ = found(tmp_path / "code", tmp_path / "code" / "a.py", suffixes=("py",))
    assert names == ["code/a.py", "code/c.PY", "code/d.zip", "a.py"]
    options = ReadOptions(suffixes=("py",))
    assert texts_of(tmp_path / "code" / "d.zip", options=options) == ["pass"]
    assert reasons_in(tmp_path / "code" / "d.zip") == {"d.zip:e.py": f"not read: .py ({remedy} py)"}


def test_links_are_followed_and_dead_ones_named(linked: Path) -> None:
    sources, left_out = find_sources([linked])
    assert [(source.name, source.target) for source in sources] == [
        ("linked/elsewhere/0.txt", "../store/more/0.txt"),
        ("linked/elsewhere/1.txt", "../store/more/1.txt"),
        ("linked/own/0.txt", None),
        ("linked/own/1.txt", None),
    ]
    assert left_out == [LeftOut("linked/gone", "dead link")]


def test_links_are_not_followed_if_unwanted(linked: Path) -> None:
    (linked / "file.txt").symlink_to("own/0.txt")
    names, left_out = found(linked, follow_links=False)
    assert names == ["linked/own/0.txt", "linked/own/1.txt"]
    assert left_out == {f"linked/{name}": "link" for name in ("elsewhere", "file.txt", "gone")}


def test_links_that_loop_end(tmp_path: Path) -> None:
    make(tmp_path / "books" / "deep" / "a.txt")
    (tmp_path / "books" / "deep" / "up").symlink_to("..")
    (tmp_path / "books" / "self").symlink_to("self")
    names, left_out = found(tmp_path / "books")
    assert names == ["books/deep/a.txt"]
    assert left_out == {
        "books/deep/up": "link to a folder around it",
        "books/self": "dead link",
    }


def test_links_do_not_multiply_folders(tmp_path: Path) -> None:
    for level in range(40):
        for name in "ab":
            folder = tmp_path / f"level{level}"
            folder.mkdir(exist_ok=True)
            (folder / name).symlink_to(f"../level{level + 1}")
    make(tmp_path / "level40" / "a.txt")
    names, _ = found(tmp_path / "level0")
    assert names == ["level0" + "/a" * 40 + "/a.txt"]


def test_linked_input_is_followed_in_any_case(tmp_path: Path) -> None:
    file = make(tmp_path / "store" / "book.txt")
    (tmp_path / "link.txt").symlink_to(file)
    (tmp_path / "folder").symlink_to("store")
    sources, _ = find_sources([tmp_path / "link.txt", tmp_path / "folder"], follow_links=False)
    assert sources == [
        Source("link.txt", tmp_path / "link.txt", str(file)),
        Source("store/book.txt", tmp_path / "folder" / "book.txt", "store/book.txt"),
    ]


def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    make(tmp_path / "books" / "line\nend.txt")
    os.mkfifo("books/fifo.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("books/socket.txt")
        names, left_out = found(Path("books"))
    assert names == ["books/line\ufffdend.txt"]
    assert left_out == dict.fromkeys(["books/fifo.txt", "books/socket.txt"], "not a regular file")
    with pytest.raises(DataError, match=r"fifo\.txt: not a regular file"):
        found(Path("books/fifo.txt"))


def test_what_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "books" / "secret.txt")
    make(tmp_path / "books" / "vault" / "a.txt")
    make(tmp_path / "books" / "open.txt")
    # The user who tests may be root, whom no permission stops.
    opens, lists = os.access, os.listdir

    def listdir(path: Path) -> list[str]:
        if path.name == "vault":
            raise PermissionError(13, "Permission denied")
        return lists(path)

    monkeypatch.setattr(os, "listdir", listdir)
    monkeypatch.setattr(
        os, "access", lambda path, mode: path.name != "secret.txt" and opens(path, mode)
    )
    names, left_out = found(tmp_path / "books")
    assert names == ["books/open.txt"]
    assert left_out == dict.fromkeys(
        ["books/secret.txt", "books/vault"], "cannot be opened (Permission denied)"
    )


def test_deep_folders_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):  # beyond Python's recursion
        os.mkdir("d", dir_fd=descriptor)
        below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    file = os.open("a.txt", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
    os.close(file)
    os.close(descriptor)
    try:
        names, _ = found(folder)
    finally:  # pytest cannot remove it
        subprocess.run(["rm", "-r", folder], check=True)
    assert names == ["/".join(["d"] * 1200) + "/a.txt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent.txt", "no such file"), ("gone.txt", "no such file"), ("book.pdf", "pdftotext")],
)
def test_unreadable_input_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "book.pdf").write_bytes(b"")
    (tmp_path / "gone.txt").symlink_to("absent.txt")
    with pytest.raises(DataError, match=rf"{name}: .*{message}"):
        find_sources([tmp_path / name])
