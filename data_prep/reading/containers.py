"""Read files by their kind, and files inside packed files and archives, to any honest depth.

Members are read one after another and never written to disk. Whatever an archive says, only regular
files are read; links, devices, hidden members and those whose path leads out of the archive are
left out by name. The limits:
- A file unpacks to 16 MiB or 100 times its size, whichever is more, all that is in it together.
- It has a million members. Archives nest 8 deep.
- A header of a tar has 4 MiB, the directory of a zip 64 MiB, the memory to unpack xz 256 MiB.
- What must be held to be read (a zip, epub or parquet file inside an archive) has 64 MiB.
"""

import io
import posixpath
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO

from data_prep.cleaning.encodings import decode, is_unlikely
from data_prep.reading.documents import Document, LeftOut, ReadOptions, printable
from data_prep.reading.kinds import (
    ARCHIVES,
    HEAD_BYTES,
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
from data_prep.reading.unpacking import Budget, buffered, unpack

_MAX_DEPTH = 8
_HEADER_BYTES = 4 << 20
_DIRECTORY_BYTES = 64 << 20
_HELD_BYTES = 64 << 20
_TAR_BUFFER_BYTES = 1 << 18
_INSTALL = "pip install 'gpt_dist[text]'"
_DRIVE = re.compile("[a-z]:/", re.IGNORECASE)
_ZIP_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}

Items = Iterator[Document | LeftOut]


def kind_in(title: str, stream: BufferedReader) -> Kind | None:
    """Return how a file of this name is read; its content decides if the name does not."""
    named, found = kind_of(title), sniff(stream.peek()[:HEAD_BYTES])
    return found if named is None or (named == "text" and found in ARCHIVES) else named


class FileReader:
    """Reader of one file and of all that is packed in it, within one budget."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        """Make a reader of the file at `path`."""
        self._options = options
        self._budget = Budget(path)
        self._held = 0  # bytes

    def read(self, name: str, title: str, stream: BufferedReader, depth: int = 0) -> Items:
        """Yield the documents of a file, and what is left out of it.

        Args:
            name: The name of the documents.
            title: The name of the file itself, which says how it is read.
            stream: Its content.
            depth: The number of archives around it.
        """
        kind = kind_in(title, stream)
        try:
            if depth > _MAX_DEPTH:
                yield LeftOut(name, f"archives more than {_MAX_DEPTH} deep")
            elif kind is None:
                yield LeftOut(name, NOT_TEXT)
            elif kind in {"text", "json", "jsonl"} and (fault := self._encoding_fault(stream)):
                yield LeftOut(name, fault)
            elif kind == "text":
                yield from read_text(name, title, stream, self._options)
            elif kind in {"json", "jsonl"}:
                yield from read_json(name, kind, stream, self._options)
            elif kind in {"html", "xml"}:
                from data_prep.reading.markup import read_markup  # needs the extra `text`

                yield from read_markup(name, kind, stream, self._options)
            elif kind in PACKED:
                content = buffered(unpack(kind, stream), self._budget)
                yield from self.read(name, unpacked_name(title), content, depth + 1)
            elif kind == "tar":
                yield from self._read_tar(name, stream, depth)
            else:
                yield from self._read_seekable(name, kind, stream, depth)
        except ModuleNotFoundError as error:
            yield LeftOut(name, f"not read: .{kind} without {error.name} ({_INSTALL})")

    def _encoding_fault(self, stream: BufferedReader) -> str | None:
        head, encoding = stream.peek()[:HEAD_BYTES], self._options.encoding
        return decode(head, encoding).fault if encoding and is_unlikely(head, encoding) else None

    def _read_seekable(self, name: str, kind: Kind, stream: BufferedReader, depth: int) -> Items:
        if depth == 0:
            yield from self._read_file(name, kind, stream, depth)
            return
        data = stream.read(_HELD_BYTES - self._held + 1)
        if len(data) > _HELD_BYTES - self._held:
            reason = f".{kind} of more than {_HELD_BYTES >> 20} MiB in an archive (unpack it)"
            yield LeftOut(name, reason)
            return
        self._held += len(data)
        yield from self._read_file(name, kind, io.BytesIO(data), depth)
        self._held -= len(data)

    def _read_file(
        self, name: str, kind: Kind, file: BufferedReader | io.BytesIO, depth: int
    ) -> Items:
        if kind == "parquet":
            from data_prep.reading.tables import read_parquet  # needs the extra `text`

            yield from read_parquet(name, file, self._options, self._budget)
            return
        with _zip_faults():
            archive = zipfile.ZipFile(_ZipStream(file))
        with archive:
            if kind == "epub":
                from data_prep.reading.epub import read_epub  # needs the extra `text`

                yield read_epub(name, archive, self._budget, self._options)
            else:
                yield from self._read_zip(name, archive, depth)

    def _read_zip(self, name: str, archive: zipfile.ZipFile, depth: int) -> Items:
        for member in archive.infolist():
            self._budget.count_member()
            if member.filename.endswith("/"):
                continue
            label, title = _member_names(name, member.filename)
            mode = stat.S_IFMT(member.external_attr >> 16)
            regular = mode in {0, stat.S_IFREG}
            if reason := self._reason_against(member.filename, title, regular):
                yield LeftOut(label, reason)
            elif member.flag_bits & 1:
                yield LeftOut(label, "encrypted")
            elif member.compress_type not in _ZIP_METHODS:
                yield LeftOut(label, "zip method that is not read (unpack it)")
            else:
                with _zip_faults():
                    content = archive.open(member)
                with content:
                    counted = buffered(content, self._budget)
                    yield from self.read(label, title, counted, depth + 1)

    def _read_tar(self, name: str, stream: BufferedReader, depth: int) -> Items:
        for archive, member in _tar_members(stream):
            self._budget.count_member()
            if member.isdir():
                continue
            label, title = _member_names(name, member.name)
            regular = member.isreg() and not member.issparse()
            if reason := self._reason_against(member.name, title, regular):
                yield LeftOut(label, reason)
                continue
            content = archive.extractfile(member)
            assert content is not None
            yield from self.read(label, title, buffered(content), depth + 1)

    def _reason_against(self, path: str, title: str, regular: bool) -> str | None:
        if _leads_out(path):
            return "path that leads out of its archive"
        if title.startswith("."):
            return HIDDEN
        return refusal(title, self._options.suffixes) if regular else NOT_REGULAR


@contextmanager
def _zip_faults() -> Iterator[None]:
    """Raise BadZipFile for any way in which zipfile shows damage."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise zipfile.BadZipFile(str(error)) from error


def _tar_members(stream: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield each member with its archive, which holds no other, and check that the tar is whole."""
    guard = _TarStream(stream)
    with tarfile.open(fileobj=guard, mode="r|", bufsize=_TAR_BUFFER_BYTES) as archive:
        while member := archive.next():
            archive.members.clear()  # type: ignore[attr-defined]  # not in typeshed
            guard.allowance = None
            yield archive, member
            # tarfile goes past the content of such members in small steps.
            skips = member.isreg() or member.type not in tarfile.SUPPORTED_TYPES
            end = member.offset_data + member.size if skips else 0
            assert archive.fileobj is not None
            guard.allow(max(0, end - archive.fileobj.tell()) + _HEADER_BYTES)
        # tarfile takes a damaged header for the end, and a checksum is checked only at the end.
        guard.allowance = None
        assert archive.fileobj is not None
        while block := archive.fileobj.read(1 << 20):
            if block.strip(b"\0"):
                raise tarfile.ReadError("data after the end of the archive")


def _member_names(archive: str, member: str) -> tuple[str, str]:
    """Return the full and the own name of a member."""
    return printable(f"{archive}:{member}"), printable(member.rpartition("/")[2])


def _leads_out(path: str) -> bool:
    """Tell whether the path of a member is absolute or leads above the archive, on any system."""
    path = posixpath.normpath(path.replace("\\", "/"))
    return path.startswith(("/", "../")) or _DRIVE.match(path) is not None


class _TarStream(io.RawIOBase):
    """Stream that refuses a header which is longer than allowed, since tarfile holds it whole."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.allowance: int | None = _HEADER_BYTES

    def allow(self, size: int) -> None:
        self.allowance = size

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        if self.allowance is not None:
            self.allowance -= len(data)
            if self.allowance < 0:
                raise tarfile.ReadError(f"a header of more than {_HEADER_BYTES >> 20} MiB")
        return data


class _ZipStream(BufferedReader):
    """Stream that refuses a directory which is too long, since zipfile holds it whole."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of more than {_DIRECTORY_BYTES >> 20} MiB")
        return super().read(size)
