"""Steps that change a text between its file and its tokens, and recipes that choose them."""

from pydantic import field_validator

from gpt_dist.files.entries import Record


class Steps(Record, use_attribute_docstrings=True):
    """Steps of cleaning, in the order in which they run; the effect of each is counted.

    The unit of each count stands at the end of its description.
    """

    encoding: str | None = None
    """The encoding of all bytes, or None to find it out for each document. Count: characters that
    stand for bytes that are no text in the encoding."""
    guess: bool = True
    """Whether to read bytes whose encoding can only be guessed: those without a byte-order mark
    that are not UTF-8. Otherwise the document is left out."""
    line_ends: bool = True
    """Write CRLF and CR as a line feed. Count: carriage returns."""
    breaks: bool = True
    """Write form feeds, vertical tabs and Unicode's separators as a line feed. Count: characters.
    """
    repair: bool = True
    """Repair mojibake, HTML entities, terminal codes and ligatures with ftfy. Count: lines."""
    compose: bool = True
    """Compose characters (Unicode's NFC). Count: characters, by which the text became shorter, or
    one if it did not."""
    invisible: bool = True
    """Remove control characters and invisible ones that spell nothing; joiners stay where a script
    needs them. Count: characters."""
    blanks: bool = True
    """Replace each run of white space in a line by one space, remove white space around lines, and
    remove blank lines; not in fenced code (```). Count: characters."""
    punctuation: bool = True
    """Write straight quotes, `--` for a dash, `-` for hyphens and en dashes, and `...`; not in
    Chinese or Japanese. Count: characters."""
    italics: bool = True
    """Remove the underscores of `_italics_`. Count: characters."""
    space_mark: bool = True
    """Write `_` for U+2581, which sentencepiece cannot tell from a space. Count: characters."""
    gutenberg: bool = True
    """Cut Project Gutenberg's header and licence. Count: characters."""
    notes: bool = True
    """Cut the credits and transcriber's notes of Project Gutenberg's books. Count: characters."""
    page_marks: bool = False
    """Cut page numbers, `[Pg 13]` and `[Illustration: ...]`. Count: characters."""
    unwrap: bool = True
    """Join the lines of hard-wrapped paragraphs. Count: line ends."""
    sentences: bool = True
    """Join BookCorpus's sentences into paragraphs of at most 2,000 characters. Count: line ends."""
    long_words: bool = True
    """Cut words of more than 4,096 characters. Count: cuts."""
    lowercase: bool = True
    """Lower-case the text. Count: characters."""

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str | None) -> str | None:
        try:
            b" ".decode(encoding or "utf-8", "replace")
        except LookupError as error:
            raise ValueError(f"{error}; give one of Python's, such as cp1251") from error
        return encoding


def _only(*names: str) -> Steps:
    chosen = {name: name in names for name in Steps.model_fields if name != "encoding"}
    return Steps.model_validate(chosen)


RECIPES = {
    "books": Steps(),
    "plain": _only("guess", "line_ends", "space_mark"),
}
"""Steps by the name of a recipe: `books` is the paper's; `plain` changes what every text needs.

A given tokenizer decides on `lowercase` and `space_mark`.
"""
