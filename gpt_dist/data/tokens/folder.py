"""Open a token folder: check its manifest and shards cheaply, then read ids by position."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic_core import from_json

from gpt_dist.data.tokens.blocks import BlockChecksums
from gpt_dist.data.tokens.shards import Ids, ShardEntry, read_index
from gpt_dist.errors import DataError, first_problem
from gpt_dist.files.entries import MANIFEST_BYTES, FileEntry, Record, read_small

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


class TokenManifest(Record, extra="ignore"):
    """The part of `manifest.json` that reading tokens needs; `data_prep.manifest` has the rest."""

    format: Literal["gpt_dist.tokens"]
    version: Literal[1, 2]
    vocab_size: PositiveInt
    dtype: Literal["uint16", "int32"]
    special_tokens: dict[str, NonNegativeInt]
    tokenizer: TokenizerEntry
    splits: Annotated[dict[SplitName, SplitEntry], Field(min_length=2)]


class TokenStream:
    """Token ids of one split: the documents of its shards, one after another."""

    def __init__(
        self, folder: Path, split: SplitEntry, manifest: TokenManifest, checksums: BlockChecksums
    ) -> None:
        """Describe the stream; no shard is opened before it is read."""
        self.num_tokens = split.tokens
        self._paths = [folder / f"{shard.name}.bin" for shard in split.shards]
        self._starts = [0, *accumulate(shard.tokens for shard in split.shards)]
        self._dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._vocab_size = manifest.vocab_size
        self._checksums = checksums
        self._open = cache(FileIO)

    def read(self, start: int, stop: int) -> Ids:
        """Return a copy of ids `start` to `stop`; raise DataError where a shard is damaged.

        Shards are read, not mapped: a window of a cold file would bring in all that the system
        reads ahead for a mapping.
        """
        assert 0 <= start <= stop <= self.num_tokens, (start, stop, self.num_tokens)
        ids = np.empty(stop - start, dtype=self._dtype)
        shard = bisect_right(self._starts, start) - 1
        position = start
        while position < stop:
            first, end = self._starts[shard], min(stop, self._starts[shard + 1])
            part, path = ids[position - start : end - start], self._paths[shard]
            name, place = "/".join(path.parts[-2:]), (position - first) * ids.itemsize
            try:
                self._checksums.read(name, self._open(path), place, part.data.cast("B"))
            except (OSError, ValueError) as error:
                raise refuse(path, str(error)) from None
            if part.size and (part.max() >= self._vocab_size or part.min() < 0):
                raise DataError(
                    f"{path}: holds ids beyond the vocabulary of {self._vocab_size}: the shard is "
                    "corrupt; see `python -m data_prep verify`"
                )
            position, shard = end, shard + 1
        return ids


class TokenFolder:
    """A folder made by `python -m data_prep build`, checked to be complete."""

    manifest_type: ClassVar[type[TokenManifest]] = TokenManifest
    """The form that the manifest is read in."""

    def __init__(self, path: Path) -> None:
        """Read the manifest and check every file's size and every index header, but no tokens.

        Raises DataError where the folder or a file is missing, has another format, or is not as
        large as the manifest states.
        """
        self.path = path
        self.manifest, self.manifest_digest = self._read_manifest()
        """The manifest, and its SHA-256, which checkpoints of earlier versions recorded."""
        self.vocab_size = self.manifest.vocab_size
        self.checksums = BlockChecksums()  # which the reading of a split heeds, once taken
        for name, entry in files_of(self.manifest):
            _check_size(path / name, entry.bytes)
        for split in self.manifest.splits.values():
            for shard in split.shards:
                _check_index(path, shard, np.dtype(self.manifest.dtype))
            if split.tokens != sum(shard.tokens for shard in split.shards):
                raise refuse(path / MANIFEST_NAME, "totals and shards disagree")

    def _read_manifest(self) -> tuple[TokenManifest, str]:
        file = self.path / MANIFEST_NAME
        try:
            content = read_small(file, 2 * MANIFEST_BYTES)  # 400,000 sources
            # From objects: of JSON, each error would hold a copy of the whole.
            manifest = self.manifest_type.model_validate(from_json(content))
        except OSError as error:
            other = f"not a token folder ({MANIFEST_NAME}: {error.strerror})"
            raise refuse(self.path, other if self.path.exists() else "no such folder") from error
        except ValueError as error:
            problem = f"not a manifest of {FORMAT} version {VERSION}: {first_problem(error)}"
            raise refuse(file, problem) from error
        return manifest, hashlib.sha256(content).hexdigest()

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
        return TokenStream(self.path, self.manifest.splits[name], self.manifest, self.checksums)


def refuse(path: Path, problem: str) -> DataError:
    """Return the error for a token folder, or a file of it, that is not as it should be."""
    remedy = "copy the token folder again, or prepare it with `python -m data_prep build`"
    return DataError(f"{path}: {problem}; {remedy}")


def files_of(manifest: TokenManifest) -> Iterator[tuple[str, FileEntry]]:
    """Yield every file of a manifest with its path in the folder."""
    yield manifest.tokenizer.name, manifest.tokenizer
    for split in manifest.splits.values():
        for shard in split.shards:
            yield shard.name + ".bin", shard.bin
            yield shard.name + ".idx", shard.idx
            if shard.sums:
                yield shard.name + ".sums", shard.sums


def state_checksums(folder: TokenFolder) -> str | None:
    """Have reads of a folder compared with its own checksums; name a shard that has none."""
    missing = None
    for split in folder.manifest.splits.values():
        for shard in split.shards:
            if shard.sums:
                sums = folder.path / f"{shard.name}.sums"
                folder.checksums.state(f"{shard.name}.bin", shard.bin.bytes, sums)
            else:
                missing = missing or shard.name
    return missing


def _check_index(folder: Path, shard: ShardEntry, dtype: np.dtype[Any]) -> None:
    prefix = folder / shard.name
    found, documents = read_index(prefix.with_suffix(".idx"))
    stated = (dtype, shard.documents, shard.tokens * dtype.itemsize)
    if stated != (found, documents, shard.bin.bytes):
        raise refuse(
            prefix,
            f"index, shard and manifest disagree: {documents} documents of {found} and "
            f"{shard.bin.bytes} bytes, but the manifest states {shard.documents} documents of "
            f"{dtype} and {shard.tokens} tokens",
        )


def _check_size(file: Path, expected: int) -> None:
    try:
        found = file.stat().st_size
    except OSError as error:
        raise refuse(file, f"missing ({error.strerror})") from error
    if not file.is_file():
        raise refuse(file, "not a file")
    if found != expected:
        raise refuse(file, f"{found} bytes instead of {expected}")
