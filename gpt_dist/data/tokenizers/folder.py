"""Find, open and convert the tokenizer of a folder."""

from functools import partial
from pathlib import Path
from typing import Final

import sentencepiece
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from gpt_dist.data.tokenizers.byte_pair import (
    BytePairTokenizer,
    read_gpt2,
    read_openai_gpt,
    read_tokenizer_json,
    tokenizer_settings,
)
from gpt_dist.data.tokenizers.tokenizer import (
    SPACE,
    SPECIAL_TOKENS,
    SentencePieceTokenizer,
    is_text,
)
from gpt_dist.data.tokens.folder import TokenizerName
from gpt_dist.errors import DataError

SENTENCEPIECE_NAME: Final = "tokenizer.model"
BYTE_PAIR_NAME: Final = "tokenizer.json"
_RELEASED_NAMES = "encoder_bpe_40000.json", "vocab_40000.bpe"
_MERGES_NAMES = "vocab.json", "merges.txt"
TOKENIZER_NAMES = (SENTENCEPIECE_NAME, BYTE_PAIR_NAME, *_RELEASED_NAMES, *_MERGES_NAMES)
"""Every file that `open_tokenizer` may read."""

FolderTokenizer = SentencePieceTokenizer | BytePairTokenizer


def open_tokenizer(folder: Path) -> FolderTokenizer:
    """Open the tokenizer of a token folder, a checkpoint, any model folder or the released GPT-1.

    Raises DataError where the folder has none, or a damaged one.
    """
    if (folder / SENTENCEPIECE_NAME).is_file():
        return SentencePieceTokenizer(folder / SENTENCEPIECE_NAME)
    if (folder / BYTE_PAIR_NAME).is_file():
        return read_tokenizer_json(folder / BYTE_PAIR_NAME)
    vocabulary, merges = (folder / name for name in _RELEASED_NAMES)
    if vocabulary.is_file():
        return read_openai_gpt(vocabulary, merges)
    vocabulary, merges = (folder / name for name in _MERGES_NAMES)
    if vocabulary.is_file():
        # Only GPT-1's tokens mark the ends of words.
        ends_words = merges.is_file() and b"</w>" in merges.read_bytes()
        return (read_openai_gpt if ends_words else read_gpt2)(vocabulary, merges)
    if not folder.is_dir():
        fault = "a file" if folder.exists() else "does not exist"
        raise DataError(f"{folder}: {fault}; give the folder that holds the tokenizer")
    raise DataError(
        f"{folder}: has no tokenizer: no {SENTENCEPIECE_NAME}, {BYTE_PAIR_NAME} or vocab.json; "
        "copy the tokenizer's files into the folder"
    )


def tokenizer_file(folder: Path) -> tuple[TokenizerName, bytes]:
    """Return name and content of the one file by which `open_tokenizer` reopens a tokenizer."""
    tokenizer = open_tokenizer(folder)
    if isinstance(tokenizer, BytePairTokenizer):
        return BYTE_PAIR_NAME, tokenizer.files()[BYTE_PAIR_NAME]
    return SENTENCEPIECE_NAME, (folder / SENTENCEPIECE_NAME).read_bytes()


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Return the tokenizer files for a new model folder from any folder with a tokenizer.

    `transformers.AutoTokenizer` makes a tokenizer with the same ids from them.
    """
    tokenizer = open_tokenizer(folder)
    if isinstance(tokenizer, BytePairTokenizer):
        return tokenizer.files()
    model = (folder / SENTENCEPIECE_NAME).read_bytes()
    end_of_text, *others = SPECIAL_TOKENS
    # Text never gives reserved tokens: their names in it are ordinary words.
    settings = tokenizer_settings(
        eos_token=end_of_text, additional_special_tokens=others, split_special_tokens=True
    )
    converted = _as_tokenizers(tokenizer.processor).to_str().encode()
    return {SENTENCEPIECE_NAME: model, BYTE_PAIR_NAME: converted, **settings}


def _as_tokenizers(processor: sentencepiece.SentencePieceProcessor) -> Backend:
    """Convert a sentencepiece model to a pipeline of `tokenizers` that gives the same ids."""
    backend = Backend(byte_pair_model(processor))
    line_ends, spaces = normalizers.Replace("\n", "\n "), normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([line_ends, normalizers.Prepend(SPACE), spaces])
    # Only the start of a piece can be a space, so that words can be encoded one by one.
    backend.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
            decoders.Replace("\n ", "\n"),
        ]
    )
    return backend


def byte_pair_model(processor: sentencepiece.SentencePieceProcessor) -> BPE:
    """Convert a sentencepiece model to one of `tokenizers`, for text with SPACE for its spaces."""
    return BPE(
        vocab={processor.id_to_piece(i): i for i in range(processor.get_piece_size())},
        merges=_merges(processor),
        unk_token=processor.id_to_piece(processor.unk_id()),
        byte_fallback=True,
    )


def _merges(processor: sentencepiece.SentencePieceProcessor) -> list[tuple[str, str]]:
    """Return every way to make a piece from two others, the best piece first.

    sentencepiece joins the neighbours whose union is the best piece, wherever it is cut.
    """
    ids = filter(partial(is_text, processor), range(processor.get_piece_size()))
    scores = {processor.id_to_piece(index): processor.get_score(index) for index in ids}
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=lambda piece: (-scores[piece], piece))
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
