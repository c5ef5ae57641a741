"""Cut Project Gutenberg's header, licence and production notes away from a book.

The rules, for text whose lines may be indented. Nothing is cut from a document without marks of
Project Gutenberg: those that begin or end a book, and credits that name Distributed Proofreaders.
The name of a site is no mark.
- The book ends before the first line among the last 40,000 characters that begins with `*** END OF
  THE/THIS PROJECT GUTENBERG…`, `End of (the) Project Gutenberg EBook of` or `End of Project
  Gutenberg's` with a capital after it. It also ends before a small print
  (`***START**THE SMALL PRINT!…` to `*END*THE SMALL PRINT!…`) that no text follows.
- The book begins after the last line among the first 30,000 characters that is a mark `*** START OF
  THE/THIS PROJECT GUTENBERG …***` or `*END*THE SMALL PRINT!…`, if a text follows that line.
- If the rest begins with a title such as "The Project Gutenberg Etext of …" or "A Project Gutenberg
  of Australia eBook", it loses its first paragraphs, as long as they mention the e-text or begin
  with a field such as `Title:`. A book of Project Gutenberg Australia also loses its last
  paragraphs, as long as they mention the project.
- Credits are paragraphs among the first or last 3,000 characters that begin with "Produced by",
  "E-text prepared by" and the like.
- A transcriber's note is cut if it begins among the first or last 10,000 characters. In brackets it
  ends at the closing one. Otherwise it goes on over paragraphs that single blank lines separate,
  up to a wider gap or a heading. A note with a heading of its own, in the last half of the book and
  its last 50,000 characters, ends with the book or at a heading such as "Footnotes".
"""

import re
from collections.abc import Iterator

_HEAD_CHARACTERS = 30_000
_LICENCE_CHARACTERS = 40_000
_CREDIT_CHARACTERS = 3_000
_LONGEST_CREDIT = 1_000
_NOTE_CHARACTERS = 10_000
_LONGEST_NOTE = 8_000
_LAST_NOTE_CHARACTERS = 50_000

_START = re.compile(
    r"^[ \t]*\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG[^*]{0,500}\*\*\*.*$"
    r"|^[ \t]*\*? ?END ?\*? ?THE SMALL PRINT!.*$",
    re.MULTILINE | re.IGNORECASE,
)
# Without asterisks, only what a sentence would not go on with.
_END = re.compile(
    r"^[ \t]*(?:\*\*\* ?END OF (?:THE |THIS )?PROJECT GUTENBERG"
    r"|(?-i:E)ND OF (?:THE |THIS )?PROJECT GUTENBERG(?: OF AUSTRALIA)?"
    r"(?:['’]S?(?-i: [\"“'‘]?[^\W_a-z])"
    r"|(?:['’]S?)? E-?(?:TEXT|BOOK)(?: OF\b|(?-i: [\"“'‘]?[^\W_a-z])|[^\w\n]*$)))",
    re.MULTILINE | re.IGNORECASE,
)
_SMALL_PRINT_AT_END = re.compile(
    r"^[* \t]*START[* ]*THE SMALL PRINT!.*\n"
    r"(?:(?![* \t]*(?:START|END)[* ]*THE SMALL PRINT!).*\n)*"
    r"[* \t]*END[* ]*THE SMALL PRINT!.*\s*\Z",
    re.MULTILINE | re.IGNORECASE,
)
_MAKER = re.compile(r"distributed\s+proofread|pgdp\.net", re.IGNORECASE)
_WORDS = ("gutenberg", "the small print!", "proofread", "pgdp.net")
_TITLE = re.compile(
    r"\W{0,8}(?:(?:the |a )?project gutenberg(?:['’]s)? (?:e-?(?:text|book) of\b"
    r"|(?:of )?australia\b)|(?:title|author) *:[^\0]{0,400}?gutenberg (?:of )?australia\b)",
    re.IGNORECASE,
)
_AUSTRALIA = re.compile(r"gutenberg (?:of )?australia\b|gutenberg\.net\.au", re.IGNORECASE)
_HEADER = re.compile(
    r"\A\W*(?:title|author|editor|translator|illustrator|release date|posting date|last updated|"
    r"most recently updated|original publication|edition|language|character set encoding) *:"
    r"|\b(?:gutenberg|e-?texts?|e-?books?|copyright laws|this header|treasure-trove)\b|\A\W+\Z",
    re.IGNORECASE,
)
_FOOTER = re.compile(r"gutenberg|free e-?books|\A\W+\Z", re.IGNORECASE)
_PARAGRAPH = re.compile(r"^[ \t]*[^\s][^\n]*(?:\n[ \t]*[^\s][^\n]*)*", re.MULTILINE)
_LONGEST_HEADER = 3_000  # of a paragraph
_NOTE = re.compile(r"\W{0,100}transcriber['’]?s?['’]? notes?\b(?P<rest>[^\n]*)", re.IGNORECASE)
_CREDIT = re.compile(
    r"\W{0,3}(?:(?:this )?(?:e-?text|e-?book|html version)?(?: was)? ?(?:produced|prepared|scanned|"
    r"transcribed|proofed|created) (?:by|from)\b|credits *:)",
    re.IGNORECASE,
)
_HEADING = re.compile(
    r"\W*(?:chapter|book|part|volume|contents|preface|introduction|footnotes?|index|appendix"
    r"|the end|by)\b[^\n]{0,60}\Z",
    re.IGNORECASE,
)
_BORDER = re.compile(r"\n[ \t]*[^\w\s]{3,}[ \t]*\Z")
_BRACKETS = {"[": "]", "(": ")", "{": "}"}

Span = tuple[int, int]


def has_marks(text: str) -> bool:
    """Tell whether the beginning or the end of a text mentions Project Gutenberg as its maker."""
    head, tail = text[:_HEAD_CHARACTERS], text[-_LICENCE_CHARACTERS:]
    ends = (head + tail).lower()
    if not any(word in ends for word in _WORDS):
        return False
    return bool(
        _START.search(head)
        or _END.search(tail)
        or _SMALL_PRINT_AT_END.search(tail)
        or _TITLE.match(head.lstrip())
        or any(_MAKER.search(text, *credit) for credit in _credits(text))
    )


def strip_gutenberg(text: str) -> str:
    """Return the book of a text with marks, without what Project Gutenberg put around it."""
    book = _cut_before(_SMALL_PRINT_AT_END, _cut_before(_END, text))
    starts = [mark.end() for mark in _START.finditer(book, 0, _HEAD_CHARACTERS)]
    followed = [start for start in starts if book[start:].strip()]
    book = book[followed[-1] if followed else 0 :]
    is_australian = _AUSTRALIA.search(text, 0, _CREDIT_CHARACTERS) or _AUSTRALIA.search(
        text, max(0, len(text) - _CREDIT_CHARACTERS)
    )
    book = _strip_header(book)
    return (_strip_footer(book) if is_australian else book).strip("\n")


def strip_notes(text: str) -> str:
    """Return a text with marks, without transcriber's notes and credits."""
    ends = (text[: 2 * _NOTE_CHARACTERS] + text[-_LAST_NOTE_CHARACTERS:]).lower()
    spans = list(_notes(text)) if "transcriber" in ends else []
    spans += _credits(text)
    pieces: list[str] = []
    done = 0
    for begin, end in sorted(spans):
        if begin >= done:
            pieces.append(text[done:begin])
        done = max(done, end)
    kept = text[done:]
    return "".join(piece.lstrip("\n") if n else piece for n, piece in enumerate([*pieces, kept]))


def _cut_before(end: re.Pattern[str], text: str) -> str:
    found = end.search(text, max(0, len(text) - _LICENCE_CHARACTERS))
    return text[: found.start()] if found else text


def _strip_header(book: str) -> str:
    """Strip a header that no mark ends."""
    if not _TITLE.match(book.lstrip()):
        return book
    end = 0
    for paragraph in _PARAGRAPH.finditer(book):
        if len(paragraph[0]) > _LONGEST_HEADER or not _HEADER.search(paragraph[0]):
            break
        end = paragraph.end()
    return book[end:]


def _strip_footer(book: str) -> str:
    tail = max(0, len(book) - _CREDIT_CHARACTERS)
    for paragraph in reversed(list(_PARAGRAPH.finditer(book, book.find("\n", tail) + 1))):
        if not _FOOTER.search(paragraph[0]):
            break
        book = book[: paragraph.start()]
    return book


def _near_ends(text: str, characters: int) -> Iterator[re.Match[str]]:
    """Yield the paragraphs that begin among the first or last characters of a text."""
    for paragraph in _PARAGRAPH.finditer(text):
        if paragraph.start() > characters:
            break
        yield paragraph
    tail = max(characters, len(text) - characters)
    begin = text.find("\n\n", tail)
    if begin >= 0:
        yield from _PARAGRAPH.finditer(text, begin)


def _credits(text: str) -> Iterator[Span]:
    for paragraph in _near_ends(text, _CREDIT_CHARACTERS):
        if len(paragraph[0]) <= _LONGEST_CREDIT and _CREDIT.match(paragraph[0]):
            yield paragraph.span()


def _notes(text: str) -> Iterator[Span]:
    done = 0
    for paragraph in _near_ends(text, _NOTE_CHARACTERS):
        note = _NOTE.match(paragraph[0])
        if not note or paragraph.start() < done:
            continue
        opened = paragraph[0].lstrip()[0] in _BRACKETS
        is_heading = not note["rest"].strip(" \t:.*_=-|+]") and not opened
        if opened or is_heading or note["rest"].lstrip().startswith(":"):
            done = _note_end(text, paragraph, is_heading, opened)
        if done > paragraph.start():
            yield paragraph.start(), done
    if done < len(text):
        yield from _last_note(text, done)


def _last_note(text: str, done: int) -> Iterator[Span]:
    """Yield the note with its own heading that ends a book."""
    first = max(done, len(text) // 2, len(text) - _LAST_NOTE_CHARACTERS)
    for heading in re.finditer(
        r"\n\n[^\n\w]*transcriber['’]?s?['’]? notes?\W*\n", text[first:], re.I
    ):
        begin = first + heading.start() + 2
        following = _PARAGRAPH.finditer(text, first + heading.end())
        ends = (
            paragraph.start() for paragraph in following if _HEADING.match(paragraph[0].strip())
        )
        yield begin, next(ends, len(text))
        return


def _note_end(text: str, first: re.Match[str], is_heading: bool, opened: bool) -> int:
    """Return the end of the note that begins with the paragraph `first`."""
    end = shortest = first.end()
    if opened:
        return _closing_bracket(text, first) or end
    if _BORDER.search(first[0]):
        return end
    alone = is_heading and "\n" not in first[0].strip()
    for paragraph in _PARAGRAPH.finditer(text, end):
        is_near = alone or text.count("\n", end, paragraph.start()) <= 2
        if not is_near or _is_heading(paragraph[0]):
            return end
        if paragraph.end() - first.start() > _LONGEST_NOTE:
            return shortest  # no gap is wide in this text
        end = paragraph.end()
        shortest = end if alone else shortest
        alone = False
    return end


def _closing_bracket(text: str, first: re.Match[str]) -> int | None:
    opening = first[0].lstrip()[0]
    depth = 0
    for bracket in re.finditer(
        rf"[{re.escape(opening + _BRACKETS[opening])}]", text[first.start() :][:_LONGEST_NOTE]
    ):
        depth += 1 if bracket[0] == opening else -1
        if not depth:
            return first.start() + bracket.end()
    return None


def _is_heading(paragraph: str) -> bool:
    line = paragraph.strip()
    return "\n" not in line and len(line) < 60 and line[-1] not in ".,;:!?\"'”’])"
