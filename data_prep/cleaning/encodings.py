"""Decode the bytes of documents.

The rules, in order:
1. A byte-order mark decides, even if another encoding is stated. A stated UTF-16 or UTF-32 without
   a mark must give plausible text, since it gives some text for nearly any bytes.
2. Bytes with NULs may be UTF-16 or UTF-32 without a mark, if they give plausible text.
3. Bytes that are UTF-8, or UTF-8 with a few broken bytes, are UTF-8. A broken byte between ASCII
   characters is read as Windows-1252, others give U+FFFD.
4. Chardet decides on the lines that are not ASCII (of the detectors that were measured, chardet 7
   was the most often right: 264 of 278 samples, charset-normalizer 216, faust-cchardet 174). It
   needs many such characters; a few accents and quotes in a text are judged by their neighbours.
   Of encodings that give the same text, the plainest is named. Implausible text is refused.
"""

import codecs
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

import chardet

NOT_TEXT = "not text in a known encoding"

_MARKS = {  # UTF-32's mark begins with UTF-16's
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_PLAINEST = ("iso8859-1", "cp1252")
_WESTERN = ("cp1252", "mac-roman", "cp850", "cp437")
_OTHER_LATIN = re.compile(r"cp125[0478]|cp852|cp775|iso8859-(2|9|13)|mac-(latin2|turkish)")
_ISOLATED = re.compile("(?:^|(?<=[\x00-\x7f]))[^\x00-\x7f]{1,2}(?![^\x00-\x7f])")
# Letters in words, capitals at their beginning, signs outside of them, quotes and dashes anywhere.
_FITTING = re.compile(
    "(?<=[A-Za-z])[ß-öø-ÿœ]|[ß-öø-ÿœ](?=[A-Za-z])|(?<![a-z])[À-ÖØ-ÞŒ]|£(?=[0-9])"
    "|(?<![A-Za-z])[£«»§°¡¿·¼½¾²³×®©]|[“”‘’—–…\u00a0]"
)
_SUPERSETS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "tis-620": "cp874",
}
# Fine Western differences that a detector cannot hear; Windows-1252 is by far the most common.
_EXCLUDED = ("iso8859-15", "iso8859-16", "iso8859-10", "iso8859-14", "iso8859-3", "iso8859-4")
_NO_MATCH = "ascii"  # which these bytes are not
_SAMPLE_BYTES = 64 << 10
_HIGH = re.compile(rb"[\x80-\xff]")
# A broken byte, as Python's handler "surrogateescape" gives it.
_BROKEN = re.compile("[\udc80-\udcff]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ALONE = re.compile("(?<![^\x00-\x7f])[\udc80-\udcff](?![^\x00-\x7f])")
# White space and punctuation, of which a text in any script has a few percent.
_FREQUENT = frozenset(" \n\r\t,.。、，　")
_LEAST_FREQUENT = 0.02
_TELLING_CHARACTERS = 64  # that words seldom exceed
_ASCII = bytes([*b"\t\n\r", *range(0x20, 0x7F)])
_MAX_IMPLAUSIBLE = 0.01
# UTF-8 has this many times more whole characters than broken bytes: fewer among ASCII text,
# because other encodings seldom look like UTF-8 there.
_WHOLE_PER_BROKEN = 4
_WHOLE_PER_BROKEN_IN_ASCII = 1
_SPARSE_SHARE = 0.3
_ASCII_SHARE = 0.9
_MAX_SYMBOLS = 0.2


@dataclass(frozen=True)
class Decoded:
    """Text of a document, its encoding by Python's name, and the number of broken characters."""

    text: str
    encoding: str
    broken: int = 0
    fault: str | None = None


def decode(content: bytes | str, encoding: str | None = None, guess: bool = True) -> Decoded:
    """Decode a document.

    Args:
        content: The bytes; text comes back without lone surrogates, which are counted as broken.
        encoding: The encoding of bytes without a byte-order mark, or None to find it out.
        guess: Whether to accept an encoding that is neither stated nor UTF-8.
    """
    if isinstance(content, str):
        text, broken = _SURROGATE.subn("\ufffd", content)
        return Decoded(text, "utf-8", broken)
    if encoding and is_unlikely(content, encoding):
        return Decoded("", encoding, fault=f"not text in {encoding} (no byte-order mark)")
    if named := marked_encoding(content) or encoding:
        return _decode_as(content, named)
    wide = _detect_wide(content) if b"\0" in content else None
    decoded = None if wide else _decode_utf8(content)
    if decoded:
        return decoded
    found = wide or _detect(content)
    if found and guess:
        return _decode_as(content, found)
    seems = f"seems to be {found}" if found else NOT_TEXT
    return Decoded("", found or "unknown", fault=seems if not found else f"not UTF-8, {seems}")


def marked_encoding(head: bytes) -> str | None:
    """Return the encoding by a byte-order mark in the first 4 bytes, or None without a mark."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)


def is_unlikely(head: bytes, encoding: str) -> bool:
    """Tell whether first bytes without a mark are hardly text in a UTF-16 or UTF-32 of that name.

    Other texts read as such have no character that is frequent in any script.
    """
    name = unmarked(encoding)
    if name not in _WIDE or marked_encoding(head) or not head:
        return False
    text = codecs.getincrementaldecoder(name)("replace").decode(head)
    is_telling = len(text) > _TELLING_CHARACTERS or not head.translate(None, _ASCII)
    return not _is_plausible(text, max_symbols=1) or (is_telling and _FREQUENT.isdisjoint(text))


def unmarked(encoding: str) -> str:
    """Return Python's name of an encoding without a mark: that of UTF-16 is little-endian then."""
    name = codecs.lookup(encoding).name
    return f"{name}-le" if name in {"utf-16", "utf-32"} else name


def checked(text: str, encoding: str) -> Decoded:
    """Count U+FFFD in a text that was decoded with it for broken bytes; many are a fault."""
    broken = text.count("\ufffd")
    if broken > len(text) * _MAX_IMPLAUSIBLE and broken > 1:
        return Decoded("", encoding, fault=f"not text in {encoding}")
    return Decoded(text, encoding, broken)


def _decode_as(data: bytes, encoding: str) -> Decoded:
    name = "utf-8" if encoding == "utf-8-sig" else codecs.lookup(encoding).name
    return checked(data.decode(encoding, "replace"), name)


def _decode_utf8(data: bytes) -> Decoded | None:
    """Decode UTF-8, or return None for bytes that are not, apart from a few."""
    if b"\x1b" in data and b"\x1b$" in data and data.isascii():
        return None  # ISO 2022
    try:
        return Decoded(data.decode(), "utf-8")
    except UnicodeDecodeError:
        pass
    sample = _telling_lines(data)
    text = sample.decode("utf-8", "surrogateescape")
    broken = len(_BROKEN.findall(text))
    high = len(_HIGH.findall(sample))
    whole = len(text) - (len(sample) - high) - sum(map(len, _BROKEN.findall(text)))
    is_sparse = high < len(sample) * _SPARSE_SHARE
    if whole < broken * (_WHOLE_PER_BROKEN_IN_ASCII if is_sparse else _WHOLE_PER_BROKEN):
        return None
    text = data.decode("utf-8", "surrogateescape")
    text = _ALONE.sub(lambda match: _byte_of(match).decode("cp1252", "replace"), text)
    text, count = _BROKEN.subn("\ufffd", text)
    return Decoded(text, "utf-8", max(broken, count))


def _byte_of(match: re.Match[str]) -> bytes:
    return match[0].encode("utf-8", "surrogateescape")


def _detect(data: bytes) -> str | None:
    sample = _telling_lines(data) or data[:_SAMPLE_BYTES]
    found = chardet.detect(
        sample,
        exclude_encodings=_EXCLUDED,
        no_match_encoding=_NO_MATCH,
    )["encoding"]
    found = None if found in (None, _NO_MATCH) else codecs.lookup(found).name
    if not (found and _OTHER_LATIN.fullmatch(found)) and _is_mostly_ascii(sample):
        found = max(
            _WESTERN, key=lambda name: len(_FITTING.findall(sample.decode(name, "replace")))
        )
    if not found:
        return _detect_wide(data)
    found = _SUPERSETS.get(found, found)
    text = sample.decode(found, "replace")
    if not _is_plausible(text):
        return None
    for name in _PLAINEST:
        if sample.decode(name, "replace") == text:
            return name
    return found


def _is_mostly_ascii(sample: bytes) -> bool:
    """Tell whether other characters are few and mostly stand alone or in pairs, as accents do."""
    high = len(_HIGH.findall(sample))
    isolated = sum(map(len, _ISOLATED.findall(sample.decode("latin-1"))))
    return high < len(sample) * (1 - _ASCII_SHARE) and isolated > high * _ASCII_SHARE


def _telling_lines(data: bytes) -> bytes:
    """Return the first lines that are not ASCII alone."""
    lines: list[bytes] = []
    size = done = 0
    while size < _SAMPLE_BYTES and (high := _HIGH.search(data, done)):
        begin = max(data.rfind(b"\n", done, high.start()) + 1, done, high.start() - 200)
        end = data.find(b"\n", high.start(), begin + _SAMPLE_BYTES)
        done = end + 1 if end >= 0 else min(len(data), begin + _SAMPLE_BYTES)
        lines.append(data[begin:done])
        size += done - begin
    return b"".join(lines)


def _detect_wide(data: bytes) -> str | None:
    """Return the encoding of UTF-16 or UTF-32 without a byte-order mark, or None."""
    best, most = None, _LEAST_FREQUENT
    for encoding in _WIDE:
        if len(data) % (4 if "32" in encoding else 2):
            continue
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(data[:_SAMPLE_BYTES])
        except UnicodeDecodeError:
            continue
        frequent = sum(map(text.count, _FREQUENT)) / max(1, len(text))
        if frequent > most and _is_plausible(text):
            best, most = encoding, frequent
    return best


def _is_plausible(text: str, max_symbols: float = _MAX_SYMBOLS) -> bool:
    """Tell whether nearly all characters are assigned and no controls, and not many are symbols."""
    kinds: Counter[str] = Counter()
    for character, count in Counter(text).items():
        is_wrong = character == "\ufffd" or unicodedata.category(character) in ("Cn", "Co")
        is_control = unicodedata.category(character) == "Cc" and not character.isspace()
        kinds["wrong" if is_wrong or is_control else unicodedata.category(character)[0]] += count
    few_wrong = kinds["wrong"] <= len(text) * _MAX_IMPLAUSIBLE
    return few_wrong and kinds["S"] <= len(text) * max_symbols
