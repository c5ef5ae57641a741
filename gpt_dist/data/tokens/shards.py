"""Check token shards: Megatron's pair of a `.bin` (the ids) and a `.idx` (their bounds).

A `.sums` beside them has the checksums of the `.bin` (see `blocks`). The layout of the pair is that
of `megatron.core.datasets.indexed_dataset.IndexedDataset`, so that shards open there too. An index
holds, little-endian: magic, version, type code, number of sequences, length of `documents`, then
int32 sequence lengths, int64 byte pointers, and int64 `documents` (the sequence number at which
each document starts, and a last entry at the end). Here a sequence is a document.
"""

import struct
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt

from gpt_dist.errors import DataError
from gpt_dist.files.entries import FileEntry, Record

Ids = np.ndarray[Any, np.dtype[Any]]

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPE_OF_CODE: dict[int, np.dtype[Any]] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}


class ShardEntry(Record):
    """One shard: `name` is its path in the token folder without `.bin` or `.idx`."""

    name: Annotated[str, Field(pattern=r"^(train|validation)/shard-\d{5,}$")]
    tokens: NonNegativeInt
    documents: NonNegativeInt
    bin: FileEntry
    idx: FileEntry
    sums: FileEntry | None = None
    """CRC-32 of each block of `bin`; None in a folder that an earlier version wrote."""


def read_index(path: Path) -> tuple[np.dtype[Any], int]:
    """Return the ids' type and the number of documents of an index; raise DataError if malformed.

    Only the header is read, and the size of the file compared with it.
    """
    with path.open("rb") as stream:
        data = stream.read(HEADER.size)
    magic, version, code, sequences, entries = HEADER.unpack(data.ljust(HEADER.size, b"\0"))
    dtype = DTYPE_OF_CODE.get(code)
    if (magic, version) != (MAGIC, VERSION) or dtype is None or entries == 0:
        raise DataError(
            f"{path}: not a Megatron index file of version {VERSION} with uint16 or int32 ids, "
            f"but begins with {data!r}; prepare the token folder again"
        )
    expected = HEADER.size + 12 * sequences + 8 * entries
    found = path.stat().st_size
    if found != expected:
        raise DataError(
            f"{path}: {found} bytes, but its header asks for {expected}; "
            "copy the token folder or prepare it again"
        )
    return dtype, entries - 1
