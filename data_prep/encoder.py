"""Encode documents at speed: with gigatoken where it is installed, else with a cache of words."""

import hashlib
import json
import random
from array import array
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers

from gpt_dist.data.tokenizers.byte_pair import BytePairTokenizer
from gpt_dist.data.tokenizers.folder import (
    TOKENIZER_NAMES,
    FolderTokenizer,
    byte_pair_model,
    open_tokenizer,
)
from gpt_dist.data.tokenizers.tokenizer import SPACE, USUAL_SPECIAL_TOKENS
from gpt_dist.data.tokens.shards import Ids
from gpt_dist.errors import DataError

try:
    import gigatoken
except ImportError:
    gigatoken = None

_PIECE_CHARACTERS = 2**20
# Two generations of so many words take 100 MB.
_CACHED_WORDS = 2**18
_CACHED_WORD_CHARACTERS = 64
# gigatoken keeps every word that it saw: up to 250 MB for so many characters.
_REMEMBERED_CHARACTERS = 2**24
_CHECKED_CHARACTERS = 2**11
_CHECK_EVERY = 2**19
_HARD_TEXTS = (
    *(" ", "\n", "a  b", "  a\n\n    b\n\tc\r\n ", "\u00a0a\u00a0\u3000b", "\n \n", "a" * 300),
    *("don't 'tis 1,234.5 WE'LL", "ÀÉÎ Straße ﬁ ½ İ", "e\u0301 नमस्ते می\u200cخواهم"),
    *("日本語。中文", "🎉👩\u200d💻\ufffd", f"a {SPACE}b{SPACE}{SPACE}\n{SPACE}", "\0\7 ab\0"),
    *("<0x0A> <|x|> <a>", "-- ... !? ***\n***", *USUAL_SPECIAL_TOKENS),
)


class Encoder:
    """Encoder of whole documents: it gives the ids of the tokenizer's `encode`, only faster.

    It works in one thread, with memory that neither the number nor the length of texts increases.
    """

    def __init__(self, tokenizer: FolderTokenizer) -> None:
        self.tokenizer = tokenizer
        library = "tokenizers" if isinstance(tokenizer, BytePairTokenizer) else "sentencepiece"
        self.method = f"{library} {metadata.version(library)}"
        """The library that encodes, for people."""
        self.encode = tokenizer.encode
        """Return the ids (int32 vector) of a text.

        DataError is raised if gigatoken gives other ids than the tokenizer for a sample of it.
        """
        if fast := _open_gigatoken(tokenizer):
            self.encode, self.method = fast.encode, f"gigatoken {metadata.version('gigatoken')}"
        elif tokenizer.has_independent_words:
            self.encode = _WordCache(tokenizer).encode
            self.method += " with a cache of words"


def open_encoder(folder: Path) -> Encoder:
    """Open the encoder of a folder's tokenizer; the last one stays open for the next call.

    Raises:
        DataError: The folder has no tokenizer, or a damaged one.
    """
    files = [folder / name for name in TOKENIZER_NAMES if (folder / name).is_file()]
    return _open_encoder(folder, *(hashlib.sha256(file.read_bytes()).digest() for file in files))


@lru_cache(maxsize=1)
def _open_encoder(folder: Path, *_digests: bytes) -> Encoder:
    return Encoder(open_tokenizer(folder))


class _WordCache(dict[str, bytes]):
    """Ids of independent words, of which the cache holds the last used ones."""

    def __init__(self, tokenizer: FolderTokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._older: dict[str, bytes] = {}

    def encode(self, text: str) -> Ids:
        ids = bytearray()
        for piece in self._tokenizer.pieces(text, _PIECE_CHARACTERS):
            ids += b"".join(map(self.__getitem__, self._tokenizer.words(piece)))
        return np.frombuffer(ids, dtype=np.int32)

    def __missing__(self, word: str) -> bytes:
        ids = self._older.get(word) or array("i", self._tokenizer.encode_word(word)).tobytes()
        if len(word) <= _CACHED_WORD_CHARACTERS:
            if len(self) >= _CACHED_WORDS:
                self._older = dict(self)
                self.clear()
            self[word] = ids
        return ids


def _open_gigatoken(tokenizer: FolderTokenizer) -> "_Gigatoken | None":
    """Return gigatoken if it is installed, knows the tokenizer's kind and gives its ids."""
    exact = isinstance(tokenizer, BytePairTokenizer) or tokenizer.has_independent_words
    if gigatoken is None or not exact:
        return None
    try:
        fast = _Gigatoken(tokenizer)
    except RuntimeError:  # it does not know the kind
        return None
    return None if any(map(fast.differs, _probes(tokenizer))) else fast


def _probes(tokenizer: FolderTokenizer) -> Iterator[str]:
    """Yield texts in which tokenizers are known to differ, and tokens in random order."""
    yield from _HARD_TEXTS
    yield " a".join(_HARD_TEXTS)
    draws = random.Random(0)
    ids = range(tokenizer.vocab_size)
    for _ in range(100):
        yield tokenizer.decode(draws.choices(ids, k=50))


class _Gigatoken:
    """gigatoken with a tokenizer's vocabulary, compared with the tokenizer on samples."""

    def __init__(self, tokenizer: FolderTokenizer) -> None:
        self._tokenizer = tokenizer
        self._pipeline = _pipeline(tokenizer)
        self._open()
        self._unchecked = _CHECK_EVERY

    def _open(self) -> None:
        self._backend = gigatoken.Tokenizer.from_json(self._pipeline).backend
        self._remembered = 0

    def encode(self, text: str) -> Ids:
        self._unchecked += len(text)
        if self._unchecked >= _CHECK_EVERY:
            begin = self._unchecked % max(1, len(text) - _CHECKED_CHARACTERS)
            self._check(text[begin : begin + _CHECKED_CHARACTERS])
            self._unchecked = 0
        return self._ids(text)

    def differs(self, text: str) -> bool:
        """Return whether gigatoken's ids of a text differ from the tokenizer's."""
        return not np.array_equal(self._ids(text), self._tokenizer.encode(text))

    def _check(self, sample: str) -> None:
        if self.differs(sample):
            shown = next(filter(self.differs, sample.split()), sample[:80])
            raise DataError(
                f"gigatoken gives other ids than the tokenizer for {shown!r}; remove it with "
                "`pip uninstall gigatoken`, which changes only the speed"
            )

    def _ids(self, text: str) -> Ids:
        parts = [np.empty(0, dtype=np.int32)]
        for piece in self._tokenizer.pieces(text, _PIECE_CHARACTERS):
            if self._remembered > _REMEMBERED_CHARACTERS:
                self._open()
            self._remembered += len(piece)
            parts.append(self._backend.encode(piece).view(np.int32))
        return np.concatenate(parts)


def _pipeline(tokenizer: FolderTokenizer) -> str:
    """Return the `tokenizer.json` of a tokenizer, without special tokens, which it would find."""
    if isinstance(tokenizer, BytePairTokenizer):
        backend = tokenizer.backend
    else:
        backend = Backend(byte_pair_model(tokenizer.processor))
        spaces = normalizers.Replace(" ", SPACE)
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
    values = json.loads(backend.to_str())
    values["added_tokens"] = [token for token in values["added_tokens"] if not token["special"]]
    return json.dumps({**values, "post_processor": None})
