"""Turn a document into clean text by the steps that the user chose, and count their effects."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from data_prep.cleaning.characters import (
    collapse_blanks,
    compose,
    count_controls,
    cut_long_words,
    end_lines,
    lowercase,
    normalise_line_ends,
    plain_blanks,
    plain_punctuation,
    remove_invisible,
    remove_italics,
    replace_space_mark,
)
from data_prep.cleaning.encodings import decode
from data_prep.cleaning.fences import outside_fences
from data_prep.cleaning.gutenberg import has_marks, strip_gutenberg, strip_notes
from data_prep.cleaning.page_marks import strip_page_marks
from data_prep.cleaning.paragraphs import join_sentences, unwrap
from data_prep.cleaning.repair import repair
from data_prep.reading.documents import Document
from data_prep.steps import Steps

BINARY = "binary"
EMPTY = "empty"

# Of random bytes, 11 % are control characters.
_MAX_CONTROL_SHARE = 0.08


@dataclass(frozen=True)
class CleanText:
    """Clean text of a document."""

    text: str
    encoding: str
    """The encoding that the document was read in, by Python's name."""
    fault: str | None
    """Why the text is empty."""
    effects: dict[str, int]
    """The count of each step (see `Steps`) that changed the text."""


@dataclass
class _Cleaning:
    text: str
    effects: dict[str, int] = field(default_factory=dict)
    emptied_by: str | None = None

    def run(self, name: str, step: Callable[[str], tuple[str, int]]) -> None:
        if self.emptied_by:
            return
        self.text, count = step(self.text)
        if count:
            self.effects[name] = self.effects.get(name, 0) + count
            if not self.text or self.text.isspace():
                self.emptied_by = name


def clean(document: Document, steps: Steps) -> CleanText:
    """Clean one document."""
    decoded = decode(document.content, steps.encoding, steps.guess)
    if isinstance(document.content, str):
        decoded = replace(decoded, encoding=document.encoding)
    fault = decoded.fault
    if count_controls(decoded.text) > len(decoded.text) * _MAX_CONTROL_SHARE:
        fault = BINARY
    elif not fault and (not decoded.text or decoded.text.isspace()):
        fault = EMPTY
    if fault:
        return CleanText("", decoded.encoding, fault, {})
    work = _Cleaning(decoded.text, {"encoding": decoded.broken} if decoded.broken else {})
    _change_characters(work, steps)
    _change_paragraphs(work, document.form, steps)
    if work.emptied_by:
        fault = f"emptied by the step {work.emptied_by}"
        return CleanText("", decoded.encoding, fault, work.effects)
    return CleanText(work.text, decoded.encoding, None, work.effects)


def _change_characters(work: _Cleaning, steps: Steps) -> None:
    for name, is_on, step in (
        ("line_ends", steps.line_ends, normalise_line_ends),
        ("breaks", steps.breaks, end_lines),
        ("repair", steps.repair, repair),
        ("compose", steps.compose, compose),
        ("invisible", steps.invisible, remove_invisible),
        ("blanks", steps.blanks, outside_fences(plain_blanks, "")),
        ("punctuation", steps.punctuation, plain_punctuation),
        ("italics", steps.italics, remove_italics),
        ("space_mark", steps.space_mark, replace_space_mark),
    ):
        if is_on:
            work.run(name, step)


def _change_paragraphs(work: _Cleaning, form: str, steps: Steps) -> None:
    is_marked = (steps.gutenberg or steps.notes) and has_marks(work.text)
    for name, is_on, step in (
        ("gutenberg", steps.gutenberg and is_marked, _shortening(strip_gutenberg)),
        ("notes", steps.notes and is_marked, _shortening(strip_notes)),
        ("page_marks", steps.page_marks, _shortening(strip_page_marks)),
        ("unwrap", steps.unwrap and form == "text", unwrap),
        ("blanks", steps.blanks, outside_fences(collapse_blanks, "\n")),
        ("sentences", steps.sentences and form == "sentences", join_sentences),
        ("long_words", steps.long_words, cut_long_words),
        ("lowercase", steps.lowercase, lowercase),
    ):
        if is_on:
            work.run(name, step)


def _shortening(cut: Callable[[str], str]) -> Callable[[str], tuple[str, int]]:
    """Return a step that counts the characters by which `cut` shortens a text."""

    def step(text: str) -> tuple[str, int]:
        shorter = cut(text)
        return shorter, len(text) - len(shorter)

    return step
