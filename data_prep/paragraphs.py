"""Join hard-wrapped lines into paragraphs, and leave verse as it is.

The rules, for text without blanks at the ends of lines:
- If more than a tenth of the lines are longer than 100 characters, the text is not hard-wrapped,
  and every line is a paragraph.
- In a hard-wrapped text, blank lines separate blocks. The lines of a block are joined into one
  paragraph, with a space, or without one after a line that ends in a hyphen.
- The lines of verse (also of a title page, a list or an address) are not joined. A block is verse
  if none of its lines is longer than 62 characters and at least three quarters of them begin with a
  capital, after any quotes and digits.
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
    """Return the paragraphs of a text, with a line end between them."""
    lines = [line for line in text.split("\n") if line]
    if sum(len(line) > _WRAPPED_LINE for line in lines) > len(lines) / 10:
        return "\n".join(lines)
    return "\n".join(map(_join_block, _BLANK_LINES.split(text.strip("\n"))))


def join_sentences(text: str) -> str:
    """Join sentences, one a line, into paragraphs of bounded length."""
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
