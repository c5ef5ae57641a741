"""Draw samples of a token folder by a seed, and decode them."""

import random
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from data_prep.manifest import BuiltFolder
from data_prep.pool import Pool
from data_prep.token_parts import TokenPart, reopened, tokenizer_of
from gpt_dist.data.tokens.folder import SPLITS, SplitName, TokenFolder

_WINDOW_TOKENS = 1 << 14
_WINDOWS = 64
_EXCERPTS = 8
_EXCERPT_CHARACTERS = 700

_LETTERS = ("L", "M")
_KINDS = {
    "N": "digits", "P": "punctuation", "S": "symbols, emoji", "Z": "spaces", "C": "control",
}  # fmt: skip
_RENAMED = {"Cjk": "Han", "Ideographic": "Han", "Combining": "combining marks"}
# Words before the name of the script in the names of some letters.
_FORMS = {"FULLWIDTH", "HALFWIDTH", "MODIFIER", "OLD", "SMALL"}


@dataclass(frozen=True)
class Excerpt:
    """Text of the corpus, as the tokens give it back."""

    split: str
    position: int
    """The first token in the split."""
    text: str


@dataclass(frozen=True)
class Sample:
    """Counts over the drawn windows of ids, and excerpts of them."""

    tokens: int
    share: float
    """The part of all tokens that was drawn."""
    texts: int
    """Tokens that are not reserved."""
    words: int
    bytes: int
    characters: Counter[str]
    excerpts: tuple[Excerpt, ...]


@dataclass(frozen=True)
class _Window:
    part: TokenPart
    tokens: int
    texts: int
    words: int
    bytes: int
    characters: Counter[str]
    begin: str


def draw_sample(folder: BuiltFolder, seed: int, pool: Pool) -> Sample:
    """Draw windows of 16,384 tokens, at most 64 of both splits together, and decode them."""
    count = sum(len(_begins(folder, split)) for split in SPLITS)
    draws = random.Random(seed)
    drawn = sorted(draws.sample(range(count), min(_WINDOWS, count)))
    windows = list(pool.map(_decode, [_window(folder, index) for index in drawn]))
    characters: Counter[str] = Counter()
    for window in windows:
        characters.update(window.characters)
    shown = sorted(draws.sample(range(len(windows)), min(_EXCERPTS, len(windows))))
    tokens = sum(window.tokens for window in windows)
    return Sample(
        tokens=tokens,
        share=tokens / max(1, folder.manifest.totals.tokens),
        texts=sum(window.texts for window in windows),
        words=sum(window.words for window in windows),
        bytes=sum(window.bytes for window in windows),
        characters=characters,
        excerpts=tuple(
            Excerpt(one.part.split, one.part.begin, one.begin)
            for one in (windows[index] for index in shown)
        ),
    )


def script_of(character: str) -> str:
    """Return the script of a letter by its name in Unicode, or else the kind of a character."""
    category = unicodedata.category(character)
    if character == "\n":
        return "line ends"
    if not category.startswith(_LETTERS):
        return _KINDS[category[0]]
    words = unicodedata.name(character, "unnamed letters").split()
    word = next((word for word in words if word not in _FORMS), words[0])
    name = word.partition("-")[0].capitalize()
    return _RENAMED.get(name, name)


def by_script(characters: Counter[str]) -> list[tuple[str, int]]:
    """Return the number of characters of each script or kind, the most first."""
    scripts: Counter[str] = Counter()
    for character, count in characters.items():
        scripts[script_of(character)] += count
    return scripts.most_common()


def outside_ascii(characters: Counter[str]) -> Iterable[tuple[str, int]]:
    """Return the characters outside ASCII with their numbers, the most frequent first."""
    return ((one, count) for one, count in characters.most_common() if not one.isascii())


def _begins(folder: TokenFolder, split: SplitName) -> range:
    """Return where the windows of a split begin."""
    return range(0, folder.manifest.splits[split].tokens, _WINDOW_TOKENS)


def _window(folder: TokenFolder, index: int) -> TokenPart:
    """Return a window by its place among those of both splits, which may be very many."""
    split: SplitName = "train"
    if index >= len(_begins(folder, split)):
        index, split = index - len(_begins(folder, split)), "validation"
    begin = _begins(folder, split)[index]
    end = min(begin + _WINDOW_TOKENS, folder.manifest.splits[split].tokens)
    return TokenPart(folder.path, split, begin, end)


def _decode(part: TokenPart) -> _Window:
    tokenizer = tokenizer_of(part.path)
    ids = reopened(part.path).split(part.split).read(part.begin, part.end)
    special = {tokenizer.end_of_text, tokenizer.start, tokenizer.delimiter, tokenizer.extract}
    text = tokenizer.decode(ids.tolist())
    return _Window(
        part=part,
        tokens=len(ids),
        texts=sum(index not in special for index in ids.tolist()),
        words=len(text.split()),
        bytes=len(text.encode()),
        characters=Counter(text),
        begin=text[:_EXCERPT_CHARACTERS],
    )
