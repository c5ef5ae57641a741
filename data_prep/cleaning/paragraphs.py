"""Join hard-wrapped lines into paragraphs, and leave every other line as it is.

A wrapped line is filled: the first word of the next line would not have fitted into the column. The
rules, for lines that may be indented:
- Line ends are looked at that divide a sentence: the next line begins with a letter that is no
  capital, and no punctuation ends the line. The column is the length that nine tenths of their
  lines do not exceed. A text is hard-wrapped if most of these lines are filled and they are not
  rare. Then its blocks, which blank lines separate, are joined. A text of verse with some prose is
  wrapped in those blocks that show it themselves. Lines of other texts are paragraphs.
- Lines are joined with a space, or without one after a hyphen or between characters of a script
  that is written without spaces.
- Verse, title pages, lists and addresses keep their lines: blocks without a line of more than 62
  characters of which three quarters begin with a capital, after any quotes and digits, and blocks of
  which half of the lines leave much room.
- Inside a block, an indented line or an item of a list begins a paragraph if the line before it ends
  with punctuation or leaves room. If blank lines are rare, so does any line after one that ends
  with punctuation and leaves room.
- BookCorpus's sentences, one a line, are joined into paragraphs of at most 2,000 characters.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

_VERSE_LINE = 62
_PARAGRAPH = 2000
_SAMPLES = 16
_SAMPLE_LINES = 250
_COLUMN_QUANTILE = 0.9
_REACH_QUANTILE = 0.02
_RAGGED = 8  # characters by which the lines of hand-made wrapping differ
_ROOM = 15  # more than that
_FILLED_SHARE = 0.7
_DIVIDED_SHARE = 0.1
_UNENDED_SHARE = 0.45
_VERSE_SHARE = 0.5
# Short lines are hard-wrapped only if many show it.
_COLUMN = 50
_NARROW_COLUMN = 30
_MANY = 50
_LONG_BLOCK = 25  # lines of a block, on average, where blank lines do not separate paragraphs
_HUGE_BLOCK = 200

_BLANK_LINES = re.compile(r"\n{2,}")
_CAPITAL_START = re.compile(r"[\W\d_]*(?=[^\W\d_])(?P<letter>\w)")
_ITEM = re.compile(r"\n(?:[-*•+–—] |\(?\d{1,3}[.)] )")
_ITEM_START = re.compile(r"[-*•+–—] |\(?\d{1,3}[.)] ")
_SENTENCE_END = frozenset(".!?:;\"”’'»)]।。！？؟…」』*_")
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\u9fff\uf900-\ufaff\uff00-\uffef"
_SPACELESS_END = re.compile(rf"(?<=[{_SPACELESS}])\n(?=[{_SPACELESS}])")
_SPACELESS_START = re.compile(f"[{_SPACELESS}]")


@dataclass(frozen=True)
class _Wrapping:
    """Evidence of hard wrapping in a text."""

    column: int
    reach: int
    """The length that nearly every wrapped line would have exceeded with one word more."""
    everywhere: bool
    """Whether the text is wrapped, but for blocks that show the contrary."""
    separated: bool
    """Whether blank lines separate paragraphs."""
    indented: bool
    spaceless: bool


def unwrap(text: str) -> tuple[str, int]:
    """Join the lines of hard-wrapped paragraphs.

    Returns:
        The text, and the number of line ends that were replaced.
    """
    while " \n" in text:
        text = text.replace(" \n", "\n")
    wrapping = _find_wrapping(text.split("\n"))
    if wrapping is None:
        return text, 0
    blocks = _BLANK_LINES.split(text.strip("\n"))
    joined = "\n".join([_join_block(block, wrapping) for block in blocks])
    return joined, text.strip("\n").count("\n") - joined.count("\n") - _blank_lines(blocks, text)


def join_sentences(text: str) -> tuple[str, int]:
    """Join sentences, one a line, into paragraphs of bounded length.

    Returns:
        The text, and the number of line ends that were replaced.
    """
    lines = [line for line in text.split("\n") if line]
    joined = "\n".join(_pack(lines))
    return joined, len(lines) - 1 - joined.count("\n") if lines else 0


def _blank_lines(blocks: list[str], text: str) -> int:
    lines = sum(block.count("\n") + 1 for block in blocks)
    return text.strip("\n").count("\n") + 1 - lines


def _find_wrapping(lines: list[str]) -> _Wrapping | None:
    """Return how a text is hard-wrapped, or None if it is not."""
    breaks = unended = capitals = filled_lines = 0
    lengths: list[int] = []
    reaches: list[int] = []
    spaceless = 0
    for line, following in _sample_pairs(lines):
        breaks += 1
        if line[-1] in _SENTENCE_END:
            continue
        unended += 1
        start = following.lstrip()
        if start[0].isupper():
            capitals += 1
        elif start[0].isalpha():
            lengths.append(len(line))
            dense = bool(_SPACELESS_START.match(start))
            spaceless += dense
            reaches.append(len(line) + (1 if dense else 1 + _first_word(start)))
    if not lengths:
        return None
    is_spaceless = spaceless * 2 > len(lengths)
    column = _quantile(lengths, _COLUMN_QUANTILE)
    filled_lines = sum(reach >= column - _RAGGED for reach in reaches)
    narrowest = _NARROW_COLUMN if len(lengths) >= _MANY else _COLUMN
    if column * (1 + is_spaceless) < narrowest:
        return None
    everywhere = (
        filled_lines >= _FILLED_SHARE * len(reaches)
        and len(reaches) >= _DIVIDED_SHARE * breaks
        and unended >= _UNENDED_SHARE * breaks
    )
    if not everywhere and (column < _COLUMN or capitals < _VERSE_SHARE * breaks):
        return None
    count = sum(map(bool, lines))
    blocks = 1 + sum(not line and bool(following) for line, following in pairwise(lines))
    return _Wrapping(
        column,
        _quantile(reaches, _REACH_QUANTILE),
        everywhere,
        separated=count < _LONG_BLOCK * blocks,
        indented=any(line.startswith(" ") for line in lines),
        spaceless=spaceless > 0,
    )


def _sample_pairs(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield neighbouring lines of a block, from all over a long text."""
    step = max(_SAMPLE_LINES, len(lines) // _SAMPLES)
    for begin in range(0, len(lines), step):
        for line, following in pairwise(lines[begin : begin + _SAMPLE_LINES + 1]):
            if line and following.strip():
                yield line, following


def _first_word(line: str) -> int:
    end = line.find(" ")
    return len(line) if end < 0 else end


def _quantile(values: list[int], share: float) -> int:
    return sorted(values)[int(share * (len(values) - 1))]


def _join_block(block: str, wrapping: _Wrapping) -> str:
    if "\n" not in block:
        return block
    lines = block.split("\n")
    lengths = list(map(len, lines))
    if not wrapping.everywhere and not _shows_wrapping(lines, wrapping):
        return block
    if max(lengths) <= _VERSE_LINE and _is_verse(lines):
        return block
    if min(lengths[:-1]) < wrapping.column - _ROOM and _leaves_room(lines, lengths, wrapping):
        return block
    long = not wrapping.separated or len(lines) > _HUGE_BLOCK
    if long or (wrapping.indented and "\n " in block) or _ITEM.search(block):
        return "\n".join(_split(lines, long, wrapping))
    return _join(block, wrapping)


def _join(block: str, wrapping: _Wrapping) -> str:
    block = block.replace("-\n", "-")
    if not block.isascii():
        block = re.sub("(?<=[‐–—])\n", "", block)
        if wrapping.spaceless:
            block = _SPACELESS_END.sub("", block)
    return block.replace("\n", " ")


def _split(lines: list[str], long: bool, wrapping: _Wrapping) -> Iterator[str]:
    """Yield the paragraphs inside a block."""
    indents = [len(line) - len(line.lstrip()) for line in lines]
    base = min(indents)
    begin = 0
    for number, (line, following) in enumerate(pairwise(lines), start=1):
        ends = line[-1] in _SENTENCE_END
        word = 0 if _SPACELESS_START.match(following) else _first_word(following.lstrip())
        room = len(line) + 1 + word < wrapping.reach
        marked = indents[number] > base or _ITEM_START.match(following, indents[number])
        if (marked and (ends or room)) or (long and ends and room):
            yield _join("\n".join(map(str.lstrip, lines[begin:number])), wrapping)
            begin = number
    yield _join("\n".join(map(str.lstrip, lines[begin:])), wrapping)


def _shows_wrapping(lines: list[str], wrapping: _Wrapping) -> bool:
    """Tell whether all lines of a block but the last are filled, and two or more divide sentences."""
    divided = 0
    for line, following in pairwise(lines):
        start = following.lstrip()
        if len(line) + 1 + _first_word(start) < wrapping.column - _RAGGED:
            return False
        divided += line[-1] not in _SENTENCE_END and start[0].isalpha() and not start[0].isupper()
    return divided >= 2


def _leaves_room(lines: list[str], lengths: list[int], wrapping: _Wrapping) -> bool:
    """Tell whether half of the lines leave much room, measured by the block's own column if long."""
    column = min(wrapping.column, max(lengths)) if len(lines) > 3 else wrapping.column
    roomy = sum(
        len(line) + 1 + _first_word(following.lstrip()) < column - _ROOM
        for line, following in pairwise(lines)
        if not _SPACELESS_START.match(following)
    )
    return 2 * roomy >= len(lines) - 1


def _is_verse(lines: list[str]) -> bool:
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
