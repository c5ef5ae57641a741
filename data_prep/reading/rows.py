"""Read rows of text from JSON: one value a line, an array, or values one after another.

A row is an object with a text field, or a string. A row that has no text is left out, and so is one
of more than 32 MiB, past which the file is read without holding it.
"""

import codecs
import json
import re
from collections.abc import Iterator
from io import BufferedReader

import orjson

from data_prep.cleaning.encodings import checked
from data_prep.reading.documents import (
    DOCUMENT_BYTES,
    NULL,
    TOO_LONG,
    Document,
    LeftOut,
    ReadOptions,
    document_of,
    no_field,
    not_text,
)
from data_prep.reading.text import as_utf8, encoding_of

_REST_NOT_JSON = "not valid JSON, nor read from here on"

_CHUNK = 1 << 16
_GAP = re.compile(r"[\s,]*")
_MARK = re.compile(r'\\.?|["{}\[\]]', re.DOTALL)
_BAD = LeftOut("", "not valid JSON")
_TOO_LONG = LeftOut("", TOO_LONG)
_NOT_UTF8 = LeftOut("", "not UTF-8 (give --encoding)")
# A broken byte, as Python's handler "surrogateescape" gives it.
_BROKEN = re.compile("[\udc80-\udcff]")


def has_lines(head: bytes, kind: str) -> bool:
    """Tell from the first bytes of a `json` or `jsonl` file whether each line is a value."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if kind == "jsonl" or not start:
        return not start.startswith(b"[")
    line, end, _ = start.partition(b"\n")
    return not start.startswith(b"[") and (not end or not isinstance(_parse(line), LeftOut))


def read_json(
    name: str, kind: str, stream: BufferedReader, options: ReadOptions
) -> Iterator[Document | LeftOut]:
    """Yield the rows of a whole `json` or `jsonl` file, named by line, or by place in its array."""
    encoding = encoding_of(stream, options.encoding)
    stream = as_utf8(stream, encoding)
    if has_lines(stream.peek(), kind):
        for number, (_, line) in enumerate(_lines(stream, 0, None), 1):
            if line is None or line.strip():
                yield _row(f"{name}:{number}", _parse(line), options.text_field, encoding)
    else:
        for number, value in enumerate(_Values(stream), 1):
            yield _row(f"{name}:{number}", value, options.text_field, encoding)


def read_json_range(
    name: str, stream: BufferedReader, begin: int, end: int, options: ReadOptions
) -> Iterator[Document | LeftOut]:
    """Yield the rows of the lines that begin in the bytes `begin` to `end` of a file."""
    encoding = encoding_of(stream, options.encoding)
    start = max(0, begin - 1)  # whether a line begins at `begin` shows in the byte before
    stream.seek(start)
    for offset, line in _lines(stream, start, end):
        if offset >= begin and (line is None or line.strip()):
            value = _parse(line, encoding)
            yield _row(f"{name}@{offset}", value, options.text_field, encoding)


def _lines(
    stream: BufferedReader, offset: int, end: int | None
) -> Iterator[tuple[int, bytes | None]]:
    """Yield each line that begins before `end`, with its offset; None for one that is too long."""
    while end is None or offset < end:
        line = part = stream.readline(DOCUMENT_BYTES + 1)
        size = len(line)
        while len(part) > _CHUNK and not part.endswith(b"\n"):
            part = stream.readline(_CHUNK + 1)
            size += len(part)
        if not line:
            return
        yield offset, line if size == len(line) else None
        offset += size


def _parse(line: bytes | None, encoding: str = "utf-8") -> object:
    if line is None:
        return _TOO_LONG
    if encoding != "utf-8":
        line = line.decode(encoding, "replace").encode("utf-8", "replace")
    try:
        return orjson.loads(line)
    except ValueError:
        pass
    try:  # for a byte-order mark, NaN, or half of a surrogate pair
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return _NOT_UTF8
    except (ValueError, RecursionError):
        return _BAD


def _row(name: str, value: object, field: str, encoding: str) -> Document | LeftOut:
    if isinstance(value, LeftOut):
        return LeftOut(name, value.reason)
    if isinstance(value, dict):
        if field not in value:
            return LeftOut(name, no_field(field))
        value = value[field]
    if value is None:
        return LeftOut(name, NULL)
    if not isinstance(value, str):
        return LeftOut(name, not_text(field))
    text = _without_surrogates(value)
    if encoding == "utf-8":
        return Document(name, text, "record")
    return document_of(name, checked(text, encoding), "record")


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class _Values:
    """JSON values one after another in a stream, and those of arrays at its top level."""

    def __init__(self, stream: BufferedReader) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._text = ""
        self._place = 0  # of the next value in the text
        self._ended = False

    def __iter__(self) -> Iterator[object]:
        scan = json.JSONDecoder().raw_decode
        inside = False
        while self._skip_gap():
            mark = self._text[self._place]
            if mark in "[]" and inside == (mark == "]"):
                inside = not inside
                self._place += 1
                continue
            try:
                begin = self._place
                value, self._place = scan(self._text, begin)
                yield _NOT_UTF8 if _BROKEN.search(self._text, begin, self._place) else value
            except RecursionError:
                yield _BAD
                self._skip_value()
            except ValueError:
                if self._ended:
                    yield LeftOut("", _REST_NOT_JSON)
                    return
                if len(self._text) - self._place > DOCUMENT_BYTES:
                    yield _TOO_LONG
                    self._skip_value()
                else:
                    self._read()

    def _read(self) -> None:
        """Read as much again as is left of the text, so that a long value is read in few steps."""
        rest = self._text[self._place :]
        data = self._stream.read(max(_CHUNK, len(rest)))
        self._ended = not data
        self._text, self._place = rest + self._decode(data, self._ended), 0

    def _skip_gap(self) -> bool:
        """Go to the next value, and tell whether there is one."""
        while True:
            gap = _GAP.match(self._text, self._place)
            assert gap is not None
            self._place = gap.end()
            if self._place < len(self._text) or self._ended:
                return self._place < len(self._text)
            self._read()

    def _skip_value(self) -> None:
        """Go past a value without holding it."""
        depth, quoted = 0, False
        while True:
            for mark in _MARK.finditer(self._text, self._place):
                self._place = mark.end()
                if mark[0] == '"':
                    quoted = not quoted
                elif not quoted and mark[0] in "{}[]":
                    depth += 1 if mark[0] in "{[" else -1
                if depth <= 0 and not quoted:
                    return
            # An escape may be cut in two: the character after it is no mark.
            escaped = self._text.endswith("\\") and self._place == len(self._text)
            self._place = len(self._text)
            if self._ended:
                return
            self._read()
            self._place = int(escaped)
