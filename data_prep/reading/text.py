"""Read documents from text files: at separators, and long ones in pieces.

A text of up to 32 MiB is one document, or several if it has separators. A longer one, and one in
BookCorpus's form (one lower-case sentence a line), is taken in blocks of bytes. It is cut at each
separator; and in a block without a separator at the first paragraph end, else line end, else space,
else between two characters, unless the block is the last and less than half. Each cut depends on
its own block alone, so that ranges of blocks can be read apart and give the documents of the whole.
"""

import codecs
import io
import re
from collections.abc import Iterator
from io import BufferedReader
from typing import TYPE_CHECKING

from data_prep.cleaning.encodings import checked, marked_encoding, unmarked
from data_prep.reading.documents import (
    DOCUMENT_BYTES,
    Document,
    Form,
    LeftOut,
    ReadOptions,
    document_of,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK_BYTES = 16 << 20
"""Ranges of text begin and end at a multiple of this many bytes."""

_SENTENCES_BYTES = 1 << 20
_SNIFF_BYTES = 64 << 10
_PARAGRAPH_SEARCH_BYTES = 1 << 20
_PARAGRAPH_END = re.compile(rb"\n[ \t\r]*\n")
_BOOKCORPUS_NAME = re.compile(r"books_large_p\d+\.txt$")
_SENTENCE_END = frozenset(b". ! ? '' \" : ; ) ... '".split())

Piece = tuple[int, bytes]
"""Part of a text, and the byte at which it begins."""


def read_text(
    name: str, title: str, stream: BufferedReader, options: ReadOptions
) -> Iterator[Document | LeftOut]:
    """Yield the documents of a whole text; one with many broken characters is left out.

    Args:
        name: The name of the documents.
        title: The file name of the text itself, which may tell its form.
        stream: The text, at its beginning.
        options: The separator and the encoding.
    """
    wide = encoding_of(stream, options.encoding) if is_wide(stream, options.encoding) else None
    stream = as_utf8(stream, wide or "utf-8")
    head = stream.read(DOCUMENT_BYTES + 1)
    form = _form(title, head[:_SNIFF_BYTES])
    if form == "sentences":
        block = _SENTENCES_BYTES
    else:
        block = BLOCK_BYTES if len(head) > DOCUMENT_BYTES else DOCUMENT_BYTES
    separator = options.separator.encode()
    pieces = _pieces(_Chain(head, stream), 0, None, block, separator)
    first, second = next(pieces, (0, b"")), next(pieces, None)
    if second is None:
        yield _document(name, first[1], form, wide)
        return
    for number, (_, data) in enumerate(_chained(first, second, pieces), 1):
        yield _document(f"{name}#{number}", data, form, wide)


def read_text_range(
    name: str, stream: BufferedReader, begin: int, end: int, options: ReadOptions
) -> Iterator[Document]:
    """Yield the documents that begin in a range of a long text.

    Args:
        name: The name of the file.
        stream: The file, which must be able to seek.
        begin: The first byte of the range, a multiple of BLOCK_BYTES.
        end: The byte after the range, a multiple of BLOCK_BYTES or the size of the file.
        options: The separator.
    """
    form = _form(name, stream.read(_SNIFF_BYTES))
    stream.seek(begin)
    block = _SENTENCES_BYTES if form == "sentences" else BLOCK_BYTES
    for offset, data in _pieces(stream, begin, end, block, options.separator.encode()):
        yield Document(f"{name}@{offset}", data, form)


def is_wide(stream: BufferedReader, encoding: str | None) -> bool:
    """Tell whether a line end is not the one byte of ASCII, as in UTF-16."""
    return "\n".encode(encoding_of(stream, encoding)) != b"\n"


def encoding_of(stream: BufferedReader, stated: str | None) -> str:
    """Return the encoding by a byte-order mark, else the stated one, else UTF-8."""
    name = marked_encoding(stream.peek(4)[:4]) or unmarked(stated or "utf-8")
    return "utf-8" if name == "utf-8-sig" else name


def as_utf8(stream: BufferedReader, encoding: str) -> BufferedReader:
    """Return a stream in an encoding as UTF-8, with U+FFFD for broken bytes."""
    if encoding == "utf-8":
        return stream
    return BufferedReader(_Utf8Stream(stream, encoding), 1 << 18)


def _pieces(
    stream: "BufferedReader | _Chain", begin: int, end: int | None, block: int, separator: bytes
) -> Iterator[Piece]:
    """Yield the pieces whose cuts lie in the bytes `begin` to `end`, without blank ones.

    `begin` is a multiple of `block`, and `stream` is there.
    """
    overlap = max(0, len(separator) - 1)
    base, position = begin, 0
    parts: list[bytes] = []
    opened = 0 if begin == 0 else None  # where the piece being collected begins
    rest = b""
    while True:
        window = rest + stream.read(block + overlap - len(rest))
        size = min(block, len(window))
        for start, stop in _cuts(window, size, block, separator, first=base == 0):
            if opened is not None:
                parts.append(window[position:start])
                if data := _joined(parts):
                    yield opened, data
            if end is not None and base + start >= end:
                return
            parts, opened, position = [], base + stop, stop
        if opened is not None:
            parts.append(window[position:size])
        position = max(0, position - size)
        rest = window[size:]
        base += size
        if size < block:
            break
    if opened is not None and (data := _joined(parts)):
        yield opened, data


def _cuts(
    window: bytes, size: int, block: int, separator: bytes, first: bool
) -> Iterator[tuple[int, int]]:
    """Yield where pieces end and begin in a block, the first `size` bytes of `window`."""
    place = window.find(separator) if separator else -1
    if place >= 0:
        while 0 <= place < size:
            yield place, place + len(separator)
            place = window.find(separator, place + len(separator))
    elif not first and size >= block // 2:
        place = _good_place(window, size)
        yield place, place


def _good_place(window: bytes, size: int) -> int:
    if found := _PARAGRAPH_END.search(window, 0, min(size, _PARAGRAPH_SEARCH_BYTES)):
        return found.end()
    if place := window.find(b"\n", 0, size) + 1 or window.find(b" ", 0, size) + 1:
        return place
    while place < 3 and window[place] & 0xC0 == 0x80:
        place += 1
    return place


def _joined(parts: list[bytes]) -> bytes:
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    return b"" if data.isspace() else data


def _chained(first: Piece, second: Piece, pieces: Iterator[Piece]) -> Iterator[Piece]:
    yield first
    yield second
    yield from pieces


def _document(name: str, data: bytes, form: Form, wide: str | None) -> Document | LeftOut:
    if wide is None:
        return Document(name, data, form)
    return document_of(name, checked(data.decode("utf-8", "replace"), wide), form)


def _form(title: str, head: bytes) -> Form:
    """Tell from the file name or the first 64 KiB whether each line is a sentence of BookCorpus.

    Those must have 20 lines or more, no blank line, no upper-case letter, and punctuation after a
    space at the end of nine tenths of the lines.
    """
    if _BOOKCORPUS_NAME.search(title):
        return "sentences"
    if head != head.lower():
        return "text"
    lines = head.rstrip().splitlines()
    if len(lines) < 20 or not all(map(bytes.strip, lines)):
        return "text"
    ends = [line.split()[-1] in _SENTENCE_END for line in lines[:-1]]
    return "sentences" if sum(ends) >= 0.9 * len(ends) else "text"


class _Chain:
    """Bytes that were read already, and the stream they are from."""

    def __init__(self, head: bytes, stream: BufferedReader) -> None:
        self._head = io.BytesIO(head)
        self._stream = stream

    def read(self, size: int) -> bytes:
        data = self._head.read(size)
        return data if len(data) == size else data + self._stream.read(size - len(data))


class _Utf8Stream(io.RawIOBase):
    """Stream that gives the text of another as UTF-8."""

    def __init__(self, stream: BufferedReader, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        while not self._ready:
            data = self._stream.read(1 << 16)
            self._ready = self._decoder.decode(data, final=not data).encode("utf-8", "replace")
            if not data:
                break
        size = min(len(view), len(self._ready))
        view[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size
