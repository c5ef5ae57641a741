"""Documents, what is left out, and the choices of a user about reading."""

import os
from dataclasses import dataclass
from typing import Literal

from data_prep.cleaning.encodings import Decoded
from gpt_dist.files.entries import Record

Form = Literal["text", "record", "paragraphs", "sentences"]
"""How the lines of a document are to be taken.

- text: a text file, which may be hard-wrapped
- record: a field of a row, whose lines mean something
- paragraphs: one paragraph a line
- sentences: BookCorpus's one sentence a line
"""

DOCUMENT_BYTES = 32 << 20
"""The largest document of text, row, or file of markup."""


@dataclass(frozen=True, slots=True)
class Document:
    """Raw document.

    Its name is printable: the file, then `:member` for each archive around it, then `:5` for a row
    or `#5` for a part of text. In a file that is read in ranges of bytes, `@1000` stands for both:
    the byte at which the row or part begins.
    """

    name: str
    content: bytes | str
    """Bytes are to be decoded."""
    form: Form
    encoding: str = "utf-8"
    """The encoding that a text was read in, by Python's name, and the one that it says, if another.
    """


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Document or file that is not used, with a short reason that groups in a table."""

    name: str
    reason: str


class ReadOptions(Record):
    """Choices that decide which documents a file gives."""

    text_field: str = "text"
    """The field or column of a row that holds its text."""
    separator: str = "<|endoftext|>"
    """Text between documents, wherever it occurs; an empty one separates nothing."""
    encoding: str | None = None
    """The encoding of bytes that do not state theirs; None to find it out."""
    suffixes: tuple[str, ...] = ()
    """Suffixes that are not known, of files to read by their content."""
    guess: bool = True
    """True if markup may be read in an encoding that can only be guessed, as in `Steps`."""


def document_of(name: str, decoded: Decoded, form: Form) -> Document | LeftOut:
    """Return a decoded text as a document, or left out if it has a fault."""
    if decoded.fault:
        return LeftOut(name, decoded.fault)
    # Cleaning counts lone surrogates as broken and puts U+FFFD there again.
    text = decoded.text.replace("\ufffd", "\udcff") if decoded.broken else decoded.text
    return Document(name, text, form, decoded.encoding)


TOO_LONG = f"longer than {DOCUMENT_BYTES >> 20} MiB"
NULL = "null text"
EMPTY = "empty"


def no_field(field: str) -> str:
    """Return the reason to leave out a row or table without the text field."""
    return f'no field "{field}" (choose with --text-field)'


def not_text(field: str) -> str:
    """Return the reason to leave out a row or table whose text field holds something else."""
    return f'"{field}" is no text'


def printable(name: str) -> str:
    """Replace the characters of `name` that are not UTF-8 or not printable."""
    text = os.fsencode(name).decode("utf-8", errors="replace")
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
