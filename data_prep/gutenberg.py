"""Cut Project Gutenberg's header, licence and production notes away from a book.

Rules, on text whose lines carry no blanks at their ends:
- all up to the line `*** START OF THE/THIS PROJECT GUTENBERG …***`, or up to the older
  `*END*THE SMALL PRINT!…` line, where such a line is among the first 30,000 characters;
- all from the first line that begins with `End of (the) Project Gutenberg…` or
  `*** END OF THE/THIS PROJECT GUTENBERG…`, where such a line is among the last 40,000 characters;
- of what is left, credits and transcriber's notes (paragraphs that begin with "Produced by",
  "E-text prepared by", "Transcriber's Note" and the like) among the first and last 3,000
  characters.
"""

import re

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
_NOTE = re.compile(
    r"(?:\A|(?<=\n\n))\n*\W{0,3}"
    r"(?:(?:this )?(?:e-?text|e-?book|html version)?(?: was)? ?(?:produced|prepared|scanned|"
    r"transcribed|proofed|created) (?:by|from)|transcriber['’]?s['’]? notes?|credits:)\b"
    r".*(?:\n.+)*\n*",
    re.IGNORECASE,
)


def strip_gutenberg(text: str) -> str:
    """The book alone, without what Project Gutenberg put around it."""
    if starts := list(_START.finditer(text, 0, _HEAD_CHARACTERS)):
        text = text[starts[-1].end() :]
    if end := _END.search(text, max(0, len(text) - _LICENCE_CHARACTERS)):
        text = text[: end.start()]
    return _strip_notes(text.strip("\n"))


def _strip_notes(text: str) -> str:
    head = _whole_paragraphs(text, _NOTE_CHARACTERS)
    tail = max(head, len(text) - _NOTE_CHARACTERS)
    begin, middle, end = text[:head], text[head:tail], text[tail:]
    return _NOTE.sub("", begin) + middle + _NOTE.sub("", end)


def _whole_paragraphs(text: str, length: int) -> int:
    end = text.find("\n\n", length)
    return len(text) if end < 0 else end + 2
