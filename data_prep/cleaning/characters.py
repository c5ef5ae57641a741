"""Change single characters of a text: line ends, blanks, invisible ones, punctuation, case.

Each step returns the text and the count that `Steps` describes. To be fast, a step first looks for
the characters that it changes, among all that occur in the text besides ordinary ones.
"""

import re
import unicodedata
from functools import lru_cache

import numpy as np

from gpt_dist.data.tokenizers.tokenizer import SPACE

_ORDINARY = bytes([*b"\n", *range(0x20, 0x7F)])
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_NO_CONTROLS = bytes(set(range(256)) - {*range(9), *range(14, 32), 127})
_SMALL = bytes(set(range(256)) - set(range(ord("A"), ord("Z") + 1)))
# "Next line" is a break, unless it is a byte of mojibake, or an ellipsis beside other control
# characters that a single-byte encoding left.
_NEXT_LINE = re.compile(
    "([\xc2-\xdf]\x85|[\xe0-\xf4]\x85[\x80-\xbf]|[\xe0-\xf4][\x80-\xbf]{1,2}\x85)|\x85"
)
_CONTROLS = re.compile("[\x80-\x84\x86-\x9f]")
_BREAKS = "\f\v\x1c\x1d\x1e\u2028\u2029"
# Scripts and emoji in which joiners spell, and scripts whose words a zero-width space divides.
_JOINING = "\u0590-\u1fff\u2190-\u2bff\ufb1d-\ufe0f\ufe20-\ufefe\U00010800-\U0001ffff"
_DIVIDED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u061c\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
    f"|(?<![{_JOINING}])[\u200c\u200d](?![{_JOINING}])"
    f"|(?<![{_DIVIDED}])\u200b|\u200b(?![{_DIVIDED}])"
)
_CHINESE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_LATIN = re.compile("[A-Za-zÀ-\u024f]")
# Underscores after or before what is no word. Each run is looked at once, at its first underscore.
_ITALICS = re.compile(r"_(?<!__)(?:(?<!\w_)_*+|_*+(?!\w))")
_WORD_CHARACTERS = 4096
_LONG_WORD = re.compile(rf"\S{{{_WORD_CHARACTERS}}}(?=\S)")
_PUNCTUATION = {
    '"': "“”„‟",
    "'": "‘’‚‛´",
    "--": "—―",
    "-": "–‒‐‑",
    "...": "…",
}


@lru_cache(maxsize=1)  # since most steps leave most texts as they are
def unusual(text: str) -> str:
    """Return the characters that occur in a text besides printable ASCII and line feeds."""
    rest = text.encode("utf-8", "surrogatepass").translate(None, _ORDINARY)
    return "".join(sorted(set(rest.decode("utf-8", "surrogatepass"))))


def count_controls(text: str) -> int:
    """Count the control characters that are no white space."""
    if not _CONTROL.search(unusual(text)):
        return 0
    return len(text.encode("utf-8", "surrogatepass").translate(None, _NO_CONTROLS))


def normalise_line_ends(text: str) -> tuple[str, int]:
    """Write CRLF and CR as a line feed."""
    count = text.count("\r")
    return (text.replace("\r\n", "\n").replace("\r", "\n"), count) if count else (text, 0)


def end_lines(text: str) -> tuple[str, int]:
    """Write form feeds, vertical tabs, next lines and Unicode's separators as a line feed."""
    changed, count = _replace(text, dict.fromkeys(_BREAKS, "\n"))
    if "\x85" in text and not _CONTROLS.search(text):
        changed = _NEXT_LINE.sub(lambda found: found[1] or "\n", changed)
        count += text.count("\x85") - changed.count("\x85")
    return changed, count


def compose(text: str) -> tuple[str, int]:
    """Compose characters."""
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return text, 0
    composed = unicodedata.normalize("NFC", text)
    return composed, max(1, len(text) - len(composed))


def remove_invisible(text: str) -> tuple[str, int]:
    """Remove control characters and invisible characters that spell nothing."""
    if not _INVISIBLE.search(unusual(text)):
        return text, 0
    # A soft hyphen at the end of a line divides a word.
    shorter = _INVISIBLE.sub("", text.replace("\xad\n", ""))
    return shorter, len(text) - len(shorter)


def plain_blanks(text: str) -> tuple[str, int]:
    """Write tabs, no-break spaces and other blanks as a space."""
    blanks = [character for character in unusual(text) if character.isspace()]
    return _replace(text, dict.fromkeys(blanks, " "))


def collapse_blanks(text: str) -> tuple[str, int]:
    """Keep one of several spaces, none around lines, and no blank line."""
    shorter = text.strip(" \n")
    data = np.frombuffer(shorter.encode(), np.uint8)
    line_feeds = data == ord("\n")
    blanks = (data == ord(" ")) | line_feeds
    pairs = np.flatnonzero(blanks[1:] & blanks[:-1])
    if len(pairs):
        # Of a run of blanks only the first is kept, as a line feed if there is one in the run.
        runs = np.flatnonzero(np.diff(pairs, prepend=-2) != 1)
        first = pairs[runs]
        with_end = line_feeds[first] | np.logical_or.reduceat(line_feeds[pairs + 1], runs)
        data = data.copy()
        data[first[with_end]] = ord("\n")
        shorter = np.delete(data, pairs + 1).tobytes().decode()
    return shorter, len(text) - len(shorter)


def plain_punctuation(text: str) -> tuple[str, int]:
    """Write typographic quotes, dashes and ellipses in ASCII, unless a text is Chinese or Japanese.

    Their typographic quotes, dashes and ellipses are as wide as their other characters.
    """
    if text.isascii():
        return text, 0
    characters = unusual(text)
    if _CHINESE.search(characters) and len(_CHINESE.findall(text)) > len(_LATIN.findall(text)):
        return text, 0
    return _replace(text, {mark: plain for plain, marks in _PUNCTUATION.items() for mark in marks})


def remove_italics(text: str) -> tuple[str, int]:
    """Remove the underscores at the ends of words."""
    if "_" not in text:
        return text, 0
    shorter = _ITALICS.sub("", text)
    return shorter, len(text) - len(shorter)


def replace_space_mark(text: str) -> tuple[str, int]:
    """Write `_` for sentencepiece's sign for a space."""
    return _replace(text, {SPACE: "_"})


def cut_long_words(text: str) -> tuple[str, int]:
    """Cut words of more than 4,096 characters."""
    return _LONG_WORD.subn(r"\g<0>\n", text) if _may_have_long_word(text) else (text, 0)


def _may_have_long_word(text: str) -> bool:
    """Tell whether 4,097 characters in a row are no space and no line feed."""
    begin = 0
    while len(text) - begin > _WORD_CHARACTERS:
        end = begin + _WORD_CHARACTERS + 1
        last = text.rfind(" ", begin, end)
        last = text.rfind("\n", begin, end) if last < 0 else last
        if last < 0:
            return True
        begin = last + 1
    return False


def lowercase(text: str) -> tuple[str, int]:
    """Lower-case a text."""
    data = text.encode()
    capitals = len(data.translate(None, _SMALL))
    if len(data) == len(text):
        return data.lower().decode(), capitals
    others = [character for character in unusual(text) if character.lower() != character]
    if "Σ" in others:  # which is written in two ways
        return text.lower(), capitals + sum(map(text.count, others))
    lowered, count = _replace(
        data.lower().decode(), {character: character.lower() for character in others}
    )
    return lowered, capitals + count


def _replace(text: str, replacements: dict[str, str]) -> tuple[str, int]:
    count = 0
    for character, replacement in replacements.items():
        if found := text.count(character):
            count += found
            text = text.replace(character, replacement)
    return text, count
