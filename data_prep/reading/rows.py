"""Read rows of text from JSON: one value a line, or values over lines, in an array or without.

A row is an object with a text field, or a string. A row that has no text is left out, and so is one
of more than 32 MiB, past which the file is read without holding it. After one that is no JSON,
reading goes on at its last bracket or quote, or else at the next row that begins in the same way;
without either, what is left out is named by its place in the file.
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
# Control characters in strings can have but one meaning.
_DECODER = json.JSONDecoder(strict=False)
_LAST_CHARACTERS = 16  # in which an error may come of a value's going on
_SPACE_TO_END = re.compile(r"\s*\Z")
_GAP = re.compile(r"[\s,]*")
_BARE = re.compile(r"""[^\s,\[\]{}"]+|.""", re.DOTALL)
_FOLLOWED = re.compile(r"\s|[,{\[\"]|\Z")
_FOLLOWED_IN_ARRAY = re.compile(r"\s*(?:[,\]]|\Z)")
# The first key of an object, or what begins another value.
_BEGINNING = re.compile(r'\{\s{0,99}"[^"\\]{1,99}"\s{0,9}:|[{\["]')
_OVERLAP = 400
_MARK = re.compile(r'\\.?|["{}\[\]]', re.DOTALL)
_BAD = LeftOut("", "not valid JSON")
_TOO_DEEP = LeftOut("", "too deep")
_CUT = LeftOut("", "cut")
_TOO_LONG = LeftOut("", TOO_LONG)
_NOT_UTF8 = LeftOut("", "not UTF-8 (give --encoding)")
# A broken byte, as Python's handler "surrogateescape" gives it.
_BROKEN = re.compile("[\udc80-\udcff]")


def has_lines(head: bytes, kind: str) -> bool:
    """Tell from the first bytes of a `json` or `jsonl` file whether each line is a value."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    line, end, following = start.partition(b"\n")
    if start.startswith(b"["):
        return False
    if kind == "jsonl" and line.strip() != b"{" and not following.startswith((b" ", b"\t")):
        return True
    return not end or not isinstance(_parse(line), LeftOut)


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
        return json.loads(line.decode("utf-8-sig"), strict=False)
    except UnicodeDecodeError:
        return _NOT_UTF8
    except (ValueError, RecursionError):
        return _BAD


def _row(name: str, value: object, field: str, encoding: str) -> Document | LeftOut:
    if isinstance(value, LeftOut):
        return LeftOut(name + value.name, value.reason)
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
        self._dropped = 0  # characters before the text
        self._lines = 1
        self._counted = 0  # characters of the text, whose lines are counted
        self._ended = False

    def __iter__(self) -> Iterator[object]:
        followed = _FOLLOWED
        while self._skip_gap():
            mark = self._text[self._place]
            if mark in "[]" and (followed is _FOLLOWED_IN_ARRAY) == (mark == "]"):
                followed = _FOLLOWED if mark == "]" else _FOLLOWED_IN_ARRAY
                self._place += 1
                continue
            value, end = self._scan(followed)
            if end:
                yield _NOT_UTF8 if _BROKEN.search(self._text, self._place, end) else value
                self._place = end
            elif value is _BAD:
                yield self._skip_damage(followed)
            elif value is _TOO_DEEP or len(self._text) - self._place > DOCUMENT_BYTES:
                yield _BAD if value is _TOO_DEEP else _TOO_LONG
                self._skip_value()
            else:
                self._read()

    def _scan(self, followed: re.Pattern[str]) -> tuple[object, int]:
        """Return the next value and its end; without an end, why it has none."""
        try:
            value, end = _DECODER.raw_decode(self._text, self._place)
        except RecursionError:
            return _TOO_DEEP, 0
        except json.JSONDecodeError as error:
            is_late = error.pos > len(self._text) - _LAST_CHARACTERS
            is_cut = is_late or error.msg.startswith("Unterminated")
            return (_BAD if self._ended or not is_cut else _CUT), 0
        is_followed = followed.match(self._text, end)
        is_late = not is_followed and end > len(self._text) - _LAST_CHARACTERS
        if not self._ended and (is_late or _SPACE_TO_END.match(self._text, end)):
            return _CUT, 0
        return (value, end) if is_followed else (_BAD, 0)

    def _read(self) -> None:
        """Read as much again as is left of the text, so that a long value is read in few steps."""
        rest = self._text[self._place :]
        self._dropped += self._place
        self._line()
        data = self._stream.read(max(_CHUNK, len(rest)))
        self._ended = not data
        self._text, self._place, self._counted = rest + self._decode(data, self._ended), 0, 0

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
        depth, quoted, is_escaped = 0, False, False
        while not self._ended:
            for mark in _MARK.finditer(self._text, self._place + is_escaped):
                is_escaped = mark[0] == "\\"  # at the end; the next character is no mark then
                if mark[0] == '"':
                    quoted = not quoted
                elif not quoted and mark[0] in "{}[]":
                    depth += 1 if mark[0] in "{[" else -1
                if depth <= 0 and not quoted:
                    self._place = mark.end()
                    return
            self._place = len(self._text)
            self._read()

    def _line(self) -> int:
        """Return the number of the line of the next value."""
        self._lines += self._text.count("\n", self._counted, self._place)
        self._counted = self._place
        return self._lines

    def _skip_damage(self, followed: re.Pattern[str]) -> LeftOut:
        """Go past a value that is no JSON, and return what is left out."""
        if len(self._text) - self._place < _CHUNK and not self._ended:
            self._read()
        line, character = self._line(), self._dropped + self._place + 1
        if found := _BEGINNING.match(self._text, self._place):
            place, beginning = _next_place(found, followed), re.escape(found[0])
        else:
            bare = _BARE.match(self._text, self._place)
            assert bare is not None
            is_whole = followed.match(self._text, bare.end())
            place, beginning = bare.end() if is_whole else None, r'[{\["]'
        if place:
            self._place = place
        elif not self._find(re.compile(rf"[,\n][ \t\r]*(?={beginning})")):
            count = self._dropped + len(self._text) - character + 1
            where = f" (line {line}, character {character}, to the end: {count} characters)"
            return LeftOut(where, _REST_NOT_JSON)
        return _BAD

    def _find(self, pattern: re.Pattern[str]) -> bool:
        """Go to the end of a match behind the next character, or of the file if there is none."""
        self._place += 1
        while not (found := pattern.search(self._text, self._place)):
            self._place = max(self._place, len(self._text) - _OVERLAP)
            if self._ended:
                self._place = len(self._text)
                return False
            self._read()
        self._place = found.end()
        return True


def _next_place(beginning: re.Match[str], followed: re.Pattern[str]) -> int | None:
    """Return where the brackets and quotes of a value that is no JSON end, within 64 KiB.

    Quotes are not balanced if a value of the same beginning is between them, nor brackets if one is
    in place of a key: it is the next value then.
    """
    text, begin = beginning.string, beginning.start()
    opened: list[str] = []
    quoted = False
    for mark in _MARK.finditer(text, begin, begin + _CHUNK):
        place = mark.start()
        if (quoted or opened[-1:] == ["{"]) and text.startswith(beginning[0], place):
            before = text[max(begin, place - _OVERLAP) : place].rstrip(" \t\r")
            if before.endswith((",", "\n")):
                return place
        if mark[0] == '"':
            quoted = not quoted
        elif not quoted and mark[0] in "{[":
            opened.append(mark[0])
        elif not quoted and mark[0] in "}]":
            opened.pop()
        if not opened and not quoted:
            return mark.end() if followed.match(text, mark.end()) else None
    return None
