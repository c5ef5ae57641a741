"""Write and check token shards: Megatron's pair of a `.bin` (the ids) and a `.idx` (their bounds).

The layout is that of `megatron.core.datasets.indexed_dataset.IndexedDataset`, so that shards open
there too. An index holds, little-endian: magic, version, type code, number of sequences, length of
`documents`, then int32 sequence lengths, int64 byte pointers, and int64 `documents` (the sequence
number at which each document starts, and a last entry at the end). Here a sequence is a document.
"""

import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt_dist.errors import DataError
from gpt_dist.files.entries import FileEntry, HashedFile

Ids = np.ndarray[Any, np.dtype[Any]]

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_DTYPE_OF_CODE: dict[int, np.dtype[Any]] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
_CODE_OF_DTYPE = {dtype: code for code, dtype in _DTYPE_OF_CODE.items()}


@dataclass(frozen=True)
class ShardInfo:
    """Counts and files of a finished shard."""

    tokens: int
    documents: int
    bin: FileEntry
    idx: FileEntry


@dataclass(frozen=True)
class IndexHeader:
    """Fixed-size start of an index: the ids' type, the numbers of sequences and documents."""

    dtype: np.dtype[Any]
    sequences: int
    documents: int


def bin_path(prefix: Path) -> Path:
    """Return the file of a shard that holds the ids."""
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    """Return the file of a shard that holds the documents' bounds."""
    return prefix.with_name(prefix.name + ".idx")


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the type to store ids in: uint16 below 65,500 (Megatron's bound), else int32."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


class ShardWriter:
    """Shard writer that keeps only the documents' lengths in memory."""

    def __init__(self, prefix: Path, dtype: np.dtype[Any]) -> None:
        """Create `prefix.bin`; `close` adds `prefix.idx`."""
        self._prefix = prefix
        self._dtype = dtype
        self._lengths = array("q")
        self._bin = HashedFile(bin_path(prefix))

    def add_document(self, ids: Ids) -> None:
        """Append one document, a vector of ids."""
        self._bin.write(ids.astype(self._dtype, copy=False).tobytes())
        self._lengths.append(len(ids))

    def close(self) -> ShardInfo:
        """Write the index and return once both files are safe on the disk."""
        index = HashedFile(idx_path(self._prefix))
        for part in self._index():
            index.write(part)
        entries = self._bin.close().unchunked, index.close().unchunked
        return ShardInfo(sum(self._lengths), len(self._lengths), *entries)

    def _index(self) -> Iterable[bytes]:
        lengths = np.array(self._lengths, dtype="<i8")
        starts = np.concatenate([np.zeros(1, dtype="<i8"), np.cumsum(lengths)])[:-1]
        count = len(lengths)
        yield _HEADER.pack(_MAGIC, _VERSION, _CODE_OF_DTYPE[self._dtype], count, count + 1)
        yield lengths.astype("<i4").tobytes()
        yield (starts * self._dtype.itemsize).tobytes()
        yield np.arange(count + 1, dtype="<i8").tobytes()


def read_index_header(path: Path) -> IndexHeader:
    """Read the header of an index file, at a cost that does not depend on the shard's size.

    Raises:
        DataError: The file is not an index of this format, or not as long as its header says.
    """
    with path.open("rb") as stream:
        data = stream.read(_HEADER.size)
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise DataError(f"{path}: not a Megatron index file; prepare the token folder again")
    version, code, sequences, entries = _HEADER.unpack(data)[1:]
    dtype = _DTYPE_OF_CODE.get(code)
    if version != _VERSION or dtype is None or entries == 0:
        raise DataError(
            f"{path}: index version {version}, type code {code}, {entries} document bounds cannot "
            f"be read here (version {_VERSION}, type codes {sorted(_DTYPE_OF_CODE)} can); "
            "prepare the token folder again"
        )
    expected = _HEADER.size + 12 * sequences + 8 * entries
    found = path.stat().st_size
    if found != expected:
        raise DataError(
            f"{path}: {found} bytes, but its header asks for {expected}; "
            "copy the token folder or prepare it again"
        )
    return IndexHeader(dtype, sequences, entries - 1)
