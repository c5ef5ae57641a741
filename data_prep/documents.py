"""Read documents as a stream from text files, jsonl files and archives.

The rules:
- A text file is one document. A file of more than 32 MiB is cut into several, at a line end if
  there is one, else at a space, else between any two characters.
- BookCorpus's form (one lower-case sentence a line, see `_is_bookcorpus`) does not show where a
  book ends. It is cut at line ends into documents of 1 MiB.
- Each line of a jsonl file is one document: an object with a text field, of at most 32 MiB.
- Members of archives are read one after another and never written to disk. Only regular `.txt` and
  `.jsonl` files are read, plain or `.gz`. Hidden members are ignored, others counted as skipped.
- An archive is refused if it is broken, has more than a million members, or unpacks to more than
  16 MiB and 100 times its size.
"""

import codecs
import gzip
import io
import json
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Protocol

from data_prep.reading.documents import Document, Form
from data_prep.sources import Source, printable
from gpt_dist.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

DOCUMENT_BYTES = 32 << 20
_SENTENCES_BYTES = 1 << 20
_SNIFF_BYTES = 64 << 10
_UNPACK_RATIO = 100
_UNPACK_FLOOR = 16 << 20
_MAX_MEMBERS = 1_000_000
_BROKEN = (EOFError, gzip.BadGzipFile, lzma.LZMAError, tarfile.TarError, zlib.error)
_BROKEN_ZIP = (zipfile.BadZipFile, NotImplementedError, RuntimeError)
_MEMBER = re.compile(r"\.(txt|jsonl)(\.gz)?$", re.IGNORECASE)
_BOOKCORPUS_NAME = re.compile(r"books_large_p\d+\.txt$")
_SENTENCE_END = frozenset(b". ! ? '' \" : ; ) ... '".split())


class SourceReader:
    """Reader of documents that collects the names of skipped archive members in `skipped`."""

    def __init__(self, text_field: str) -> None:
        """Make a reader that takes the text of a jsonl line from its field `text_field`."""
        self._text_field = text_field
        self.skipped: list[str] = []

    def read(self, source: Source) -> Iterator[Document]:
        """Yield the documents of one file in order.

        Raises:
            DataError: The file is broken or unsafe, or has a malformed line; the message names it.
        """
        budget = _Budget(source)
        try:
            with source.path.open("rb") as stream:
                if source.name.lower().endswith(".zip"):
                    yield from self._read_zip(source, stream, budget)
                else:
                    name = re.sub(r"\.t([gx]z)$", r".tar.\1", source.name, flags=re.IGNORECASE)
                    yield from self._read_stream(name, stream, budget)
        except (*_BROKEN, *_BROKEN_ZIP, OSError) as error:
            raise DataError(
                f"{source.path}: cannot be read ({error}); fetch it again, or leave it out"
            ) from error

    def _read_stream(self, name: str, stream: IO[bytes], budget: "_Budget") -> Iterator[Document]:
        kind = name.lower().rpartition(".")[2]
        if kind == "gz":
            with gzip.open(stream) as content:
                yield from self._read_stream(name[:-3], budget.limit(content), budget)
        elif kind == "xz":
            with lzma.open(stream) as content:
                yield from self._read_stream(name[:-3], budget.limit(content), budget)
        elif kind == "tar":
            yield from self._read_tar(name, stream, budget)
        elif kind == "jsonl":
            yield from self._read_jsonl(name, stream)
        else:
            yield from read_text(name, stream)

    def _read_tar(self, name: str, stream: IO[bytes], budget: "_Budget") -> Iterator[Document]:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                budget.count_member()
                regular = member.isreg() and not member.issparse()
                if not member.isdir() and self._is_wanted(f"{name}:{member.name}", regular):
                    content = archive.extractfile(member)
                    assert content is not None
                    yield from self._read_stream(
                        printable(f"{name}:{member.name}"), content, budget
                    )
            # tarfile takes a damaged header for the end, and a checksum is checked only at the end.
            assert archive.fileobj is not None
            while block := archive.fileobj.read(1 << 20):
                if block.strip(b"\0"):
                    raise tarfile.ReadError("data after the end of the archive")

    def _read_zip(self, source: Source, stream: IO[bytes], budget: "_Budget") -> Iterator[Document]:
        with zipfile.ZipFile(stream) as archive:
            for member in archive.infolist():
                budget.count_member()
                name = printable(f"{source.name}:{member.filename}")
                if not member.is_dir() and self._is_wanted(name):
                    with archive.open(member) as content:
                        yield from self._read_stream(name, budget.limit(content), budget)

    def _is_wanted(self, name: str, regular: bool = True) -> bool:
        if name.rpartition(":")[2].rpartition("/")[2].startswith("."):
            return False
        wanted = regular and bool(_MEMBER.search(name))
        if not wanted:
            self.skipped.append(printable(name))
        return wanted

    def _read_jsonl(self, name: str, stream: IO[bytes]) -> Iterator[Document]:
        number = 0
        while line := stream.readline(DOCUMENT_BYTES + 1):
            number += 1
            if len(line) > DOCUMENT_BYTES:
                raise DataError(f"{name}, line {number}: longer than {DOCUMENT_BYTES} bytes")
            if line.strip():
                text = _text_of(line, self._text_field, f"{name}, line {number}")
                yield Document(f"{name}:{number}", text, "record")


def read_text(name: str, stream: IO[bytes]) -> Iterator[Document]:
    """Yield the documents of a text file (see the rules of the module)."""
    data = stream.read(_SNIFF_BYTES)
    form: Form = "sentences" if _is_bookcorpus(name, data) else "text"
    size = _SENTENCES_BYTES if form == "sentences" else DOCUMENT_BYTES
    number = 0
    while True:
        data += stream.read(size + 1 - len(data))
        if len(data) <= size:
            break
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(f"{name}: more than {size} bytes of UTF-16; convert it to UTF-8")
        number += 1
        cut = _cut_position(data, size)
        yield Document(f"{name}#{number}", data[:cut], form)
        data = data[cut:]
    if data or not number:
        yield Document(f"{name}#{number + 1}" if number else name, data, form)


class _Budget:
    """Limit to the bytes and members that one archive may still unpack to."""

    def __init__(self, source: Source) -> None:
        self._path = source.path
        self._bytes = max(_UNPACK_FLOOR, _UNPACK_RATIO * source.path.stat().st_size)
        self._members = _MAX_MEMBERS

    def limit(self, stream: "_Readable") -> IO[bytes]:
        """Return `stream` as a stream that counts the bytes read from it."""
        return io.BufferedReader(_CountedStream(stream, self), 1 << 18)

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
    def __init__(self, stream: _Readable, budget: _Budget) -> None:
        self._stream = stream
        self._budget = budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        data = self._stream.read(len(view))
        self._budget.count_bytes(len(data))
        view[: len(data)] = data
        return len(data)


def _text_of(line: bytes, field: str, place: str) -> str:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not valid JSON ({error})") from error
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError(f'{place}: has no text in field "{field}"; name it with --text-field')
    return text


def _is_bookcorpus(name: str, head: bytes) -> bool:
    """Tell from the file name or the first 64 KiB whether each line is a sentence of BookCorpus.

    Those must have 20 lines or more, no blank line, no upper-case letter, and punctuation after a
    space at the end of nine tenths of the lines.
    """
    if _BOOKCORPUS_NAME.search(name):
        return True
    lines = head.rstrip().splitlines()
    if len(lines) < 20 or head != head.lower() or not all(map(bytes.strip, lines)):
        return False
    ends = [line.split()[-1] in _SENTENCE_END for line in lines[:-1]]
    return sum(ends) >= 0.9 * len(ends)


def _cut_position(data: bytes, size: int) -> int:
    cut = data.rfind(b"\n", 0, size) + 1 or data.rfind(b" ", 0, size) + 1
    if cut:
        return cut
    while size > 1 and data[size] & 0xC0 == 0x80:
        size -= 1
    return size
