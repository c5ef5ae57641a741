"""Turn the bytes of one document into clean text: paragraphs separated by a line end.

The steps, in order:
1. Decode UTF-8 with or without a byte-order mark, or UTF-16 with one. Read other bytes as Latin-1,
   which the manifest counts; step 3 repairs Windows-1252 and UTF-8 that were read so. A document
   of which more than 8 % are control characters is binary and gives no text.
2. Replace CRLF, CR, form feed and Unicode's separators by a line feed.
3. Repair with ftfy the lines that need it (see `repair`).
4. Standardise punctuation: straight quotes, `--` for a dash, `-` for hyphens and en dashes, `...`
   for an ellipsis. Remove the underscores of `_italics_`.
5. Replace each run of white space by one space. Remove control and zero-width characters.
6. Remove Project Gutenberg's header, licence and notes from a book (see `gutenberg`).
7. Join hard-wrapped lines into paragraphs (see `paragraphs`).
8. Cut words of more than 4,096 characters.
9. Lower-case the text if the user wants that.
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
# ftfy may be needed for HTML entities and for runs of characters that are not printable ASCII …
_UNUSUAL = re.compile(r"[^\t\n -~]+|&#?[0-9A-Za-z]{1,24};")
# … but mojibake never consists of typographic marks alone, or of one letter between ASCII
# characters (except Â and Ã, which may have lost a no-break space after them).
_HARMLESS = re.compile(r"[“”‘’—–…]+|[ÀÁÄ-ÖØ-öø-ÿ]")
_BLANK = re.compile(r"[^\S\n ]")
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060\ufeff]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
# Of random bytes, 11 % are control characters.
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
    """Clean text of a document."""

    text: str
    latin1: bool
    """Whether the bytes had to be read as Latin-1."""
    fault: str | None = None
    """Why the text is empty: BINARY, EMPTY or NOTICES."""


def clean(data: bytes, form: Form, lowercase: bool) -> CleanText:
    """Clean one document.

    Args:
        data: The bytes of the document.
        form: "sentences" for BookCorpus's one sentence a line, "book" for any other text.
        lowercase: Whether to lower-case the text.
    """
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
    """Return the text of `data`, and whether it had to be read as Latin-1."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace"), False
    try:
        return data.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        return data.decode("latin-1"), True


def repair(text: str) -> str:
    """Run ftfy on the lines that it could change in more than what is standardised later.

    The standardised result equals that of ftfy on every line, in a fraction of the time.
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
    """Replace each run of white space in a line by one space, and strip every line."""
    if not text.replace("\n", "").isprintable():
        text = _INVISIBLE.sub("", _BLANK.sub(" ", text))
    return _SPACES.sub(" ", text).replace(" \n", "\n").replace("\n ", "\n").strip(" ")


def standardise_punctuation(text: str) -> str:
    """Replace typographic quotes, dashes and ellipses by ASCII; remove underscores around words."""
    for plain, marks in _PUNCTUATION.items():
        for mark in marks:
            text = text.replace(mark, plain)
    return _ITALICS.sub("", text) if "_" in text else text


def _cut_long_words(text: str) -> str:
    if max(map(len, text.split("\n"))) <= _WORD_CHARACTERS:
        return text
    return _LONG_WORD.sub(r"\g<0>\n", text)
