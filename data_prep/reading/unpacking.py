"""Unpack compressed streams within a budget, and name the file if one is damaged."""

import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from bz2 import BZ2File
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from data_prep.reading.kinds import Kind
from gpt_dist.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BUFFER_BYTES = 1 << 18
_UNPACK_RATIO = 100
_UNPACK_FLOOR = 16 << 20
_MAX_MEMBERS = 1_000_000
_XZ_MEMORY_BYTES = 256 << 20
_BROKEN = (
    EOFError,
    OSError,  # of gzip and bz2 too
    OverflowError,
    UnicodeDecodeError,
    lzma.LZMAError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


class Readable(Protocol):
    """Stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return the next `size` bytes, or fewer; no bytes at the end."""
        ...


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Raise a DataError that names the file for any error that damage causes."""
    try:
        yield
    except _BROKEN as error:
        raise DataError(
            f"{path}: cannot be read ({error}); fetch it again, or leave it out"
        ) from error


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a file, with a buffer large enough to tell by `peek` how it is read."""
    with path.open("rb", 0) as file:
        yield buffered(file)


def buffered(stream: Readable, budget: "Budget | None" = None) -> BufferedReader:
    """Return `stream` with a buffer, taking what is read from the budget.

    The result can seek if `stream` is a file and there is no budget.
    """
    if budget is None and isinstance(stream, io.FileIO):
        return BufferedReader(stream, _BUFFER_BYTES)
    return BufferedReader(_CountedStream(stream, budget), _BUFFER_BYTES)


def unpack(kind: Kind, stream: IO[bytes]) -> Readable:
    """Return the stream that is packed in a `gz`, `xz`, `bz2` or `zst`."""
    if kind == "gz":
        return gzip.GzipFile(fileobj=stream)
    if kind == "bz2":
        return BZ2File(stream)
    return _XzStream(stream) if kind == "xz" else _ZstStream(stream)


class Budget:
    """Limit to the bytes and members that one file may still unpack to."""

    def __init__(self, path: Path) -> None:
        """Set the limits for the file at `path`."""
        self._path = path
        self._bytes = max(_UNPACK_FLOOR, _UNPACK_RATIO * path.stat().st_size)
        self._members = _MAX_MEMBERS

    def count_member(self) -> None:
        """Count one member of an archive."""
        self._members -= 1
        if self._members < 0:
            raise DataError(f"{self._path}: more than {_MAX_MEMBERS} members; split it")

    def count_bytes(self, size: int) -> None:
        """Count bytes that were unpacked."""
        self._bytes -= size
        if self._bytes < 0:
            raise DataError(
                f"{self._path}: unpacks to more than {_UNPACK_RATIO} times its size, which text "
                "does not; if you trust it, unpack it and give the folder"
            )


class _CountedStream(io.RawIOBase):
    def __init__(self, stream: Readable, budget: Budget | None) -> None:
        self._stream = stream
        self._budget = budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        data = self._stream.read(len(view))
        if self._budget:
            self._budget.count_bytes(len(data))
        view[: len(data)] = data
        return len(data)


class _XzStream:
    """Like lzma.LZMAFile, which cannot limit the memory that a file asks for."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES)

    def read(self, size: int) -> bytes:
        while True:
            packed = b""
            if self._decoder.eof:
                packed = self._decoder.unused_data.lstrip(b"\0")
                while not packed:
                    if not (block := self._stream.read(_BUFFER_BYTES)):
                        return b""
                    packed = block.lstrip(b"\0")
                self._decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES)
            elif self._decoder.needs_input:
                packed = self._stream.read(_BUFFER_BYTES)
                if not packed:
                    raise EOFError("it ends too early")
            if data := self._decoder.decompress(packed, size):
                return data


class _ZstStream:
    """Stream of zstandard, in which a window of more than 128 MiB is an error."""

    def __init__(self, stream: IO[bytes]) -> None:
        from backports import zstd  # of the extra `text`

        self._file = zstd.ZstdFile(stream)
        self._error = zstd.ZstdError

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except self._error as error:
            raise OSError(str(error)) from error
