"""Turn the bytes of one document into clean text: paragraphs separated by a line end.

Steps, in order:
1. Decode: UTF-8 with or without a byte-order mark; UTF-16 with one; else Latin-1 (counted in the
   manifest), whose leftovers of Windows-1252, and UTF-8 read as Latin-1, step 3 repairs.
   Bytes of which more than 8 % are control characters are no text.
2. Line ends: CRLF, CR, form feed and Unicode's separators become a line feed.
3. Repair with ftfy the lines that need it, and no other (see `repair`).
4. Punctuation is standardised: straight quotes, `--` for a dash, `-` for hyphens and en dashes,
   `...` for an ellipsis; the underscores of `_italics_` go.
5. White space of any kind becomes one space; control and zero-width characters go.
6. A book loses Project Gutenberg's header, licence and notes (`gutenberg`).
7. Hard-wrapped lines are joined into paragraphs (`paragraphs`).
8. A word of more than 4,096 characters is cut.
9. Lower-case, where asked.
"""

import codecs
import re
from dataclasses import dataclass
from typing import Literal

import ftfy

from data_prep.gutenberg import strip_gutenberg
from data_prep.paragraphs import join_sentences, unwrap

Form = Literal["book", "sentences"]

BINARY = "binary"
EMPTY = "empty"
NOTICES = "nothing but Project Gutenberg's notices"

_LINE_ENDS = re.compile(r"[\r\f\v\x1c-\x1e\u2028\u2029]")
# What may need ftfy: HTML entities, and runs of characters that are not printable ASCII …
_UNUSUAL = re.compile(r"[^\t\n -~]+|&#?[0-9A-Za-z]{1,24};")
# … but mojibake is never made of typographic marks alone, nor of one letter among ASCII
# (only Â and Ã, which lose a no-break space after them, are suspect on their own).
_HARMLESS = re.compile(r"[“”‘’—–…]+|[ÀÁÄ-ÖØ-öø-ÿ]")
_BLANK = re.compile(r"[^\S\n ]")
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060\ufeff]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
# Random bytes have 11 %.
_MAX_CONTROL_SHARE = 0.08
_SPACES = re.compile(r"  +")
_WORD_CHARACTERS = 4096
_LONG_WORD = re.compile(rf"\S{{{_WORD_CHARACTERS}}}(?=\S)")
_ITALICS = re.compile(r"\b_+|_+\b")
_PUNCTUATION = {
    '"': "“”„‟",
    "'": "‘’‚‛´",
    "--": "—―",
    "-": "–‒‐‑",
    "...": "…",
    "_": "▁",  # sentencepiece's sign for a space
}


@dataclass(frozen=True)
class CleanText:
    """The clean text of a document, whether its bytes had to be read as Latin-1, and a fault.

    `fault` says why the text is empty: BINARY, EMPTY or NOTICES.
    """

    text: str
    latin1: bool
    fault: str | None = None


def clean(data: bytes, form: Form, lowercase: bool) -> CleanText:
    """Clean one document: a book (or other text), or BookCorpus's sentences, one a line."""
    decoded, latin1 = decode(data)
    if len(_CONTROL.findall(decoded)) > len(decoded) * _MAX_CONTROL_SHARE:
        return CleanText("", latin1=False, fault=BINARY)
    whole = repair(_LINE_ENDS.sub("\n", decoded.replace("\r\n", "\n")))
    whole = normalise_space(standardise_punctuation(whole)).strip("\n")
    text = join_sentences(whole) if form == "sentences" else unwrap(strip_gutenberg(whole))
    if not text:
        return CleanText("", latin1, NOTICES if whole else EMPTY)
    text = _cut_long_words(text)
    return CleanText(text.lower() if lowercase else text, latin1)


def decode(data: bytes) -> tuple[str, bool]:
    """The text of `data`, and whether it had to be read as Latin-1."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace"), False
    try:
        return data.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        return data.decode("latin-1"), True


def repair(text: str) -> str:
    """Run ftfy on the lines that hold anything it could change, beside what is standardised later.

    The result, once standardised, is that of running ftfy on every line, at a fraction of the time.
    """
    pieces: list[str] = []
    done = 0
    for match in _UNUSUAL.finditer(text):
        if match.start() < done or _HARMLESS.fullmatch(match[0]):
            continue
        begin = text.rfind("\n", done, match.start()) + 1 or done
        end = text.find("\n", match.end())
        end = len(text) if end < 0 else end
        pieces += text[done:begin], ftfy.fix_text(text[begin:end])
        done = end
    return "".join(pieces) + text[done:]


def normalise_space(text: str) -> str:
    """One space for every run of white space within a line, none at its ends."""
    if not text.replace("\n", "").isprintable():
        text = _INVISIBLE.sub("", _BLANK.sub(" ", text))
    return _SPACES.sub(" ", text).replace(" \n", "\n").replace("\n ", "\n").strip(" ")


def standardise_punctuation(text: str) -> str:
    """ASCII for typographic quotes, dashes and ellipses; no underscores around words."""
    for plain, marks in _PUNCTUATION.items():
        for mark in marks:
            text = text.replace(mark, plain)
    return _ITALICS.sub("", text) if "_" in text else text


def _cut_long_words(text: str) -> str:
    if max(map(len, text.split("\n"))) <= _WORD_CHARACTERS:
        return text
    return _LONG_WORD.sub(r"\g<0>\n", text)
