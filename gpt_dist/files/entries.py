"""Records that JSON files hold, and the size and hashes of files that they state."""

import hashlib
import json
import os
from io import FileIO
from pathlib import Path
from typing import Annotated, NamedTuple, Self

from pydantic import BaseModel, Field, NonNegativeInt, model_validator

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

BLOCK_BYTES = 2**20
"""Bytes that are read and hashed at a time, and the least length of a chunk."""
_MAX_CHUNKS = 64
MANIFEST_BYTES = 2**26
"""Largest manifest that is read; a hostile one takes 25 times its size in memory."""


class Record(BaseModel, frozen=True, extra="forbid"):
    """Immutable record that refuses unknown keys."""


class SealedRecord(Record):
    """Record with a digest, by which it proves to be as it was written."""

    digest: str = ""
    """SHA-256 of all the rest, as canonical JSON."""

    def sealed(self) -> Self:
        """Return the same with its digest."""
        content = self.model_dump(mode="json", exclude={"digest"}, exclude_defaults=True)
        canonical = json.dumps(content, sort_keys=True).encode()
        return self.model_copy(update={"digest": hashlib.sha256(canonical).hexdigest()})


class FileEntry(Record):
    """Size in bytes and SHA-256 of a file."""

    bytes: NonNegativeInt
    sha256: Sha256


class ChunkedEntry(FileEntry):
    """The same with the SHA-256 of each chunk, so that processes can share out one file.

    All chunks but the last are equally long. Short files, and files that earlier versions wrote,
    have no chunks.
    """

    chunks: tuple[Sha256, ...] = ()

    @model_validator(mode="after")
    def _check_chunks(self) -> Self:
        if self.chunks and len(_cut(self.bytes, len(self.chunks))) != len(self.chunks):
            raise ValueError(f"{self.bytes} bytes are not {len(self.chunks)} equal chunks")
        return self


class Piece(NamedTuple):
    """Bytes start to stop of a file, and their SHA-256 where it is stated."""

    file: str
    start: int
    stop: int
    sha256: str | None


def pieces_of(name: str, entry: FileEntry | int) -> list[Piece]:
    """Divide a file, of which an entry or the size alone is known, into what is read at once."""
    if isinstance(entry, int):
        return [Piece(name, *bounds, None) for bounds in _cut(entry)]
    hashes = (isinstance(entry, ChunkedEntry) and entry.chunks) or (entry.sha256,)
    bounds = _cut(entry.bytes, len(hashes))
    return [Piece(name, *one, sha256) for one, sha256 in zip(bounds, hashes, strict=True)]


class Hasher:
    """Hasher that gives the entry of a file from its content, taken in order."""

    def __init__(self, size: int = 0) -> None:
        """Hash chunks too where the `size` of the file is known beforehand."""
        self._whole = hashlib.sha256()
        self._chunks: list[hashlib._Hash] = []
        self._bytes = 0
        self._step = _cut(size)[0][1] if len(_cut(size)) > 1 else 0

    def update(self, content: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._whole.update(content)
        rest, position = memoryview(content), self._bytes
        self._bytes += len(rest)
        while self._step and rest:
            if position % self._step == 0:
                self._chunks.append(hashlib.sha256())
            part = rest[: self._step - position % self._step]
            self._chunks[-1].update(part)
            rest, position = rest[len(part) :], position + len(part)

    def entry(self) -> ChunkedEntry:
        """Return the entry of all that was taken."""
        chunks = tuple(chunk.hexdigest() for chunk in self._chunks)
        return ChunkedEntry(bytes=self._bytes, sha256=self._whole.hexdigest(), chunks=chunks)


class HashedFile:
    """A file that is hashed while it is written."""

    def __init__(self, path: Path, size: int = 0) -> None:
        """Create the file; its chunks are hashed too where its `size` is known beforehand."""
        self._stream = path.open("wb")
        self._hasher = Hasher(size)

    def write(self, content: bytes | memoryview) -> None:
        """Append some bytes."""
        self._stream.write(content)
        self._hasher.update(content)

    def close(self) -> ChunkedEntry:
        """Return the file's entry once it is safe on the disk."""
        with self._stream:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        return self._hasher.entry()


def describe_file(path: Path) -> ChunkedEntry:
    """Return the entry of a file, read in blocks."""
    hasher = Hasher(path.stat().st_size)
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(BLOCK_BYTES):
            hasher.update(block)
    return hasher.entry()


def read_small(path: Path, limit: int = MANIFEST_BYTES) -> bytes:
    """Return the content of a file; ValueError for more bytes than `limit`, a pipe or a device."""
    if path.stat().st_size > limit:
        raise ValueError(f"larger than {limit} bytes")
    if not path.is_file():
        raise ValueError("not a file")
    return path.read_bytes()


def read_at(stream: FileIO, position: int, target: memoryview) -> None:
    """Fill `target` with the bytes of a file from a position on; ValueError where it ends before.

    The place of the stream does not change, so that threads can share it.
    """
    while target:
        count = os.preadv(stream.fileno(), [target], position)
        if count == 0:
            raise ValueError(f"it ends at byte {position}")
        position, target = position + count, target[count:]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _cut(size: int, count: int = 0) -> list[tuple[int, int]]:
    """Return the bounds of equal parts, the last shorter; by default the chunks of a new file."""
    step = -(-size // (count or max(1, min(_MAX_CHUNKS, size // BLOCK_BYTES)))) or 1
    return [(start, min(start + step, size)) for start in range(0, max(size, 1), step)]
