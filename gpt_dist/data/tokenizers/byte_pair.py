"""Byte-pair tokenizers of other models: GPT-1's, GPT-2's, and any in a `tokenizer.json`."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from gpt_dist.data.tokenizers.tokenizer import (
    SPECIAL_TOKENS,
    USUAL_SPECIAL_TOKENS,
    cut_text,
    join_ids,
)
from gpt_dist.data.tokens.shards import Ids
from gpt_dist.errors import DataError
from gpt_dist.files.entries import read_small

_BEFORE_SPACE_AND_WORD = re.compile(r"(?<=\w)(?= \w)")
_MARKS = r"!-/:-@\[-`{-~"
_BETWEEN_WORDS = re.compile(rf"(?<=[A-Za-z{_MARKS}])(?=[ \n])|(?<=[A-Za-z])(?=[{_MARKS}])")
"""Places where tokens end in any text: behind letters before marks, behind both before a space."""
_PIECE_CHARACTERS = 2**16
_FILE_BYTES = 2**27
"""Largest file that is read; a vocabulary of 256,000 tokens takes about an eighth of it."""


class BytePairTokenizer:
    """Byte-pair tokenizer that uses the `tokenizers` library.

    A reserved token that the vocabulary lacks gets an id after the vocabulary, as in the released
    fine-tuning code. A model is given such ids only once its embedding has grown.
    """

    def __init__(self, backend: Backend) -> None:
        # Some files ask for truncation or padding, but a corpus must stay as it is.
        backend.no_truncation()
        backend.no_padding()
        # The text of a special token is ordinary text.
        backend.encode_special_tokens = True
        self.backend = backend
        self.lowercases = False  # the normalizer lower-cases where needed
        self._can_be_cut = _can_be_cut(backend)
        self.has_independent_words = (
            self._can_be_cut
            and not getattr(backend.pre_tokenizer, "add_prefix_space", False)
            and all(token.special for token in backend.get_added_tokens_decoder().values())
        )
        self.vocab_size = backend.get_vocab_size()
        known = [backend.token_to_id(token) for token in SPECIAL_TOKENS]
        self.full_vocab_size = self.vocab_size + known.count(None)
        behind = iter(range(self.vocab_size, self.full_vocab_size))
        ids = [next(behind) if index is None else index for index in known]
        self.end_of_text, self.start, self.delimiter, self.extract = ids

    def encode(self, text: str) -> Ids:
        """Return the ids (int32 vector) of a text."""
        # In pieces, since the library's result takes 500 bytes a token.
        return join_ids(map(self.encode_word, self.pieces(text, _PIECE_CHARACTERS)))

    def pieces(self, text: str, length: int) -> Iterator[str]:
        """Cut a text, if possible, into pieces of about `length` that are encoded one by one."""
        return cut_text(text, length if self._can_be_cut else len(text), _BEFORE_SPACE_AND_WORD)

    def words(self, piece: str) -> list[str]:
        """Split a piece into words; if they are independent, their ids are those of the piece."""
        return _BETWEEN_WORDS.split(piece)

    def encode_word(self, word: str) -> list[int]:
        """Return the ids of a word or piece."""
        return self.backend.encode(word, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, without reserved tokens."""
        known = [int(index) for index in ids if index < self.vocab_size]
        return self.backend.decode(known)

    def files(self) -> dict[str, bytes]:
        """Return the files from which `transformers.AutoTokenizer` makes this tokenizer."""
        known = self.end_of_text < self.vocab_size
        settings = tokenizer_settings(
            eos_token=SPECIAL_TOKENS[0] if known else None, split_special_tokens=True
        )
        return {"tokenizer.json": self.backend.to_str().encode(), **settings}


def _can_be_cut(backend: Backend) -> bool:
    """Return whether a space between words begins a token or is dropped, whatever precedes it."""
    words, added = backend.pre_tokenizer, backend.get_added_tokens_decoder().values()
    return (
        isinstance(backend.normalizer, normalizers.BertNormalizer | None)
        and not any(token.rstrip or " " in token.content for token in added)
        and (
            isinstance(words, pre_tokenizers.BertPreTokenizer)
            or (isinstance(words, pre_tokenizers.ByteLevel) and words.use_regex)
        )
    )


def tokenizer_settings(**settings: Any) -> dict[str, bytes]:
    """Return the file that makes `transformers` read a `tokenizer.json` as it is."""
    common = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    text = json.dumps({**common, **settings}, indent=2, sort_keys=True)
    return {"tokenizer_config.json": f"{text}\n".encode()}


def read_tokenizer_json(path: Path) -> BytePairTokenizer:
    """Read a `tokenizer.json`; raise DataError if it is damaged or not a byte-pair encoding."""
    with _reading(path):
        text = _read(path)
        values = json.loads(text)
        model, added = values["model"], values.get("added_tokens") or []
        if model["type"] != "BPE":
            raise ValueError(f"a model of type {model['type']}, not BPE")
        if prefix := model.get("continuing_subword_prefix"):
            # No GPT has one. If a token is shorter, the library panics past `except Exception`.
            raise ValueError(f"continuing_subword_prefix is {prefix!r}; only null can be opened")
        merges = [
            merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]
        ]
        behind = {token["content"]: token["id"] for token in added}
        _check(model["vocab"], merges, behind)
        for token in added:
            token["special"] = token["special"] or token["content"] in USUAL_SPECIAL_TOKENS
        special = {token["content"] for token in added if token["special"]}
        model["merges"] = [merge for merge in merges if "".join(merge) not in special]
        tokenizer = BytePairTokenizer(Backend.from_str(json.dumps(values)))
        _check_special(tokenizer, special - {model.get("unk_token")})
        return tokenizer


def read_openai_gpt(vocabulary: Path, merges: Path) -> BytePairTokenizer:
    """Read the released GPT-1's tokenizer; raise DataError if a file is damaged.

    Like `transformers.OpenAIGPTTokenizer`, whose ids it gives, it splits words as BERT does, not as
    spaCy and ftfy did for the paper.
    """
    end, unknown = "</w>", "<unk>"
    backend = _read_merges(vocabulary, merges, end_of_word_suffix=end, unk_token=unknown)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix=end)
    backend.add_special_tokens([unknown])
    return BytePairTokenizer(backend)


def read_gpt2(vocabulary: Path, merges: Path) -> BytePairTokenizer:
    """Read GPT-2's byte-level tokenizer; raise DataError if a file is damaged."""
    backend = _read_merges(vocabulary, merges)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([SPECIAL_TOKENS[0]])
    return BytePairTokenizer(backend)


def _read_merges(vocabulary: Path, merges: Path, **options: str) -> Backend:
    with _reading(vocabulary):
        ids = json.loads(_read(vocabulary))
        lines = [line for line in _read(merges).split("\n") if line and line[:8] != "#version"]
        pairs = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
        _check(ids, pairs, {})
        return Backend(BPE(vocab=ids, merges=pairs, **options))


def _check(vocabulary: Any, merges: Iterable[Sequence[str]], added: Mapping[str, int]) -> None:
    """Raise ValueError for content that makes `tokenizers` abort or give wrong ids."""
    ids = sorted({**vocabulary, **added}.values())
    if ids != list(range(len(ids))):
        raise ValueError("the ids have gaps")
    for left, right in merges:
        if not {left, right, left + right} <= vocabulary.keys():
            raise ValueError(f"the merge of {left!r} and {right!r} needs tokens that are missing")


def _check_special(tokenizer: BytePairTokenizer, special: Iterable[str]) -> None:
    """Raise ValueError if the text of a special token gives its id."""
    for token in special:
        texts = token, f"a{token}\n{token} {token}"
        if any(tokenizer.backend.token_to_id(token) in tokenizer.encode(text) for text in texts):
            raise ValueError(f"the text {token!r} gives a special token")


def _read(path: Path) -> str:
    with StringIO(read_small(path, _FILE_BYTES).decode(), newline=None) as text:
        return text.read()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise any error as a DataError that names the file."""
    try:
        yield
    except Exception as error:  # tokenizers raises nothing narrower
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"{path}: not a readable tokenizer ({reason}); copy the tokenizer again"
        ) from error
