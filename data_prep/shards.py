"""Write token shards, in the form that `gpt_dist.data.tokens.shards` describes."""

from pathlib import Path
from typing import Any

import numpy as np

from gpt_dist.data.tokens.blocks import BlockSums
from gpt_dist.data.tokens.shards import (
    DTYPE_OF_CODE,
    HEADER,
    MAGIC,
    VERSION,
    Ids,
    ShardEntry,
    read_index,
)
from gpt_dist.files.entries import FileEntry, HashedFile

SUFFIXES = (".bin", ".idx", ".sums")
"""Those of the files of a shard."""

_CODE_OF_DTYPE = {dtype: code for code, dtype in DTYPE_OF_CODE.items()}


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the type to store ids in: uint16 below 65,500 (Megatron's bound), else int32."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


class ShardWriter:
    """Writer of a shard, which keeps only the documents' lengths in memory."""

    def __init__(self, prefix: Path, dtype: np.dtype[Any]) -> None:
        """Create `prefix.bin`; `close` adds the other files."""
        self._prefix = prefix
        self._dtype = dtype
        self._lengths: list[Ids] = []
        self._bin = HashedFile(prefix.with_suffix(".bin"))
        self._sums = BlockSums()

    def write(self, ids: bytes) -> None:
        """Append ids as the file holds them."""
        self._bin.write(ids)
        self._sums.update(ids)

    def add_lengths(self, lengths: Ids) -> None:
        """State the lengths of the documents whose ids were appended."""
        self._lengths.append(lengths)

    def close(self, name: str) -> ShardEntry:
        """Write the other files and return the entry, by `name`, once all are safe on the disk."""
        lengths = np.concatenate([np.empty(0), *self._lengths]).astype("<i8")
        count, tokens, itemsize = len(lengths), int(lengths.sum()), self._dtype.itemsize
        index = (
            HEADER.pack(MAGIC, VERSION, _CODE_OF_DTYPE[self._dtype], count, count + 1)
            + lengths.astype("<i4").tobytes()
            + ((lengths.cumsum() - lengths) * itemsize).tobytes()
            + np.arange(count + 1, dtype="<i8").tobytes()
        )
        return ShardEntry(
            name=name,
            tokens=tokens,
            documents=count,
            bin=self._bin.close(),
            idx=self._write_beside(".idx", index),
            sums=self._write_beside(".sums", self._sums.content()),
        )

    def _write_beside(self, suffix: str, content: bytes) -> FileEntry:
        file = HashedFile(self._prefix.with_suffix(suffix))
        file.write(content)
        return file.close()


def read_lengths(path: Path) -> Ids:
    """Return the number of ids of each document of an index."""
    return np.fromfile(path, "<i4", count=read_index(path)[1], offset=HEADER.size)
