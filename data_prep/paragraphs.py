"""Undo hard wrapping: lines into paragraphs, with verse left as it stands.

Rules, on text whose lines carry no blanks at their ends:
- A text is hard-wrapped unless more than a tenth of its lines are longer than 100 characters.
  One that is not keeps every line as a paragraph.
- In a hard-wrapped text, blank lines separate blocks, and a block is one paragraph: its lines are
  joined with a space, or with nothing after a line that ends in a hyphen.
- A block is verse (or a title page, list or address) if none of its lines is longer than 62
  characters and at least three quarters of them begin, quotes and digits aside, with a capital.
  Its lines stay apart.
- BookCorpus's sentences, one a line, are joined into paragraphs of at most 2,000 characters.
"""

import re
from collections.abc import Iterable, Iterator

_WRAPPED_LINE = 100
_VERSE_LINE = 62
_PARAGRAPH = 2000
_BLANK_LINES = re.compile(r"\n{2,}")
_CAPITAL_START = re.compile(r"[\W\d_]*(?=[^\W\d_])(?P<letter>\w)")


def unwrap(text: str) -> str:
    """The paragraphs of a text, separated by one line end each."""
    lines = [line for line in text.split("\n") if line]
    if sum(len(line) > _WRAPPED_LINE for line in lines) > len(lines) / 10:
        return "\n".join(lines)
    return "\n".join(map(_join_block, _BLANK_LINES.split(text.strip("\n"))))


def join_sentences(text: str) -> str:
    """Sentences, one a line, joined with spaces into paragraphs of bounded length."""
    return "\n".join(_pack(line for line in text.split("\n") if line))


def _join_block(block: str) -> str:
    if "\n" not in block or _is_verse(block.split("\n")):
        return block
    return block.replace("-\n", "-").replace("\n", " ")


def _is_verse(lines: list[str]) -> bool:
    if max(map(len, lines)) > _VERSE_LINE:
        return False
    starts = [match["letter"] for line in lines if (match := _CAPITAL_START.match(line))]
    return 4 * sum(map(str.isupper, starts)) >= 3 * len(starts)


def _pack(sentences: Iterable[str]) -> Iterator[str]:
    paragraph: list[str] = []
    length = 0
    for sentence in sentences:
        if paragraph and length + len(sentence) > _PARAGRAPH:
            yield " ".join(paragraph)
            paragraph, length = [], 0
        paragraph.append(sentence)
        length += len(sentence) + 1
    if paragraph:
        yield " ".join(paragraph)
