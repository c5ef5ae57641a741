"""Test that damaged files are refused by name, and that hostile ones do no harm."""

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from backports import zstd
from pyarrow import parquet

from data_prep.reading import containers, unpacking
from gpt_dist.errors import DataError
from tests.reading import add_member, read_all, reasons_in, texts_of

MIB = 1 << 20
LEADS_OUT = "path that leads out of its archive"
# Neither too short to be cut, nor so even that it unpacks to 100 times its size.
TEXT = "".join(f"Line {number * number} of a text.\n" for number in range(5000)).encode()


def tar_of(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members:
            add_member(archive, name, data)
    return buffer.getvalue()


def zip_of(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def parquet_of(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": texts}), buffer, compression="zstd")
    return buffer.getvalue()


WHOLE: dict[str, Callable[[], bytes]] = {
    "a.tar": lambda: tar_of(("a.txt", TEXT)),
    "a.tar.gz": lambda: gzip.compress(tar_of(("a.txt", TEXT))),
    "a.tar.xz": lambda: lzma.compress(tar_of(("a.txt", TEXT))),
    "a.tar.zst": lambda: zstd.compress(tar_of(("a.txt", TEXT))),
    "a.txt.bz2": lambda: bz2.compress(TEXT),
    "a.jsonl.gz": lambda: gzip.compress(b'{"text": "fine"}\n' * 9),
    "a.zip": lambda: zip_of(("a.txt", TEXT)),
    "a.epub": lambda: zip_of(("a.txt", TEXT)),
    "a.parquet": lambda: parquet_of([TEXT.decode()]),
    "b.tar": lambda: tar_of(("deep/a.txt.xz", lzma.compress(TEXT)[:-6])),
    "b.zip": lambda: zip_of(("a.tar", tar_of(("a.txt", TEXT))[:900])),
}


@pytest.mark.parametrize("name", WHOLE)
def test_truncated_files_are_named(tmp_path: Path, name: str) -> None:
    data = WHOLE[name]()
    (tmp_path / name).write_bytes(data if name.startswith("b") else data[: len(data) * 2 // 3])
    with pytest.raises(DataError, match=rf"{name}: cannot be read"):
        read_all(tmp_path / name)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.xz", "a.tar.zst", "a.txt.bz2", "a.zip"])
def test_changed_bytes_are_found(tmp_path: Path, name: str) -> None:
    data = bytearray(WHOLE[name]())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=rf"{name}: cannot be read"):
        read_all(tmp_path / name)


def test_damaged_tar_header_is_named(tmp_path: Path) -> None:
    data = bytearray(tar_of(("a.txt", b"one"), ("b.txt", b"two")))
    data[1024:1030] = b"XXXXXX"
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tar: cannot be read"):
        read_all(tmp_path / "a.tar")


def test_members_that_are_no_files_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "in" / "evil.tar"
    file.parent.mkdir()
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)
    with tarfile.open(file, "w") as archive:
        add_member(archive, "../evil.txt", b"climbs out")
        add_member(archive, "/tmp/evil-absolute.txt", b"is absolute")
        for kind in kinds:
            member = tarfile.TarInfo(f"{kind.decode()}.txt")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        add_member(archive, "line\nend.txt", b"named")
        add_member(archive, "a/.ssh.txt", b"hidden")
    documents, left_out = read_all(file)
    assert [document.content for document in documents] == [b"named"]
    assert documents[-1].name == "evil.tar:line\ufffdend.txt"
    assert [(item.name, item.reason) for item in left_out] == [
        ("evil.tar:../evil.txt", LEADS_OUT),
        ("evil.tar:/tmp/evil-absolute.txt", LEADS_OUT),
        *((f"evil.tar:{kind.decode()}.txt", "not a regular file") for kind in kinds),
        ("evil.tar:a/.ssh.txt", "hidden"),
    ]
    assert sorted(tmp_path.rglob("*")) == [file.parent, file]
    assert not Path("/tmp/evil-absolute.txt").exists()


@pytest.mark.row(22, case="archives with paths that lead out")
@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_paths_that_lead_out_of_an_archive_are_left_out(
    tmp_path: Path, pack: Callable[..., bytes]
) -> None:
    out = [
        *("../out.txt", "../../etc/out.txt", "a/../../out.txt", "/etc/out.txt", "//out.txt"),
        *("..\\out.txt", "a\\..\\..\\out.txt", "C:\\out.txt", "c:/out.txt"),
    ]
    inside = ["a/../in.txt", "./in.txt", "a..b/in.txt", "..in/in.txt", "Q: a.txt", "a\\in.txt"]
    inner = pack(*((name, b"out") for name in out))
    members = [(name, b"text") for name in (*out, *inside)]
    (tmp_path / "a").write_bytes(pack(*members, ("inner", inner), ("../b", inner)))
    documents, left_out = read_all(tmp_path / "a")
    assert [document.name for document in documents] == [f"a:{name}" for name in inside]
    assert [item.name for item in left_out if item.reason == LEADS_OUT] == [
        *(f"a:{name}" for name in out),
        *(f"a:inner:{name}" for name in out),
        "a:../b",
    ]
    assert len(left_out) == 2 * len(out) + 1


def test_zip_members_that_are_of_no_use_are_left_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link.txt")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("../out.txt", "climbs out")
        archive.writestr("locked.txt", "no")
        archive.writestr("method.txt", "no")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    # The directory: the flag of encryption, and method 9 (deflate64).
    data[data.rindex(b"locked.txt") - 46 + 8] |= 1
    data[data.rindex(b"method.txt") - 46 + 10] = 9
    (tmp_path / "a.zip").write_bytes(data)
    assert texts_of(tmp_path / "a.zip") == []
    assert reasons_in(tmp_path / "a.zip") == {
        "a.zip:../out.txt": LEADS_OUT,
        "a.zip:link.txt": "not a regular file",
        "a.zip:locked.txt": "encrypted",
        "a.zip:method.txt": "zip method that is not read (unpack it)",
    }


ZEROS = bytes(20 * MIB)


@pytest.mark.row(22, case="archives that unpack to much more")
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("bomb.txt.gz", lambda: gzip.compress(ZEROS)),
        ("bomb.txt.bz2", lambda: bz2.compress(ZEROS)),
        ("bomb.txt.zst", lambda: zstd.compress(ZEROS)),
        ("bomb.tar.xz", lambda: lzma.compress(tar_of(("bomb.txt", ZEROS)), preset=0)),
        ("bomb.zip", lambda: zip_of(("bomb.txt", ZEROS))),
        ("bomb.epub", lambda: zip_of(("META-INF/container.xml", ZEROS))),
        ("bomb.jsonl.gz", lambda: gzip.compress(b'{"text": "%b"}\n' % bytes(MIB) * 20)),
        ("nested.zip", lambda: zip_of(("bomb.txt.zst", zstd.compress(ZEROS)))),
        ("many.zip", lambda: zip_of(*((f"{n}.txt", bytes(2 * MIB)) for n in range(9)))),
        ("bomb.parquet", lambda: parquet_of(["x" * MIB] * 99)),
        ("nested.tar", lambda: tar_of(("bomb.parquet", parquet_of(["x" * MIB] * 99)))),
    ],
)
def test_bombs_are_refused(tmp_path: Path, name: str, make: Callable[[], bytes]) -> None:
    (tmp_path / name).write_bytes(make())
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"{name}: unpacks to more than 100 times"):
        read_all(tmp_path / name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 160 * MIB


def test_members_have_a_limit_and_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "_MAX_MEMBERS", 9)
    for name, data in {
        "a.zip": zip_of(*((f"{number}.png", b"") for number in range(10))),
        "a.tar": tar_of(*((f"{number}.png", b"") for number in range(10))),
        "b.tar": tar_of(("a.tar", tar_of(*((f"{number}.txt", b"") for number in range(9))))),
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=rf"{name}: more than 9 members"):
            read_all(tmp_path / name)


def test_archives_nest_eight_deep(tmp_path: Path) -> None:
    data = b"words"
    for depth in range(9):
        if depth == 8:
            (tmp_path / "eight.zip").write_bytes(data)
        data = zip_of(("in.zip" if depth else "in.txt", data), method=zipfile.ZIP_STORED)
    (tmp_path / "nine.zip").write_bytes(data)
    assert texts_of(tmp_path / "eight.zip") == ["words"]
    (reason,) = reasons_in(tmp_path / "nine.zip").values()
    assert reason == "archives more than 8 deep"


def test_a_long_tar_header_is_refused(tmp_path: Path) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        header = tarfile.TarInfo("header")
        header.type, header.size = kind, 64 * MIB
        for name, before in {
            "first.tar": b"",
            "later.tar": tar_of(("a.txt", b"words"))[:1024],
        }.items():
            (tmp_path / name).write_bytes(before + header.tobuf() + bytes(64 * MIB))
            with pytest.raises(DataError, match=f"{name}: cannot be read .*header of more than"):
                read_all(tmp_path / name)


def test_what_must_be_held_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "_HELD_BYTES", 2 * MIB)
    inner = zip_of(("a.txt", os.urandom(MIB)), method=zipfile.ZIP_STORED)
    outer = zip_of(("inner.zip", inner), ("b.txt", b"read"), method=zipfile.ZIP_STORED)
    (tmp_path / "a.tar").write_bytes(tar_of(("outer.zip", outer), ("c.txt", b"read too")))
    documents, left_out = read_all(tmp_path / "a.tar")
    assert [document.content for document in documents] == [b"read", b"read too"]
    assert [item.name for item in left_out] == ["a.tar:outer.zip:inner.zip"]
    assert "MiB in an archive (unpack it)" in left_out[0].reason


def test_a_long_zip_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "_DIRECTORY_BYTES", 400)
    (tmp_path / "a.zip").write_bytes(zip_of(*((f"{number}.txt", b"") for number in range(10))))
    with pytest.raises(DataError, match=r"a\.zip: cannot be read \(a directory of more than"):
        read_all(tmp_path / "a.zip")


def test_xz_that_needs_much_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 512 * MIB}]
    small = [{"id": lzma.FILTER_LZMA2, "dict_size": 64 * MIB}]
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(TEXT, filters=filters))
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(TEXT, filters=small))
    with pytest.raises(DataError, match=r"a\.txt\.xz: .*[Mm]emory"):
        read_all(tmp_path / "a.txt.xz")
    assert texts_of(tmp_path / "b.txt.xz") == [TEXT.decode()]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz", "a.txt.bz2", "a.txt.zst"])
def test_packed_files_one_after_another_are_read(tmp_path: Path, name: str) -> None:
    pack = {"gz": gzip, "xz": lzma, "bz2": bz2, "zst": zstd}[name[6:]].compress
    (tmp_path / name).write_bytes(pack(b"one ") + pack(b"two"))
    assert texts_of(tmp_path / name) == ["one two"]


def test_random_bytes_do_no_harm(tmp_path: Path) -> None:
    for name in ("txt", "json", "jsonl", "html", "xhtml", "md"):
        (tmp_path / f"a.{name}").write_bytes(bytes(range(256)) * 99)
        read_all(tmp_path / f"a.{name}")
    for name in ("gz", "xz", "bz2", "zst", "tar", "zip", "epub", "parquet"):
        (tmp_path / f"a.{name}").write_bytes(bytes(range(256)) * 99)
        with pytest.raises(DataError, match=rf"a\.{name}: cannot be read"):
            read_all(tmp_path / f"a.{name}")
