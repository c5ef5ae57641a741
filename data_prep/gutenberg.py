"""Cut Project Gutenberg's header, licence and production notes away from a book.

The rules apply in this order to a text without blank lines at its ends or blanks around its lines:
- The book ends before the first line among the last 40,000 characters that begins with `End of
  (the) Project Gutenberg…` or `*** END OF THE/THIS PROJECT GUTENBERG…`. It also ends before a small
  print (`***START**THE SMALL PRINT!…` to `*END*THE SMALL PRINT!…`) that no text follows.
- The book begins after the last line among the first 30,000 characters that is a mark `*** START OF
  THE/THIS PROJECT GUTENBERG …***` or `*END*THE SMALL PRINT!…`, if a text follows that line.
- If the rest begins with "The Project Gutenberg Etext of …" or "… EBook of …", it loses its first
  paragraphs, as long as they mention the e-text or begin with a field such as `Title:`.
- If one of these rules applied, the book loses credits (paragraphs that begin with "Produced by",
  "E-text prepared by" and the like) and transcriber's notes that begin among its first or last
  3,000 characters. Other documents lose only notes that begin with "Transcriber's Note:".
"""

import re
from itertools import takewhile

_HEAD_CHARACTERS = 30_000
_LICENCE_CHARACTERS = 40_000
_NOTE_CHARACTERS = 3_000

_START = re.compile(
    r"^\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG[^*]{0,500}\*\*\*.*$"
    r"|^\*? ?END ?\*? ?THE SMALL PRINT!.*$",
    re.MULTILINE | re.IGNORECASE,
)
_END = re.compile(
    r"^(?:\*\*\* ?)?END OF (?:THE |THIS )?PROJECT GUTENBERG", re.MULTILINE | re.IGNORECASE
)
_SMALL_PRINT_AT_END = re.compile(
    r"^[* ]*START[* ]*THE SMALL PRINT!.*\n"
    r"(?:(?![* ]*(?:START|END)[* ]*THE SMALL PRINT!).*\n)*"
    r"[* ]*END[* ]*THE SMALL PRINT!.*\s*\Z",
    re.MULTILINE | re.IGNORECASE,
)
_PARAGRAPH = re.compile(r".+(?:\n.+)*\n*")
_TITLE = re.compile(r"\W{0,3}(?:the )?project gutenberg e-?(?:text|book) of\b", re.IGNORECASE)
_HEADER = re.compile(
    r"\A(?:title|author|editor|translator|illustrator|release date|posting date|last updated|"
    r"most recently updated|original publication|edition|language|character set encoding) *:"
    r"|\b(?:gutenberg|e-?texts?|e-?books?|copyright laws|this header)\b",
    re.IGNORECASE,
)
_NOTE_PARAGRAPH = r"(?:\A|(?<=\n\n))\n*\W{{0,3}}(?:{})\b.*(?:\n.+)*\n*"
_NOTE = re.compile(
    _NOTE_PARAGRAPH.format(r"transcriber['’]?s['’]? notes?(?= ?:)"),
    re.IGNORECASE,
)
_CREDIT_OR_NOTE = re.compile(
    _NOTE_PARAGRAPH.format(
        r"(?:this )?(?:e-?text|e-?book|html version)?(?: was)? ?(?:produced|prepared|scanned|"
        r"transcribed|proofed|created) (?:by|from)|transcriber['’]?s['’]? notes?|credits(?=:)"
    ),
    re.IGNORECASE,
)


def strip_gutenberg(text: str) -> str:
    """Return the book alone, without what Project Gutenberg put around it."""
    book = _cut_before(_SMALL_PRINT_AT_END, _cut_before(_END, text))
    starts = [mark.end() for mark in _START.finditer(book, 0, _HEAD_CHARACTERS)]
    followed = [start for start in starts if book[start:].strip()]
    book = _strip_header(book[followed[-1] if followed else 0 :].strip("\n"))
    return _strip_paragraphs(_NOTE if book == text else _CREDIT_OR_NOTE, book)


def _cut_before(end: re.Pattern[str], text: str) -> str:
    found = end.search(text, max(0, len(text) - _LICENCE_CHARACTERS))
    return text[: found.start()] if found else text


def _strip_header(book: str) -> str:
    """Strip a header that no mark ends."""
    if not _TITLE.match(book):
        return book
    *_, last = takewhile(lambda paragraph: _HEADER.search(paragraph[0]), _PARAGRAPH.finditer(book))
    return book[last.end() :]


def _strip_paragraphs(pattern: re.Pattern[str], text: str) -> str:
    """Strip the paragraphs that match and begin near the beginning or the end of a text."""
    head = _next_paragraph(text, _NOTE_CHARACTERS)
    tail = max(head, _next_paragraph(text, len(text) - _NOTE_CHARACTERS))
    return pattern.sub("", text[:head]) + text[head:tail] + pattern.sub("", text[tail:])


def _next_paragraph(text: str, position: int) -> int:
    end = text.find("\n\n", max(0, position))
    return len(text) if end < 0 else end + 2
