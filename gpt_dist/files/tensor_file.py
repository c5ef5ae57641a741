"""One safetensors file: written in one pass with its hash, read straight into tensors.

A file is the length of its header (8 bytes, little-endian), the header in JSON, and the data.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]

_DTYPES = {"F32": torch.float32, "U8": torch.uint8}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_HEADER_BYTES = 10**8
"""A longer header is refused, as by the safetensors library."""


def write_tensor_file(
    path: Path, entries: Mapping[str, tuple[torch.dtype, Shape]], read: Callable[[str], Tensor]
) -> str:
    """Write fp32 or uint8 tensors, and return once they are safe on the disk: the file's SHA-256.

    `read` gives the tensor of a name as it is stated, and is asked for one at a time.
    """
    digest = hashlib.sha256()
    with path.open("wb") as stream:

        def write(content: bytes | memoryview) -> None:
            digest.update(content)
            stream.write(content)

        header = _header(entries)
        write(len(header).to_bytes(8, "little"))
        write(header)
        for name, (dtype, shape) in entries.items():
            tensor = read(name)
            assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape), (name, tensor.shape)
            write(_bytes(tensor.contiguous()))
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


class TensorFile:
    """An open file; its header is checked, its data are not."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or ValueError where it is not what `write_tensor_file` makes."""
        self._stream = path.open("rb", buffering=0)
        size = int.from_bytes(self._stream.read(8), "little")
        if size > _HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes")
        try:
            header = json.loads(self._stream.read(size))
        except RecursionError:
            raise ValueError("a header too deep") from None
        if not isinstance(header, dict):
            raise ValueError("a header that names no tensors")
        self._first = 8 + size
        self._entries = {name: _Entry(value) for name, value in header.items() if name[:2] != "__"}

    @property
    def names(self) -> Collection[str]:
        """The tensors there are."""
        return self._entries.keys()

    def read(self, name: str) -> Tensor:
        """A whole tensor."""
        entry = self._entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        self.read_into(name, 0, tensor.view(-1))
        return tensor

    def read_into(self, name: str, first: int, target: Tensor) -> None:
        """Fill a contiguous vector in host memory with elements of a tensor, from `first` on.

        Raises OSError, KeyError or ValueError where the file has them not.
        """
        entry = self._entries[name]
        start, stop = (number * target.itemsize for number in (first, first + len(target)))
        if target.dtype != entry.dtype or stop > entry.stop - entry.start:
            raise ValueError(f"{name} is not {stop} bytes of {target.dtype}")
        content, position = _bytes(target), self._first + entry.start + start
        while content:
            count = os.preadv(self._stream.fileno(), [content], position)
            if count == 0:
                raise ValueError(f"it ends within {name}")
            content, position = content[count:], position + count


class _Entry:
    """What the header says of one tensor; ValueError where that contradicts itself."""

    def __init__(self, value: Any) -> None:
        try:
            self.dtype = _DTYPES[value["dtype"]]
            self.shape: Shape = tuple(value["shape"])
            self.start, self.stop = value["data_offsets"]
            numbers = (self.start, self.stop, *self.shape)
            plain = all(type(number) is int and 0 <= number < 2**63 for number in numbers)
            size = math.prod(self.shape) * self.dtype.itemsize
            consistent = plain and self.stop - self.start == size
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"an entry that is none ({error!r})") from None
        if not consistent:
            raise ValueError(f"an entry of bytes {self.start} to {self.stop} for {self.shape}")


def _header(entries: Mapping[str, tuple[torch.dtype, Shape]]) -> bytes:
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for name, (dtype, shape) in entries.items():
        start, stop = stop, stop + math.prod(shape) * dtype.itemsize
        content[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, stop]}
    header = json.dumps(content, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8)  # so that the data are aligned


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.detach().view(-1).view(torch.uint8).numpy().data
