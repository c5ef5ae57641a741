"""Read files by their kind, and files inside packed files and archives, to any honest depth.

Members are read one after another and never written to disk. Whatever an archive says, only regular
files are read; links, devices and hidden members are left out by name. The limits:
- A file unpacks to 16 MiB or 100 times its size, whichever is more, all that is in it together.
- It has a million members, in archives at most 8 deep.
- A header is of 4 MiB, the directory of a zip of 64 MiB, the memory to unpack xz of 256 MiB.
"""

import gzip
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from bz2 import BZ2File
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from data_prep.reading.documents import Document, LeftOut, ReadOptions, printable
from data_prep.reading.kinds import (
    ARCHIVES,
    HIDDEN,
    NOT_REGULAR,
    NOT_TEXT,
    PACKED,
    Kind,
    kind_of,
    refusal,
    sniff,
    unpacked_name,
)
from data_prep.reading.rows import read_json
from data_prep.reading.text import read_text
from gpt_dist.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BUFFER_BYTES = 1 << 18

_UNPACK_RATIO = 100
_UNPACK_FLOOR = 16 << 20
_MAX_MEMBERS = 1_000_000
_MAX_DEPTH = 8
_HEADER_BYTES = 4 << 20
_HELD_BYTES = 64 << 20
_INSTALL = "pip install 'gpt_dist[text]'"
_BROKEN = (
    EOFError,
    OSError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}

Items = Iterator[Document | LeftOut]


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Raise a DataError that names the file for any error that damage causes."""
    try:
        yield
    except _BROKEN as error:
        raise DataError(
            f"{path}: cannot be read ({error}); fetch it again, or leave it out"
        ) from error


class FileReader:
    """Reader of one file and of all that is packed in it, within one budget."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        """Make a reader of the file at `path`."""
        self._options = options
        self._budget = _Budget(path)

    def kind(self, title: str, stream: BufferedReader) -> Kind | None:
        """Return how a file is read, by its name, or by its content if that says more."""
        named, found = kind_of(title), sniff(stream.peek())
        if named is None or (named == "text" and found in ARCHIVES):
            return found
        return named

    def read(self, name: str, title: str, stream: BufferedReader, depth: int = 0) -> Items:
        """Yield the documents of a file, and what is left out of it.

        Args:
            name: The name of the documents.
            title: The name of the file itself, which says how it is read.
            stream: Its content.
            depth: The number of archives around it.
        """
        if depth > _MAX_DEPTH:
            yield LeftOut(name, f"archives more than {_MAX_DEPTH} deep")
            return
        kind = self.kind(title, stream)
        try:
            if kind is None:
                yield LeftOut(name, NOT_TEXT)
            elif kind == "text":
                yield from read_text(name, title, stream, self._options)
            elif kind in {"json", "jsonl"}:
                yield from read_json(name, kind, stream, self._options)
            elif kind in PACKED:
                unpacked = self._budget.limited(_unpack(kind, stream))
                yield from self.read(name, unpacked_name(title), unpacked, depth + 1)
            elif kind == "tar":
                yield from self._read_tar(name, stream, depth)
            else:
                yield from self._read_seekable(name, kind, stream, depth)
        except ModuleNotFoundError as error:
            yield LeftOut(name, f"not read: .{kind} without {error.name} ({_INSTALL})")

    def _read_seekable(self, name: str, kind: Kind, stream: BufferedReader, depth: int) -> Items:
        file: IO[bytes] = stream
        if depth:
            data = stream.read(_HELD_BYTES + 1)
            if len(data) > _HELD_BYTES:
                reason = f".{kind} of more than {_HELD_BYTES >> 20} MiB in an archive (unpack it)"
                yield LeftOut(name, reason)
                return
            file = io.BytesIO(data)
        if kind == "zip":
            yield from self._read_zip(name, file, depth)

    def _read_tar(self, name: str, stream: BufferedReader, depth: int) -> Items:
        counted = _CountedStream(stream, None)
        with tarfile.open(fileobj=counted, mode="r|") as archive:
            while member := _next_member(archive, counted):
                self._budget.count_member()
                if member.isdir():
                    continue
                label, title = _member_names(name, member.name)
                regular = member.isreg() and not member.issparse()
                if reason := _reason_against(title, regular):
                    yield LeftOut(label, reason)
                    continue
                content = archive.extractfile(member)
                assert content is not None
                yield from self.read(
                    label,
                    title,
                    BufferedReader(_CountedStream(content, None), BUFFER_BYTES),
                    depth + 1,
                )
            # tarfile takes a damaged header for the end, and a checksum is checked only at the end.
            assert archive.fileobj is not None
            while block := archive.fileobj.read(1 << 20):
                if block.strip(b"\0"):
                    raise tarfile.ReadError("data after the end of the archive")

    def _read_zip(self, name: str, file: IO[bytes], depth: int) -> Items:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                self._budget.count_member()
                if member.is_dir():
                    continue
                label, title = _member_names(name, member.filename)
                mode = stat.S_IFMT(member.external_attr >> 16)
                if reason := _reason_against(title, mode in {0, stat.S_IFREG}):
                    yield LeftOut(label, reason)
                elif member.flag_bits & 1:
                    yield LeftOut(label, "encrypted")
                elif member.compress_type not in _ZIP_METHODS:
                    yield LeftOut(label, "zip method that is not read (unpack it)")
                else:
                    with archive.open(member) as content:
                        yield from self.read(label, title, self._budget.limited(content), depth + 1)


def _next_member(archive: tarfile.TarFile, counted: "_CountedStream") -> tarfile.TarInfo | None:
    return archive.next()


def _unpack(kind: Kind, stream: IO[bytes]) -> "_Readable":
    if kind == "gz":
        return gzip.open(stream)
    if kind == "bz2":
        return BZ2File(stream)
    if kind == "xz":
        return lzma.open(stream)
    from backports import zstd  # an extra

    return zstd.open(stream)


def _member_names(archive: str, member: str) -> tuple[str, str]:
    """Return the full and the own name of a member."""
    label = printable(f"{archive}:{member}")
    return label, printable(member.rpartition("/")[2])


def _reason_against(title: str, regular: bool) -> str | None:
    if title.startswith("."):
        return HIDDEN
    return refusal(title) if regular else NOT_REGULAR


class _Budget:
    """Limit to the bytes and members that one file may still unpack to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes = max(_UNPACK_FLOOR, _UNPACK_RATIO * path.stat().st_size)
        self._members = _MAX_MEMBERS

    def limited(self, stream: "_Readable") -> BufferedReader:
        """Return `stream` as a stream that counts the bytes read from it."""
        return BufferedReader(_CountedStream(stream, self), BUFFER_BYTES)

    def count_member(self) -> None:
        self._members -= 1
        if self._members < 0:
            raise DataError(f"{self._path}: more than {_MAX_MEMBERS} members; split it")

    def count_bytes(self, size: int) -> None:
        self._bytes -= size
        if self._bytes < 0:
            raise DataError(
                f"{self._path}: unpacks to more than {_UNPACK_RATIO} times its size, which text "
                "does not; if you trust it, unpack it and give the folder"
            )


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _CountedStream(io.RawIOBase):
    def __init__(self, stream: _Readable, budget: _Budget | None) -> None:
        self._stream = stream
        self._budget = budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        data = self._stream.read(len(view))
        if self._budget:
            self._budget.count_bytes(len(data))
        view[: len(data)] = data
        return len(data)
