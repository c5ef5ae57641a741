"""Hash the words of a text, and runs of eight words, whatever its letter case, accents and marks.

A word is a run of letters and digits. Upper case, accents, punctuation, white space and line ends
make no difference, so editions that differ in these alone have the same words. A Chinese or
Japanese character is a word by itself. Hashes are computed on whole arrays of bytes: that of a word
is a difference of two prefix sums of a polynomial modulo 2^64.
"""

import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Hashes: TypeAlias = NDArray[np.uint64]

SHINGLE_WORDS = 8

_CHUNK = 1 << 17  # bytes: the arrays of a chunk fit into a core's cache
_SPACE, _IGNORED = 0x20, 0x00
_FOLD_ASCII = bytes(
    byte
    if byte >= 0x80 or byte == _IGNORED
    else ord(chr(byte).lower() if chr(byte).isalnum() else " ")
    for byte in range(256)
)
_DENSE_SHARE = 0.1
_LIGATURES = str.maketrans(
    {"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"}
)
# The lead bytes of kana and of Han characters in UTF-8.
_FIRST_HAN, _LAST_HAN = 0xE3, 0xE9


def _mix(values: Hashes) -> Hashes:
    """Spread every bit of the values over all bits, as the finaliser of splitmix64 does."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _powers(base: int, count: int) -> Hashes:
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


_BASE = 0x9E3779B97F4A7C15
_BYTE_VALUES = _mix(np.arange(1, 257, dtype=np.uint64) * np.uint64(_BASE))
_BYTE_VALUES[_SPACE] = 0
_POWERS = _powers(_BASE, _CHUNK + 2)
_INVERSES = _powers(pow(_BASE, -1, 1 << 64), _CHUNK + 2)


@dataclass(frozen=True)
class Words:
    """Words of a text: their hashes, and the bytes of the text at which they begin."""

    hashes: Hashes
    begins: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.hashes)

    def shingles(self) -> Hashes:
        """Return the hash of each run of eight words; run i begins with word i."""
        return self.runs(SHINGLE_WORDS)

    def runs(self, count: int) -> Hashes:
        """Return the hash of each run of `count` words; run i begins with word i."""
        number = max(0, len(self) - count + 1)
        hashes, width, covered = self.hashes, 1, 0
        total = np.zeros(number, np.uint64)
        while number:
            if count & width:
                total += hashes[covered : covered + number] * _POWERS[covered]
                covered += width
            if covered == count:
                break
            hashes = hashes[:-width] + hashes[width:] * _POWERS[width]
            width *= 2
        return _mix(total)


def words_of(data: bytes) -> Words:
    """Return the words of a text in UTF-8.

    Takes 12 bytes a word, and 10 MB whatever the size of the text.
    """
    parts = [_words_of_chunk(data, begin, end) for begin, end in _chunks(data)]
    if not parts:
        return Words(np.empty(0, np.uint64), np.empty(0, np.uint32))
    hashes, begins = zip(*parts, strict=True)
    return Words(np.concatenate(hashes), np.concatenate(begins))


def _chunks(data: bytes) -> list[tuple[int, int]]:
    """Cut a text into chunks, at white space or at least between two characters."""
    bounds = [0]
    while len(data) - bounds[-1] > _CHUNK:
        limit = bounds[-1] + _CHUNK
        cut = max(data.rfind(b" ", bounds[-1] + 1, limit), data.rfind(b"\n", bounds[-1] + 1, limit))
        if cut < 0:
            cut = limit
            while cut > bounds[-1] + 1 and data[cut] & 0xC0 == 0x80:
                cut -= 1
        bounds.append(cut)
    bounds.append(len(data))
    return [(begin, end) for begin, end in pairwise(bounds) if begin < end]


def _words_of_chunk(data: bytes, begin: int, end: int) -> tuple[Hashes, NDArray[np.uint32]]:
    text = data[begin:end]
    is_ascii = text.isascii()
    folded = (text if is_ascii else _fold(text)).translate(_FOLD_ASCII) + b" "
    letters = np.frombuffer(folded, np.uint8)
    places: NDArray[Any] | None = None
    if not is_ascii and bytes([_IGNORED]) in folded:
        places = np.flatnonzero(letters != _IGNORED)
        letters = letters[places]
    firsts, ends = _word_bounds(letters, not is_ascii and _has_han(letters))
    sums = np.zeros(len(letters) + 1, np.uint64)
    # Faster than an index of bytes, which numpy converts and checks one by one.
    values = _BYTE_VALUES.take(letters.astype(np.intp), mode="clip")
    np.cumsum(np.multiply(values, _POWERS[: len(letters)], out=values), out=sums[1:])
    hashes = (sums[ends] - sums[firsts]) * _INVERSES[firsts]
    begins = firsts if places is None else places[firsts]
    return hashes, (begins + begin).astype(np.uint32)


def _has_han(letters: NDArray[np.uint8]) -> bool:
    return bool(np.any((letters >= _FIRST_HAN) & (letters <= _LAST_HAN)))


def _word_bounds(letters: NDArray[np.uint8], any_han: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the indexes at which words begin and end; the last letter is a space."""
    in_word = letters > _SPACE
    before = np.concatenate(([False], in_word[:-1]))
    if not any_han:
        bounds = np.flatnonzero(in_word != before)
        return bounds[::2], bounds[1::2]
    begins = in_word & ~(before & ((letters < _FIRST_HAN) | (letters > _LAST_HAN)))
    bounds = np.flatnonzero(begins | (in_word != before))
    indexes = np.flatnonzero(begins[bounds])
    return bounds[indexes], bounds[indexes + 1]


class _Folds(dict[int, str]):
    """Map a character to letters, spaces and ignored characters of as many bytes in UTF-8."""

    def __missing__(self, code: int) -> str:
        self[code] = folded = _fold_character(chr(code))
        return folded


_FOLDS = _Folds()


def _fold(text: bytes) -> bytes:
    """Fold the characters outside ASCII, each to as many bytes."""
    letters = np.frombuffer(text, np.uint8)
    places = np.flatnonzero(letters >= 0x80)
    if len(places) > len(text) * _DENSE_SHARE or not _is_utf8(text):
        return text.decode("utf-8", "surrogateescape").translate(_FOLDS).encode()
    others = letters[places].tobytes().decode().translate(_FOLDS).encode()
    letters = letters.copy()
    letters[places] = np.frombuffer(others, np.uint8)
    return letters.tobytes()


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _fold_character(character: str) -> str:
    if "\ud800" <= character <= "\udfff":  # a byte that is not UTF-8
        return " "
    size = len(character.encode())
    plain = unicodedata.normalize("NFKD", character).casefold().translate(_LIGATURES)
    plain = "".join(mark for mark in plain if not unicodedata.combining(mark))
    if plain and not plain.isalnum():
        return " " * size
    if len(plain.encode()) > size:
        plain = character
    return plain + chr(_IGNORED) * (size - len(plain.encode()))


def spelled(data: bytes) -> list[bytes]:
    """Return the words of a text themselves, folded as for their hashes."""
    folded = _fold(data).translate(_FOLD_ASCII)
    bounds = [*words_of(data).begins.tolist(), len(data)]
    spaced = (
        folded[begin:end].translate(None, bytes([_IGNORED])) for begin, end in pairwise(bounds)
    )
    return [word.strip() for word in spaced]
