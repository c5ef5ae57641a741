"""Documents, and what is left out."""

from dataclasses import dataclass
from typing import Literal

Form = Literal["text", "record", "paragraphs", "sentences"]
"""How the lines of a document are to be taken.

- text: a text file, which may be hard-wrapped
- record: a field of a row, whose lines mean something
- paragraphs: one paragraph a line
- sentences: BookCorpus's one sentence a line
"""


@dataclass(frozen=True, slots=True)
class Document:
    """Raw document."""

    name: str
    content: bytes | str
    """Bytes are to be decoded."""
    form: Form


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Document or file that is not used, with a short reason that groups in a table."""

    name: str
    reason: str
