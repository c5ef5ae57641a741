"""Train the tokenizer of a token folder; find out for which case a given one was made."""

import io
import re
from collections.abc import Iterator
from functools import partial
from itertools import chain

import sentencepiece

from gpt_dist.data.tokenizers.byte_pair import BytePairTokenizer
from gpt_dist.data.tokenizers.folder import FolderTokenizer
from gpt_dist.data.tokenizers.tokenizer import (
    SPACE,
    SPACE_WITHIN_TEXT,
    SPECIAL_TOKENS,
    cut_text,
    is_text,
)
from gpt_dist.errors import DataError

_TRAINING_LINE_CHARACTERS = 4096
_POSSIBLE_SIZE = re.compile(r"Vocabulary size .*(<=|vs) (\d+)")
_FAULT = {
    "<=": "too large: the text gives",
    "vs": "too small: the text's characters, the 256 bytes and the reserved tokens need",
}


def train_sentencepiece(lines: Iterator[str], vocab_size: int) -> bytes:
    """Train a byte-pair encoding on `lines` and return the model file's content.

    Text is taken as it is (identity normalisation); a character too rare for the vocabulary falls
    back to its UTF-8 bytes. The result depends on the lines and `vocab_size` only. DataError is
    raised if the text cannot give `vocab_size` tokens, or its characters need more.
    """
    model = io.BytesIO()
    cut = (cut_text(line, _TRAINING_LINE_CHARACTERS, SPACE_WITHIN_TEXT) for line in lines)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=chain.from_iterable(cut),
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
            num_threads=4,  # the model file records it, and must not depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        if not (found := _POSSIBLE_SIZE.search(str(error))):
            raise DataError(f"the tokenizer cannot be trained: {error}") from error
        raise DataError(
            f"a vocabulary of {vocab_size} is {_FAULT[found[1]]} {found[2]}; use --vocab-size "
            f"{found[2]}"
        ) from error
    return model.getvalue()


def knows_only_lower_case(tokenizer: FolderTokenizer) -> bool | None:
    """Return whether a tokenizer was made for lower-case text, or None if no token tells.

    True if it lower-cases text itself, or has tokens in lower case but none with a capital.
    """
    if isinstance(tokenizer, BytePairTokenizer):
        normalizer = tokenizer.backend.normalizer
        if normalizer and normalizer.normalize_str("A").strip(SPACE) == "a":
            return True
        added = tokenizer.backend.get_added_tokens_decoder()
        ids = (index for index in range(tokenizer.vocab_size) if index not in added)
        # A byte-level vocabulary holds every single byte, whatever its text was.
        texts = [text for text in map(tokenizer.backend.decode, zip(ids)) if len(text.strip()) > 1]
    else:
        processor = tokenizer.processor
        pieces = filter(partial(is_text, processor), range(tokenizer.vocab_size))
        texts = [processor.id_to_piece(index) for index in pieces]
    if any(text != text.lower() for text in texts):
        return False
    return True if any(text != text.upper() for text in texts) else None
