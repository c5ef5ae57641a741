"""Open a token folder: check its manifest and shards cheaply, then read ids by position."""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from gpt_dist.data.tokens.shards import Ids, ShardEntry, read_index
from gpt_dist.errors import DataError, first_problem
from gpt_dist.files.entries import FileEntry, Record, Sha256

MANIFEST_NAME = "manifest.json"
FORMAT = "gpt_dist.tokens"
VERSION = 2

TokenizerName = Literal["tokenizer.model", "tokenizer.json"]
SplitName = Literal["train", "validation"]
SPLITS: tuple[SplitName, SplitName] = ("train", "validation")


class TokenizerEntry(FileEntry):
    """The tokenizer's file: a sentencepiece model, or a byte-pair encoding of `tokenizers`."""

    name: TokenizerName = "tokenizer.model"


class SplitEntry(Record):
    """The shards of one split, in reading order; a document cut in two counts in both splits."""

    tokens: NonNegativeInt
    documents: NonNegativeInt
    shards: tuple[ShardEntry, ...]


class SourceEntry(Record):
    """Source file of the corpus, and the fate of its documents; version 1 states no fates."""

    name: str
    bytes: NonNegativeInt
    sha256: Sha256
    target: str | None = None
    """The file that a followed link leads to."""
    documents_read: NonNegativeInt = 0
    documents_kept: NonNegativeInt = 0
    left_out: dict[str, NonNegativeInt] = Field(default={})
    """Number of documents that were left out, by reason."""
    encodings: dict[str, NonNegativeInt] = Field(default={})
    """Number of documents that were read in each encoding other than UTF-8."""


class DropEntry(Record):
    """Document or file that was left out, with the reason."""

    name: str
    reason: str
    detail: str | None = None
    """The document that has the same text, for a duplicate."""


class StepEffect(Record):
    """Number of documents that one cleaning step changed, and of its changes in them.

    The unit of changes, mostly a character, is the step's (`data_prep/steps.py` lists them).
    """

    documents: NonNegativeInt
    changes: NonNegativeInt
    names: tuple[str, ...]
    """The first thousand of those documents."""


class PassageEffect(Record):
    """Passages that were cut because earlier documents hold them."""

    passages: NonNegativeInt = 0
    bytes: NonNegativeInt = 0
    names: tuple[str, ...] = ()
    """The first thousand of the documents that lost text."""


class BuildOptions(Record, from_attributes=True):
    """Options that decide the content of a build, beside the sources and a given tokenizer.

    Those with a default are of version 2. Their defaults say how version 1 built.
    """

    vocab_size: PositiveInt
    """Vocabulary size of the tokenizer, trained or given."""
    lowercase: bool
    min_characters: NonNegativeInt
    validation_fraction: Annotated[float, Field(ge=0, lt=1)]
    text_field: str
    tokenizer_sample_mb: PositiveInt | None
    """Size of the text that trained the tokenizer; None, like `seed`, if it was given."""
    seed: int | None
    recipe: str = "books"
    steps: dict[str, bool | int | float | str | None] = Field(default={})
    """Each cleaning step, and whether or how it was taken."""
    separator: str = ""
    """Text that divides documents."""
    follow_links: bool = False
    near_duplicates: float | None = None
    """Similarity from which on a document counts as a duplicate; None keeps them."""
    passage_words: int | None = None
    """Number of words from which on a repeated passage is cut; None keeps them."""
    shard_mb: PositiveInt | None = None


class Totals(Record):
    """Amounts of text that were read and kept."""

    source_bytes: NonNegativeInt
    documents_read: NonNegativeInt
    documents_kept: NonNegativeInt
    decoded_as_latin1: NonNegativeInt = 0
    """Only in version 1; since then `read_as` names every encoding."""
    text_bytes: NonNegativeInt = 0
    """Bytes of the unpacked sources' text; 0 in version 1."""
    all_cleaned_bytes: NonNegativeInt = 0
    """Bytes of clean text before any document was left out; 0 in version 1."""
    cleaned_bytes: NonNegativeInt
    tokens: NonNegativeInt


class TokenManifest(Record):
    """Content of `manifest.json`; nothing in it depends on time, machine or number of workers.

    Fields with a default are of version 2.
    """

    format: Literal["gpt_dist.tokens"]
    version: Literal[1, 2]
    vocab_size: PositiveInt
    dtype: Literal["uint16", "int32"]
    special_tokens: dict[str, NonNegativeInt]
    tokenizer: TokenizerEntry
    options: BuildOptions
    totals: Totals
    sources: tuple[SourceEntry, ...]
    dropped: dict[str, NonNegativeInt]  # number of drops by reason
    drops: tuple[DropEntry, ...]  # the first thousand, in order
    read_as: dict[str, tuple[str, ...]] = Field(default={})
    """The first thousand documents that were read in each encoding other than UTF-8."""
    effects: dict[str, StepEffect] = Field(default={})
    """The changes that each cleaning step made."""
    passages: PassageEffect = PassageEffect()
    splits: Annotated[dict[SplitName, SplitEntry], Field(min_length=2)]


class TokenStream:
    """Token ids of one split: the documents of its shards, one after another."""

    def __init__(self, folder: Path, split: SplitEntry, dtype: str, vocab_size: int) -> None:
        """Describe the stream; no shard is opened before it is read."""
        self.num_tokens = split.tokens
        self._paths = [folder / f"{shard.name}.bin" for shard in split.shards]
        self._starts = [0, *accumulate(shard.tokens for shard in split.shards)]
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._vocab_size = vocab_size
        self._open = cache(partial(open, mode="rb", buffering=0))

    def read(self, start: int, stop: int) -> Ids:
        """Return a copy of ids `start` to `stop`; raise DataError for one beyond the vocabulary.

        Shards are read, not mapped: a window of a cold file would bring in all that the system
        reads ahead for a mapping.
        """
        assert 0 <= start <= stop <= self.num_tokens, (start, stop, self.num_tokens)
        ids = np.empty(stop - start, dtype=self._dtype)
        shard = bisect_right(self._starts, start) - 1
        position = start
        while position < stop:
            first, end = self._starts[shard], min(stop, self._starts[shard + 1])
            part = ids[position - start : end - start]
            self._read_into(part, self._paths[shard], position - first)
            if part.size and (part.max() >= self._vocab_size or part.min() < 0):
                raise DataError(
                    f"{self._paths[shard]}: holds ids beyond the vocabulary of {self._vocab_size}: "
                    "the shard is corrupt; see `python -m data_prep verify`"
                )
            position, shard = end, shard + 1
        return ids

    def _read_into(self, ids: Ids, path: Path, first: int) -> None:
        """Fill a vector with the ids of a shard from number `first` on."""
        buffer, offset = ids.data.cast("B"), first * self._dtype.itemsize
        while buffer:
            count = os.preadv(self._open(path).fileno(), [buffer], offset)
            if not count:
                raise DataError(f"{path}: ends before its id {first + len(ids)}{_REMEDY}")
            buffer, offset = buffer[count:], offset + count


class TokenFolder:
    """A folder made by `python -m data_prep build`, checked to be complete."""

    def __init__(self, path: Path, manifest: TokenManifest, manifest_digest: str) -> None:
        """Use `TokenFolder.open` instead."""
        self.path = path
        self.manifest = manifest
        self.manifest_digest = manifest_digest
        """SHA-256 of the manifest, which checkpoints of earlier versions recorded."""
        self.vocab_size = manifest.vocab_size

    @classmethod
    def open(cls, path: Path) -> "TokenFolder":
        """Read the manifest and check every file's size and every index header, but no tokens.

        Raises:
            DataError: The folder or one of its files is missing, has another format, or does not
                have the size that the manifest states.
        """
        manifest, manifest_digest = _read_manifest(path)
        for name, entry in files_of(manifest):
            _check_size(path / name, entry.bytes)
        for split in manifest.splits.values():
            for shard in split.shards:
                _check_index(path, shard, np.dtype(manifest.dtype))
            if split.tokens != sum(shard.tokens for shard in split.shards):
                raise DataError(f"{path / MANIFEST_NAME}: totals and shards disagree{_REMEDY}")
        return cls(path, manifest, manifest_digest)

    @property
    def digest(self) -> str:
        """SHA-256 of what makes up training data: the tokens and the tokenizer alone."""
        manifest = self.manifest
        shards = {
            name: [[shard.tokens, shard.bin.sha256] for shard in split.shards]
            for name, split in manifest.splits.items()
        }
        content = json.dumps([manifest.dtype, manifest.tokenizer.sha256, shards], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def tokenizer_path(self) -> Path:
        """The file of the tokenizer that encoded the ids."""
        return self.path / self.manifest.tokenizer.name

    def split(self, name: SplitName) -> TokenStream:
        """Return the ids of one split; an empty split has `num_tokens` 0."""
        split = self.manifest.splits[name]
        return TokenStream(self.path, split, self.manifest.dtype, self.vocab_size)


_REMEDY = "; copy the token folder again, or prepare it with `python -m data_prep build`"


def files_of(manifest: TokenManifest) -> Iterator[tuple[str, FileEntry]]:
    """Yield every file of a manifest with its path in the folder."""
    yield manifest.tokenizer.name, manifest.tokenizer
    for split in manifest.splits.values():
        for shard in split.shards:
            yield shard.name + ".bin", shard.bin
            yield shard.name + ".idx", shard.idx


def _read_manifest(path: Path) -> tuple[TokenManifest, str]:
    try:
        content = (path / MANIFEST_NAME).read_bytes()
        return TokenManifest.model_validate_json(content), hashlib.sha256(content).hexdigest()
    except OSError as error:
        other = f"not a token folder ({MANIFEST_NAME}: {error.strerror})"
        what = other if path.exists() else "no such folder"
        raise DataError(f"{path}: {what}{_REMEDY}") from error
    except ValidationError as error:
        raise DataError(
            f"{path / MANIFEST_NAME}: not a manifest of {FORMAT} version {VERSION}: "
            f"{first_problem(error)}{_REMEDY}"
        ) from error


def _check_index(folder: Path, shard: ShardEntry, dtype: np.dtype[Any]) -> None:
    prefix = folder / shard.name
    found, documents = read_index(prefix.with_suffix(".idx"))
    stated = (dtype, shard.documents, shard.tokens * dtype.itemsize)
    if stated != (found, documents, shard.bin.bytes):
        raise DataError(
            f"{prefix}: index, shard and manifest disagree: {documents} documents of {found} and "
            f"{shard.bin.bytes} bytes, but the manifest states {shard.documents} documents of "
            f"{dtype} and {shard.tokens} tokens{_REMEDY}"
        )


def _check_size(file: Path, expected: int) -> None:
    try:
        found = file.stat().st_size
    except OSError as error:
        raise DataError(f"{file}: missing ({error.strerror}){_REMEDY}") from error
    if found != expected:
        raise DataError(f"{file}: {found} bytes instead of {expected}{_REMEDY}")
