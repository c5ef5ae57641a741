"""Files of a folder that several processes read together, each byte from the disk once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from stat import S_ISREG

import torch
import torch.distributed as dist
from torch import Tensor

from gpt_dist.errors import GptDistError
from gpt_dist.files.entries import BLOCK_BYTES, FileEntry, Piece, pieces_of
from gpt_dist.files.tensor_file import TensorFile, memory_of
from gpt_dist.topology import Topology, together

Refuse = Callable[[Path, str], GptDistError]
"""Makes the error for a file and what is wrong with it."""

_SENT_BYTES = 2**22
_RECEIVED_BYTES = 2**27
"""Bytes that one broadcast carries at most, and that a process keeps of the last ones."""


class SharedFiles:
    """Described files: checked against the description, and read by name and place.

    Each process reads for itself until `share`. From then on every process holds a part of the
    files in its memory, and `read` is collective: all ask for the same bytes in the same order.
    """

    def __init__(
        self, folder: Path, entries: Mapping[str, FileEntry | None], refuse: Refuse
    ) -> None:
        """Take the files that have entries; None is that of a file of which nothing is stated."""
        self._folder = folder
        self._refuse = refuse
        self._pieces = {
            name: pieces_of(name, entry or self._file_size(name)) for name, entry in entries.items()
        }
        self._streams: dict[str, FileIO] = {}
        self._tensor_files: dict[str, TensorFile] = {}
        self._shared: _Shared | None = None
        self._verified = False

    def check_sizes(self) -> None:
        """Refuse a file that is not as long as it should be."""
        for name in self._pieces:
            self._check_size(name)

    def verify(self, topology: Topology | None = None) -> None:
        """Hash every file; the processes of a topology each hash a part, and all raise an error."""
        if topology:
            self._load_own(topology, keep=False)
            return
        for pieces in self._pieces.values():
            for piece in pieces:
                if piece.sha256:
                    self._load(piece, keep=False)
        self._verified = True

    def share(self, topology: Topology) -> None:
        """Read and hash every file, each process a part, and hold it until `release`.

        A process that is alone holds nothing: it hashes the files, and goes on reading from them.
        """
        if topology.launch.world_size == 1:
            if not self._verified:
                self.verify()
        elif self._shared is None:
            self._shared = self._load_own(topology, keep=True)
            self._tensor_files.clear()

    def release(self) -> None:
        """Give up what `share` holds: each process reads for itself again."""
        self._shared = None
        self._tensor_files.clear()

    @property
    def device(self) -> torch.device:
        """Where the target of a read must be."""
        return self._shared.device if self._shared else torch.device("cpu")

    def size(self, name: str) -> int:
        """Return the length of a file in bytes."""
        if self._shared:
            return self._pieces[name][-1].stop
        return os.fstat(self._stream(name).fileno()).st_size

    def tensors(self, name: str) -> TensorFile:
        """Open a safetensors file; OSError or ValueError where it is none."""
        if name not in self._tensor_files:
            self._tensor_files[name] = TensorFile(self, name)
        return self._tensor_files[name]

    def read(self, name: str, start: int, target: Tensor) -> None:
        """Fill a contiguous tensor with the bytes of a file from `start` on.

        Raises OSError, or ValueError where the file is shorter.
        """
        content = memory_of(target)
        if self._shared is None:
            self._read_here(name, start, content)
            return
        if start + len(content) > self.size(name):
            raise ValueError(f"it ends before byte {start + len(content)}")
        while len(content):
            piece = next(one for one in self._pieces[name] if start < one.stop)
            part = self._shared.read(piece, start)[: len(content)]
            content[: len(part)].copy_(part)
            start, content = start + len(part), content[len(part) :]

    def _load_own(self, topology: Topology, *, keep: bool) -> _Shared:
        """Have each process load its part of the pieces; the error of any is raised on all."""
        digests = [""] * topology.launch.world_size
        dist.all_gather_object(digests, hashlib.sha256(repr(self._pieces).encode()).hexdigest())
        if len(set(digests)) > 1:
            raise self._refuse(
                self._folder, "not the same for every process; use storage that all hosts share"
            )
        owners = _share_out(self._pieces.values(), topology.launch.world_size)
        own = [piece for piece, rank in owners.items() if rank == topology.launch.rank]
        held = together(lambda: {piece: self._load(piece, keep=keep) for piece in own})
        block_bytes = min(_SENT_BYTES, _RECEIVED_BYTES // max(len(self._pieces), 1))
        return _Shared(topology.device, owners, held, block_bytes)

    def _load(self, piece: Piece, *, keep: bool) -> Tensor:
        """Read and check a piece; all of its bytes if they are to be kept, else the last block."""
        self._check_size(piece.file)
        digest, length = hashlib.sha256(), piece.stop - piece.start
        with self._reading(piece.file):
            content = torch.empty(length if keep else min(length, BLOCK_BYTES), dtype=torch.uint8)
            for start in range(0, length, BLOCK_BYTES):
                block = content[start if keep else 0 :][: min(BLOCK_BYTES, length - start)]
                self._read_here(piece.file, piece.start + start, block)
                digest.update(block.numpy().data)
        if piece.sha256 not in (None, digest.hexdigest()):
            raise self._refuse(self._folder / piece.file, "damaged, its SHA-256 is another")
        return content

    def _check_size(self, name: str) -> None:
        found, expected = self._file_size(name), self._pieces[name][-1].stop
        if found != expected:
            raise self._refuse(self._folder / name, f"{found} bytes instead of {expected}")

    def _file_size(self, name: str) -> int:
        with self._reading(name):
            status = (self._folder / name).stat()
            if not S_ISREG(status.st_mode):
                raise ValueError("not a file")
            return status.st_size

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise self._refuse(self._folder / name, f"cannot be read ({reason})") from None

    def _read_here(self, name: str, start: int, target: Tensor) -> None:
        content = target.numpy().data
        while content:
            count = os.preadv(self._stream(name).fileno(), [content], start)
            if count == 0:
                raise ValueError(f"it ends at byte {start}")
            start, content = start + count, content[count:]

    def _stream(self, name: str) -> FileIO:
        if name not in self._streams:
            self._streams[name] = FileIO(self._folder / name)
        return self._streams[name]


def _share_out(files: Iterable[list[Piece]], processes: int) -> dict[Piece, int]:
    """Give each process consecutive pieces, of about the same number of bytes."""
    pieces = [piece for pieces in files for piece in pieces]
    total = sum(piece.stop - piece.start for piece in pieces)
    owners, position = {}, 0
    for piece in pieces:
        middle = position + (piece.stop - piece.start) // 2
        owners[piece] = min(middle * processes // max(total, 1), processes - 1)
        position += piece.stop - piece.start
    return owners


class _Shared:
    """Pieces in the memory of several processes."""

    def __init__(
        self,
        device: torch.device,
        owners: dict[Piece, int],
        held: dict[Piece, Tensor],
        block_bytes: int,
    ) -> None:
        """`held` are the pieces that this process owns."""
        self.device = device
        self._owners = owners
        self._held = held
        self._block_bytes = block_bytes
        self._last: dict[str, tuple[int, Tensor]] = {}

    def read(self, piece: Piece, position: int) -> Tensor:
        """Return some bytes from a position of the file on, which the owner sends to all.

        The last block of each file is kept, since what is read next is mostly in it.
        """
        first, block = self._last.get(piece.file, (0, torch.empty(0)))
        if not first <= position < first + len(block):
            first = position - (position - piece.start) % self._block_bytes
            length = min(self._block_bytes, piece.stop - first)
            if piece in self._held:
                block = self._held[piece][first - piece.start :][:length].to(self.device)
            else:
                block = torch.empty(length, dtype=torch.uint8, device=self.device)
            dist.broadcast(block, self._owners[piece])
            self._last[piece.file] = first, block
        return block[position - first :]
