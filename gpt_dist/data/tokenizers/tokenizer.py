"""Turn text into token ids and back: a small interface, and sentencepiece behind it."""

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

from gpt_dist.data.tokens.shards import Ids
from gpt_dist.errors import DataError

SPECIAL_TOKENS = ("<|endoftext|>", "<|start|>", "<|delimiter|>", "<|extract|>")

# A text goes to sentencepiece in pieces of about this many characters: the fastest by measurement,
# and its memory grows with the piece alone.
_PIECE_CHARACTERS = 1024
_TRAINING_LINE_CHARACTERS = 4096
# Recorded in the model file, so it is fixed: a model must not depend on the machine's cores.
_TRAINING_THREADS = 4
_TOO_LARGE = re.compile(r"Vocabulary size too high .* value <= (\d+)")
_TOO_SMALL = re.compile(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)")


class Tokenizer(Protocol):
    """What others ask of a tokenizer; the last four attributes are the ids of reserved tokens."""

    vocab_size: int
    """Tokens of its files: a text has no others."""
    full_vocab_size: int
    """The same and the reserved tokens that its files lack, whose ids follow them."""
    lowercases: bool
    """Whether it was made of lower-cased text, and texts should be lower-cased before."""
    end_of_text: int
    start: int
    delimiter: int
    extract: int

    def encode(self, text: str) -> Ids:
        """Ids (int32 vector) of a text whose paragraphs are separated by a line end."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; reserved tokens have none."""


def encode_as_trained(tokenizer: Tokenizer, text: str) -> Ids:
    """The ids of a text that is lower-cased where the tokenizer knows lower case only."""
    return tokenizer.encode(text.lower() if tokenizer.lowercases else text)


class SentencePieceTokenizer:
    """A sentencepiece model made by `train_sentencepiece`.

    A line end is the byte piece `<0x0A>` and the word after it starts afresh, so that a text's ids
    are those of its paragraphs, with `<0x0A>` between. `decode(encode(text)) == text` holds for
    text without runs of spaces and without spaces beside line ends, as `data_prep` cleans it.
    """

    def __init__(self, model: Path) -> None:
        """Load a model file; DataError where it is damaged or lacks the reserved tokens."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model.read_bytes())
            ids = [self._processor.piece_to_id(token) for token in SPECIAL_TOKENS]
            known = all(self._processor.is_control(index) for index in ids)
            pieces = [self._processor.id_to_piece(i) for i in range(len(self._processor))]
        except (OSError, RuntimeError, ValueError) as error:  # a piece may be no UTF-8
            raise DataError(
                f"{model}: cannot be read as a sentencepiece model ({error}); "
                "prepare the token folder again"
            ) from error
        if not known:
            raise DataError(
                f"{model}: has no {', '.join(SPECIAL_TOKENS)}; "
                "train the tokenizer with `python -m data_prep build`"
            )
        self.end_of_text, self.start, self.delimiter, self.extract = ids
        self.vocab_size = len(pieces)
        self.full_vocab_size = self.vocab_size
        self.lowercases = not any(
            piece != piece.lower() for index, piece in enumerate(pieces) if self._is_text(index)
        )

    def _is_text(self, index: int) -> bool:
        """Whether a token is a piece of text: not a byte, and not reserved."""
        processor = self._processor
        return not (
            processor.is_control(index) or processor.is_unknown(index) or processor.is_byte(index)
        )

    def encode(self, text: str) -> Ids:
        """Ids (int32 vector) of `text`; memory beyond the result does not grow with its length."""
        # No token holds a space but at its start: cutting at a space changes no id.
        pieces = cut_at_spaces(text.replace("\n", "\n "), _PIECE_CHARACTERS)
        ids = [np.array(self._processor.encode(piece), dtype=np.int32) for piece in pieces]
        return np.concatenate(ids) if ids else np.empty(0, dtype=np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; reserved tokens are left out."""
        text: str = self._processor.decode([int(index) for index in ids])
        return text.replace("\n ", "\n")


def train_sentencepiece(lines: Iterator[str], vocab_size: int) -> bytes:
    """Train a byte-pair encoding on `lines` and return the model file's content.

    Text is taken as it is (identity normalisation); a character too rare for the vocabulary falls
    back to its UTF-8 bytes. The result depends on the lines and `vocab_size` only.

    Raises DataError where the text cannot give `vocab_size` tokens, or its characters need more.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_short_lines(lines),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            byte_fallback=True,
            character_coverage=0.9995,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            control_symbols=list(SPECIAL_TOKENS),
            max_sentence_length=8 * _TRAINING_LINE_CHARACTERS,
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _vocabulary_error(str(error), vocab_size) from error
    return model.getvalue()


def cut_at_spaces(text: str, length: int) -> Iterator[str]:
    """Cut `text` at the first space after every `length` characters; those spaces are left out.

    A space that ends the text stays: it is a token.
    """
    begin = 0
    while begin < len(text):
        end = text.find(" ", begin + length, len(text) - 1)
        if end < 0:
            end = len(text)
        yield text[begin:end]
        begin = end + 1


def _short_lines(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        yield from cut_at_spaces(line, _TRAINING_LINE_CHARACTERS)


def _vocabulary_error(message: str, vocab_size: int) -> DataError:
    if match := _TOO_LARGE.search(message):
        return DataError(
            f"a vocabulary of {vocab_size} is too large for this text: "
            f"it gives {match[1]} at most; use --vocab-size {match[1]} or fewer, or add text"
        )
    if match := _TOO_SMALL.search(message):
        return DataError(
            f"a vocabulary of {vocab_size} is too small: the text's characters, the 256 bytes and "
            f"the reserved tokens need {match[1]}; use --vocab-size {match[1]} or more"
        )
    return DataError(f"the tokenizer cannot be trained: {message}")
