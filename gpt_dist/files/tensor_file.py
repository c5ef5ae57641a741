"""One safetensors file: written in one pass with its hashes, read straight into tensors.

A file is the length of its header (8 bytes, little-endian), the header in JSON, and the data.
"""

import json
import math
from collections.abc import Callable, Mapping, Set
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic_core import from_json
from torch import Tensor

from gpt_dist.files.entries import ChunkedEntry, HashedFile

Shape = tuple[int, ...]

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES = {**FLOATS, "U8": torch.uint8}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_HEADER_BYTES = 10**8
"""A longer header is refused, as by the safetensors library."""


def write_tensor_file(
    path: Path, entries: Mapping[str, tuple[torch.dtype, Shape]], read: Callable[[str], Tensor]
) -> ChunkedEntry:
    """Write tensors, and return the file's entry once they are safe on the disk.

    `read` gives the tensor of a name as it is stated, and is asked for one at a time.
    """
    header, size = _header(entries)
    file = HashedFile(path, 8 + len(header) + size)
    file.write(len(header).to_bytes(8, "little") + header)
    for name, (dtype, shape) in entries.items():
        tensor = read(name)
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape), (name, tensor.shape)
        file.write(memory_of(tensor.contiguous()).numpy().data)
    return file.close()


class _Files(Protocol):
    """Files that are read by name and place, as `SharedFiles` reads them."""

    device: torch.device

    def size(self, name: str) -> int: ...
    def reading(self, name: str, problem: str = ...) -> AbstractContextManager[None]: ...
    def read(
        self, name: str, start: int, target: Tensor, users: Set[int] | None = None
    ) -> None: ...


class TensorFile:
    """An open file whose header is checked, and whose data are read when they are asked for.

    What is wrong with the file raises the error that its `files` refuse it with.
    """

    def __init__(self, files: _Files, name: str) -> None:
        self._files, self._name = files, name
        with files.reading(name, "not a whole safetensors file"):
            self._first, self.entries = self._read_header()

    def _read_header(self) -> tuple[int, dict[str, "TensorEntry"]]:
        """Return where the data begin, and the tensors; ValueError where they are not the file."""
        file_size = self._files.size(self._name)
        size = int.from_bytes(self._header_bytes(0, 8), "little")
        if size > min(_HEADER_BYTES, file_size):
            raise ValueError(f"a header of {size} bytes")
        header = from_json(self._header_bytes(8, size))
        if not isinstance(header, dict):
            raise ValueError("a header that names no tensors")
        first = stop = 8 + size
        entries = {name: TensorEntry(one) for name, one in header.items() if name[:2] != "__"}
        for start, end in sorted((entry.start, entry.stop) for entry in entries.values()):
            if first + start != stop:
                raise ValueError(f"a gap or an overlap at byte {stop}")
            stop = first + end
        if stop != file_size:
            raise ValueError(f"{file_size} bytes instead of the {stop} of its header")
        return first, entries

    def read(self, name: str) -> Tensor:
        """Return a whole tensor."""
        with self._files.reading(self._name):
            entry = self.entries[name]
            if entry.dtype not in _DTYPES:
                raise ValueError(f"{name} holds {entry.dtype}")
        tensor = torch.empty(entry.shape, dtype=_DTYPES[entry.dtype], device=self._files.device)
        self.read_into(name, tensor)
        return tensor

    def read_into(self, name: str, target: Tensor, users: Set[int] | None = None) -> None:
        """Fill a contiguous tensor of as many elements of the same type; `users` as for files."""
        with self._files.reading(self._name):
            entry = self.entries[name]
            if (entry.dtype, math.prod(entry.shape)) != (_NAMES.get(target.dtype), target.numel()):
                raise ValueError(f"{name} is not {target.numel()} elements of {target.dtype}")
            self._files.read(self._name, self._first + entry.start, target, users)

    def _header_bytes(self, start: int, length: int) -> bytes:
        content = torch.empty(length, dtype=torch.uint8, device=self._files.device)
        self._files.read(self._name, start, content)
        return content.cpu().numpy().tobytes()


class TensorEntry:
    """The header's entry of one tensor; ValueError where it contradicts itself."""

    def __init__(self, value: Any) -> None:
        try:
            self.dtype: str = value["dtype"]
            self.shape: Shape = tuple(value["shape"])
            self.start, self.stop = value["data_offsets"]
            numbers = (self.start, self.stop, *self.shape)
            consistent = all(type(number) is int and 0 <= number < 2**63 for number in numbers)
            if self.dtype in _DTYPES:
                size = math.prod(self.shape) * _DTYPES[self.dtype].itemsize
                consistent = consistent and self.stop - self.start == size
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"an entry of another form ({error!r})") from None
        if not consistent:
            raise ValueError(f"an entry of bytes {self.start} to {self.stop} for {self.shape}")


def memory_of(tensor: Tensor) -> Tensor:
    """Return the bytes [n] of a contiguous tensor, which share its memory."""
    return tensor.detach().view(-1).view(torch.uint8)


def _header(entries: Mapping[str, tuple[torch.dtype, Shape]]) -> tuple[bytes, int]:
    """Return the header, and the length of the data behind it."""
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for name, (dtype, shape) in entries.items():
        start, stop = stop, stop + math.prod(shape) * dtype.itemsize
        content[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, stop]}
    header = json.dumps(content, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8), stop  # so that the data are aligned
