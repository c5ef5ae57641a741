"""Join hard-wrapped lines into paragraphs, and leave every other line as it is.

A wrapped line is filled: the first word of the next line would not have fitted into the column. The
rules, for lines that may be indented:
- Line ends are looked at that divide a sentence: the next line begins with a letter that is no
  capital, and no punctuation ends the line. The column is the length that nine tenths of their
  lines do not exceed. A text is hard-wrapped if most of these lines are filled and they are not
  rare. Then its blocks, which blank lines separate, are joined. A text of verse with some prose is
  wrapped in those blocks that show it themselves. Lines of other texts are paragraphs, and so are
  those of programs, in which some lines end in brackets.
- Lines are joined with a space, or without one after a hyphen in a word, after a dash that no space
  precedes, or between characters of a script that is written without spaces.
- Blocks of code in fences (```) stay as they are, and are no evidence.
- Verse, title pages, lists and addresses keep their lines: blocks without a line of more than 62
  characters of which three quarters begin with a capital, after any quotes and digits; blocks with
  gaps in half of the lines; and blocks of which half of the lines leave much room, where only lines
  that divide a sentence are joined.
- Inside a block, an indented line or an item of a list begins a paragraph if the line before it
  ends with punctuation or leaves room. If blank lines are rare, so does any line after one that
  ends with punctuation and leaves room.
- BookCorpus's sentences, one a line, are joined into paragraphs of at most 2,000 characters.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, pairwise

import numpy as np

from data_prep.cleaning.blocks import Blocks, find_blocks
from data_prep.cleaning.fences import split_fenced

_VERSE_LINE = 62
_PARAGRAPH = 2000
_SAMPLES = 16
_SAMPLE_CHARACTERS = 4 << 10
_COLUMN_QUANTILE = 0.9
_REACH_QUANTILE = 0.02
_RAGGED = 8  # characters by which the lines of hand-made wrapping differ
_ROOM = 15  # more than that
_FILLED_SHARE = 0.7
_DIVIDED_SHARE = 0.1
_UNENDED_SHARE = 0.45
_VERSE_SHARE = 0.5
_CODE_SHARE = 0.03
_CODE_ENDS = ("{", "}", ");", "):", "*/")
# Short lines are hard-wrapped only if many show it.
_COLUMN = 50
_NARROW_COLUMN = 30
_MANY = 50
_LONG_BLOCK = 25  # lines of a block, on average, where blank lines do not separate paragraphs
_HUGE_BLOCK = 200

_CAPITAL_START = re.compile(r"[\W\d_]*(?=[^\W\d_])(?P<letter>\w)")
_ITEM = re.compile(r"\n(?:[-*•+–—] |\(?\d{1,3}[.)] )")
_ITEM_START = re.compile(r"[-*•+–—] |\(?\d{1,3}[.)] ")
_HYPHENS = ("-\n", "‐\n", "–\n", "—\n")
# A hyphen inside a word, or a dash without a space before it.
_HYPHENATED = re.compile(r"(?:\w[-‐]|[^\s\-–—](?:-{2,}|[–—]+))\n")
_SENTENCE_END = frozenset(".!?:;\"”’'»)]।。！？؟…」』*_")
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\u9fff\uf900-\ufaff\uff00-\uffef"
)
_FIRST_SPACELESS = "\u0e00"
_SPACELESS_END = re.compile(rf"(?<=[{_SPACELESS}])\n(?=[{_SPACELESS}])")
_SPACELESS_START = re.compile(f"[{_SPACELESS}]")


@dataclass
class _Breaks:
    """Counts of line ends inside blocks."""

    all: int = 0
    unended: int = 0
    """Those without punctuation."""
    capitals: int = 0
    """Those without punctuation, before a capital."""
    code: int = 0
    spaceless: int = 0
    lengths: list[int] = field(default_factory=list)
    """The lengths of the lines before those that divide a sentence."""
    reaches: list[int] = field(default_factory=list)
    """The same with the first word of the next line."""


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
    verse: bool
    """Whether most lines begin with a capital."""
    indented: bool
    items: bool
    spaceless: bool


def unwrap(text: str) -> tuple[str, int]:
    """Join the lines of hard-wrapped paragraphs, outside fences of code.

    Returns:
        The text, and the number of line ends that were replaced and of blanks around lines that
        were removed. A text in which no lines are joined stays as it is.
    """
    pieces = split_fenced(text)
    prose = [_without_trailing(piece) for piece in pieces[::2]]
    sections = [list(find_blocks(piece)) for piece in prose]
    wrapping = _find_wrapping("\n".join(prose), sum(len(one) for one in chain(*sections)))
    if wrapping is None:
        return text, 0
    changes = 0
    trailing = sum(map(len, pieces[::2])) - sum(map(len, prose))
    for number, blocks in enumerate(sections):
        joined = [_join_blocks(one, wrapping) for one in blocks]
        pieces[2 * number] = "".join(part for part, _ in joined)
        changes += sum(count for _, count in joined)
    if not changes:
        return text, 0
    return "".join(pieces), changes + trailing


def join_sentences(text: str) -> tuple[str, int]:
    """Join sentences, one a line, into paragraphs of bounded length.

    Returns:
        The text, and the number of line ends that were replaced.
    """
    lines = [line for line in text.split("\n") if line]
    joined = "\n".join(_pack(lines))
    return joined, len(lines) - 1 - joined.count("\n") if lines else 0


def _without_trailing(text: str) -> str:
    """Remove the spaces before line ends."""
    if " \n" not in text:
        return text
    return "\n".join([line.rstrip(" ") for line in text.split("\n")])


def _find_wrapping(text: str, blocks: int) -> _Wrapping | None:
    """Return how a text is hard-wrapped, or None if it is not."""
    breaks = _count_breaks(text)
    if not breaks.lengths or breaks.code > _CODE_SHARE * breaks.all:
        return None
    is_spaceless = breaks.spaceless * 2 > len(breaks.lengths)
    column = _quantile(breaks.lengths, _COLUMN_QUANTILE)
    filled = sum(reach >= column - _RAGGED for reach in breaks.reaches)
    narrowest = _NARROW_COLUMN if len(breaks.lengths) >= _MANY else _COLUMN
    if column * (1 + is_spaceless) < narrowest:
        return None
    everywhere = (
        filled >= _FILLED_SHARE * len(breaks.reaches)
        and len(breaks.reaches) >= _DIVIDED_SHARE * breaks.all
        and breaks.unended >= _UNENDED_SHARE * breaks.all
    )
    if not everywhere and (column < _COLUMN or breaks.capitals < _VERSE_SHARE * breaks.all):
        return None
    return _Wrapping(
        column,
        _quantile(breaks.reaches, _REACH_QUANTILE),
        everywhere,
        separated=text.count("\n") < _LONG_BLOCK * blocks,
        verse=breaks.capitals > _VERSE_SHARE * breaks.all,
        indented="\n " in text,
        items=bool(_ITEM.search(text)),
        spaceless=breaks.spaceless > 0,
    )


def _count_breaks(text: str) -> _Breaks:
    breaks = _Breaks()
    for line, following in _sample_pairs(text):
        breaks.all += 1
        breaks.code += line.endswith(_CODE_ENDS)
        if line[-1] in _SENTENCE_END:
            continue
        breaks.unended += 1
        start = following.lstrip()
        if start[0].isupper():
            breaks.capitals += 1
        elif start[0].isalpha():
            breaks.spaceless += bool(_SPACELESS_START.match(start))
            breaks.lengths.append(len(line))
            breaks.reaches.append(-_room(line, following, 0))
    return breaks


def _sample_pairs(text: str) -> Iterator[tuple[str, str]]:
    """Yield neighbouring lines of a block, from all over a long text."""
    step = max(_SAMPLE_CHARACTERS, len(text) // _SAMPLES)
    for begin in range(0, len(text), step):
        end = begin + _SAMPLE_CHARACTERS + 1
        lines = text[begin:end].split("\n")
        first = 1 if begin else 0
        last = len(lines) if end > len(text) else -1
        for line, following in pairwise(lines[first:last]):
            if line and following.strip():
                yield line, following


def _first_word(line: str) -> int:
    end = line.find(" ")
    return len(line) if end < 0 else end


def _quantile(values: list[int], share: float) -> int:
    return sorted(values)[int(share * (len(values) - 1))]


def _join_blocks(blocks: Blocks, wrapping: _Wrapping) -> tuple[str, int]:
    """Return a section with joined lines, and the count of `unwrap`."""
    several = blocks.several()
    plain = np.zeros(len(several), np.bool_)
    if wrapping.everywhere and wrapping.separated and not wrapping.spaceless:
        plain = blocks.plain(several, wrapping.column - _ROOM, _VERSE_LINE, _HUGE_BLOCK)
    changes = int((blocks.last - blocks.first)[several[plain]].sum())
    text, done = blocks.joined(several[plain]), 0
    pieces: list[str] = []
    for number in several[~plain]:
        begin, end = blocks.bounds(number)
        block, count = _join_block(text[begin:end], wrapping)
        if count:
            pieces += text[done:begin], block
            done = end
            changes += count
    return "".join([*pieces, text[done:]]), changes


def _join_block(block: str, wrapping: _Wrapping) -> tuple[str, int]:
    """Return a block with joined lines, and the count of `unwrap`."""
    lines = block.split("\n")
    if not (wrapping.everywhere or _shows_wrapping(lines, wrapping)):
        return block, 0
    lengths = list(map(len, lines))
    begins: Callable[[str, str, _Wrapping], bool]
    indented = wrapping.indented and "\n " in block
    spaced = indented or "   " in block
    longest = max(len(" ".join(line.split())) for line in lines) if spaced else max(lengths)
    if longest <= _VERSE_LINE and _is_verse(lines, wrapping):
        return block, 0
    if spaced and _is_table(lines):
        return block, 0
    if min(lengths[:-1]) < wrapping.column - _ROOM and _leaves_room(lines, wrapping):
        begins = _begins_entry
    elif not wrapping.separated or len(lines) > _HUGE_BLOCK:
        begins = _begins_paragraph
    elif indented or (wrapping.items and _ITEM.search(block)):
        begins = _never
    else:
        return _join(block, wrapping), len(lines) - 1
    joined = "\n".join(_split(lines, begins, wrapping))
    line_ends = len(lines) - 1 - joined.count("\n")
    indents = sum(len(line) - len(line.lstrip()) for line in lines)
    return (joined, line_ends + indents) if line_ends else (block, 0)


def _join(block: str, wrapping: _Wrapping) -> str:
    if "-\n" in block or not (block.isascii() or all(end not in block for end in _HYPHENS)):
        lines = block.split("\n")
        block = "".join([_joined_end(f"{line}\n") for line in lines[:-1]]) + lines[-1]
    if wrapping.spaceless:
        block = _SPACELESS_END.sub("", block)
    return block.replace("\n", " ")


def _joined_end(line: str) -> str:
    """Return a line without its end if the next one follows without a space."""
    return line[:-1] if line.endswith(_HYPHENS) and _HYPHENATED.search(line) else line


def _split(
    lines: list[str], begins: Callable[[str, str, _Wrapping], bool], wrapping: _Wrapping
) -> Iterator[str]:
    """Yield the paragraphs inside a block.

    Args:
        lines: The lines of the block.
        begins: Tells of two lines whether the second one begins a paragraph. Indented lines and
            items do so in any case, after the end of a sentence.
        wrapping: The evidence of the whole text.
    """
    starts, items = _marked_starts(lines)
    column = max(map(len, lines))
    begin = 0
    for number, (line, following) in enumerate(pairwise(lines), start=1):
        is_end = line[-1] in _SENTENCE_END or _room(line, following, column) > _ROOM
        if number in items or (number in starts and is_end) or begins(line, following, wrapping):
            yield _join("\n".join(map(str.lstrip, lines[begin:number])), wrapping)
            begin = number
    yield _join("\n".join(map(str.lstrip, lines[begin:])), wrapping)


def _marked_starts(lines: list[str]) -> tuple[set[int], set[int]]:
    """Return the numbers of the lines that may begin a paragraph, and of those that must.

    Lines that are indented more than others may, and so may items of a list. If the block begins
    with an item, all items must.
    """
    indents = [len(line) - len(line.lstrip()) for line in lines]
    base = min(indents[1:])
    starts = {number for number, indent in enumerate(indents) if indent > base}
    items = {n for n, line in enumerate(lines) if _ITEM_START.match(line, indents[n])}
    if len(items) < 2:
        return starts, set()
    return starts | items, items if 0 in items else set()


def _begins_entry(line: str, following: str, wrapping: _Wrapping) -> bool:
    """Tell whether a line of a list is no continuation of the line before it."""
    is_filled = _room(line, following, wrapping.column) <= _RAGGED
    return not (is_filled and line[-1] not in _SENTENCE_END and following.lstrip()[:1].islower())


def _begins_paragraph(line: str, following: str, wrapping: _Wrapping) -> bool:
    """Tell whether a paragraph ends in a line that leaves room."""
    return line[-1] in _SENTENCE_END and _room(line, following, wrapping.reach) > 0


def _never(_line: str, _following: str, _wrapping: _Wrapping) -> bool:
    return False


def _room(line: str, following: str, column: int) -> int:
    """Return the room that a line of a column leaves, with the next word."""
    start = following.lstrip()
    dense = start[:1] >= _FIRST_SPACELESS and _SPACELESS_START.match(start)
    return column - len(line) - (1 if dense else 1 + _first_word(start))


def _shows_wrapping(lines: list[str], wrapping: _Wrapping) -> bool:
    """Tell whether all lines but the last are filled, and two or more of them divide sentences."""
    divided = 0
    for line, following in pairwise(lines):
        start = following.lstrip()
        if _room(line, following, wrapping.column) > _RAGGED:
            return False
        divided += line[-1] not in _SENTENCE_END and start[:1].isalpha() and not start[0].isupper()
    return divided >= 2


def _leaves_room(lines: list[str], wrapping: _Wrapping) -> bool:
    """Tell whether half of the lines leave much room, in a longer block in its own column."""
    longest = max(map(len, lines))
    column = min(wrapping.column, longest) if len(lines) > 3 else wrapping.column
    roomy = sum(_room(line, following, column) > _ROOM for line, following in pairwise(lines))
    return 2 * roomy >= len(lines) - 1


def _is_table(lines: list[str]) -> bool:
    return 2 * sum("   " in line.strip() for line in lines) >= len(lines)


def _is_verse(lines: list[str], wrapping: _Wrapping) -> bool:
    starts = [match["letter"] for line in lines if (match := _CAPITAL_START.match(line))]
    if 4 * sum(map(str.isupper, starts)) < 3 * len(starts):
        return False
    # A line of prose may begin with a capital, but it is filled.
    return (wrapping.verse and wrapping.column <= _VERSE_LINE) or any(
        _room(line, following, wrapping.column) >= 0 for line, following in pairwise(lines)
    )


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
