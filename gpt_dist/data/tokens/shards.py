"""Write and check token shards: Megatron's pair of a `.bin` (the ids) and a `.idx` (their bounds).

The layout is that of `megatron.core.datasets.indexed_dataset.IndexedDataset`, so that shards open
there too. An index holds, little-endian: magic, version, type code, number of sequences, length of
`documents`, then int32 sequence lengths, int64 byte pointers, and int64 `documents` (the sequence
number at which each document starts, and a last entry at the end). Here a sequence is a document.
"""

import struct
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt

from gpt_dist.errors import DataError
from gpt_dist.files.entries import FileEntry, HashedFile, Record

Ids = np.ndarray[Any, np.dtype[Any]]

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_DTYPE_OF_CODE: dict[int, np.dtype[Any]] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
_CODE_OF_DTYPE = {dtype: code for code, dtype in _DTYPE_OF_CODE.items()}


class ShardEntry(Record):
    """One shard: `name` is its path in the token folder without `.bin` or `.idx`."""

    name: Annotated[str, Field(pattern=r"^(train|validation)/shard-\d{5,}$")]
    tokens: NonNegativeInt
    documents: NonNegativeInt
    bin: FileEntry
    idx: FileEntry


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the type to store ids in: uint16 below 65,500 (Megatron's bound), else int32."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


class ShardWriter:
    """Writer of a shard, which keeps only the documents' lengths in memory."""

    def __init__(self, prefix: Path, dtype: np.dtype[Any]) -> None:
        """Create `prefix.bin`; `close` adds `prefix.idx`."""
        self._prefix = prefix
        self._dtype = dtype
        self._lengths: list[Ids] = []
        self._bin = HashedFile(prefix.with_suffix(".bin"))

    def write(self, ids: bytes) -> None:
        """Append ids as the file holds them."""
        self._bin.write(ids)

    def add_lengths(self, lengths: Ids) -> None:
        """State the lengths of the documents whose ids were appended."""
        self._lengths.append(lengths)

    def close(self, name: str) -> ShardEntry:
        """Write the index and return once both files are safe on the disk.

        Args:
            name: The path of the shard in its token folder, without a suffix.
        """
        lengths = np.concatenate([np.empty(0), *self._lengths]).astype("<i8")
        count, tokens, itemsize = len(lengths), int(lengths.sum()), self._dtype.itemsize
        index = (
            _HEADER.pack(_MAGIC, _VERSION, _CODE_OF_DTYPE[self._dtype], count, count + 1)
            + lengths.astype("<i4").tobytes()
            + ((lengths.cumsum() - lengths) * itemsize).tobytes()
            + np.arange(count + 1, dtype="<i8").tobytes()
        )
        index_file = HashedFile(self._prefix.with_suffix(".idx"))
        index_file.write(index)
        return ShardEntry(
            name=name,
            tokens=tokens,
            documents=count,
            bin=self._bin.close(),
            idx=index_file.close(),
        )


def read_index(path: Path) -> tuple[np.dtype[Any], int]:
    """Return the ids' type and the number of documents of an index; raise DataError if malformed.

    Only the header is read, and the size of the file compared with it.
    """
    with path.open("rb") as stream:
        data = stream.read(_HEADER.size)
    magic, version, code, sequences, entries = _HEADER.unpack(data.ljust(_HEADER.size, b"\0"))
    dtype = _DTYPE_OF_CODE.get(code)
    if (magic, version) != (_MAGIC, _VERSION) or dtype is None or entries == 0:
        raise DataError(
            f"{path}: not a Megatron index file of version {_VERSION} with uint16 or int32 ids, "
            f"but begins with {data!r}; prepare the token folder again"
        )
    expected = _HEADER.size + 12 * sequences + 8 * entries
    found = path.stat().st_size
    if found != expected:
        raise DataError(
            f"{path}: {found} bytes, but its header asks for {expected}; "
            "copy the token folder or prepare it again"
        )
    return dtype, entries - 1


def read_lengths(path: Path) -> Ids:
    """Return the number of ids of each document of an index."""
    return np.fromfile(path, "<i4", count=read_index(path)[1], offset=_HEADER.size)
