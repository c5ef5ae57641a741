"""Convert text to token ids and back: the interface, and sentencepiece behind it."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

from gpt_dist.data.tokens.shards import Ids
from gpt_dist.errors import DataError
from gpt_dist.files.entries import read_small

SPECIAL_TOKENS = ("<|endoftext|>", "<|start|>", "<|delimiter|>", "<|extract|>")
USUAL_SPECIAL_TOKENS = frozenset({*SPECIAL_TOKENS, "<s>", "</s>", "<unk>", "<pad>", "<mask>"})
"""Tokens that no text may give, even where a tokenizer's file lists them as ordinary ones."""
SPACE = "▁"
"""The sign for a space in sentencepiece's tokens."""

# Texts are encoded in pieces of about this length: it was measured to be the fastest, and memory
# grows with the piece only.
_PIECE_CHARACTERS = 1024
# A space at the end of a text is a token, so that none is cut off there.
SPACE_WITHIN_TEXT = re.compile(r" (?=.)", re.DOTALL)


class Tokenizer(Protocol):
    """Interface of all tokenizers; the last four attributes are the ids of reserved tokens."""

    vocab_size: int
    """Number of tokens in the tokenizer's files; texts give no others."""
    full_vocab_size: int
    """The same with the reserved tokens that the files lack, whose ids come last."""
    lowercases: bool
    """True if it was trained on lower-cased text, so that texts must be lower-cased first."""
    end_of_text: int
    start: int
    delimiter: int
    extract: int

    def encode(self, text: str) -> Ids:
        """Return the ids (int32 vector) of a text with a line end between paragraphs."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of some ids, without reserved tokens."""


def encode_as_trained(tokenizer: Tokenizer, text: str) -> Ids:
    """Encode a text, lower-cased first if the tokenizer knows only lower case."""
    return tokenizer.encode(text.lower() if tokenizer.lowercases else text)


def join_ids(parts: Iterable[Sequence[int]]) -> Ids:
    """Join lists of ids into one int32 vector."""
    return np.fromiter(chain.from_iterable(parts), dtype=np.int32)


def cut_text(text: str, length: int, gap: re.Pattern[str]) -> Iterator[str]:
    """Cut a text at the first `gap` after every `length` characters, and drop what it matches."""
    begin = 0
    while begin < len(text):
        found = gap.search(text, begin + length)
        yield text[begin : found.start() if found else len(text)]
        begin = found.end() if found else len(text)


def is_text(processor: sentencepiece.SentencePieceProcessor, index: int) -> bool:
    """Return whether a token of a sentencepiece model is text, not a byte and not reserved."""
    return not (
        processor.is_control(index) or processor.is_unknown(index) or processor.is_byte(index)
    )


def _is_user_defined(processor: sentencepiece.SentencePieceProcessor, token: str) -> bool:
    """Return whether a token of three or more characters was not learned, yet text gives it."""
    index = processor.piece_to_id(token)
    return is_text(processor, index) and processor.get_score(index) == 0


class SentencePieceTokenizer:
    """Tokenizer with a sentencepiece model made by `python -m data_prep build`.

    A line end is the byte piece `<0x0A>`, and the word after it is encoded like the first of a
    text: a text's ids are those of its paragraphs with `<0x0A>` between. `decode` reverses `encode`
    if a text has no runs of spaces and no spaces beside line ends, as `data_prep` cleans it.
    """

    def __init__(self, model: Path) -> None:
        """Load a model file; raise DataError if it is damaged or lacks the reserved tokens."""
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=read_small(model))
            ids = [self.processor.piece_to_id(token) for token in SPECIAL_TOKENS]
            if not all(self.processor.is_control(index) for index in ids):
                raise ValueError(f"it has no {', '.join(SPECIAL_TOKENS)}")
            for token in USUAL_SPECIAL_TOKENS:
                if _is_user_defined(self.processor, token):
                    raise ValueError(f"its {token} is a user-defined symbol, which text gives")
            pieces = [self.processor.id_to_piece(i) for i in range(len(self.processor))]
        except (OSError, RuntimeError, ValueError) as error:  # a piece may not be UTF-8
            raise DataError(
                f"{model}: cannot be read as a sentencepiece model of gpt_dist ({error}); prepare "
                "the token folder again with `python -m data_prep build`"
            ) from error
        self.end_of_text, self.start, self.delimiter, self.extract = ids
        self.vocab_size = self.full_vocab_size = len(pieces)
        self.lowercases = all(
            piece == piece.lower() for i, piece in enumerate(pieces) if is_text(self.processor, i)
        )
        has_bytes = self.processor.is_byte(self.processor.piece_to_id("<0x00>"))
        self.has_independent_words = has_bytes and not any(SPACE in piece[1:] for piece in pieces)
        # The library writes a space before any text but the empty one.
        spaces = self.processor.encode(" ")
        self._empty_word = spaces[: len(spaces) // 2]

    def encode(self, text: str) -> Ids:
        """Return the ids (int32 vector) of `text`; beside the result, memory is bounded."""
        return join_ids(map(self.processor.encode, self.pieces(text, _PIECE_CHARACTERS)))

    def pieces(self, text: str, length: int) -> Iterator[str]:
        """Cut a text into pieces of about `length` characters that are encoded one by one."""
        # Only the start of a token can be a space, so that cutting at spaces changes no id.
        return cut_text(text.replace("\n", "\n "), length, SPACE_WITHIN_TEXT)

    def words(self, piece: str) -> list[str]:
        """Split a piece into words; if they are independent, their ids are those of the piece."""
        return piece.split(" ")

    def encode_word(self, word: str) -> list[int]:
        """Return the ids of a word with the space before it."""
        ids: list[int] = self.processor.encode(word) if word else self._empty_word
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, without reserved tokens."""
        text: str = self.processor.decode([int(index) for index in ids])
        return text.replace("\n ", "\n")
