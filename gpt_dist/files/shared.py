"""Files of a folder that several processes read together, each byte from the disk once."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from functools import cache
from io import FileIO
from pathlib import Path
from stat import S_ISREG

import torch
import torch.distributed as dist
from torch import Tensor

from gpt_dist.errors import GptDistError
from gpt_dist.files.entries import BLOCK_BYTES, FileEntry, Piece, pieces_of, read_at
from gpt_dist.files.tensor_file import TensorFile, memory_of
from gpt_dist.topology import Topology, gather, together

_SENT_BYTES = 2**22
_KEPT_BYTES = 2**27
"""Bytes that one broadcast carries, and that a process keeps of the last ones, at most."""


class SharedFiles:
    """Described files, checked against their entries, and read by name and place.

    Each process reads for itself until `share`. From then on all processes hold the files together
    in their memory, and reading is collective: all ask for the same bytes in the same order.
    """

    def __init__(
        self,
        folder: Path,
        entries: Mapping[str, FileEntry | None],
        refuse: Callable[[Path, str], GptDistError],
        observe: Callable[[str, int, int, memoryview], None] | None = None,
    ) -> None:
        """Take files by name; None is the entry of a file of which nothing is stated.

        `refuse` makes the error that is raised for a file and what is wrong with it. `observe` is
        given what is hashed: the file's name and size, a position, and the bytes there.
        """
        self._folder = folder
        self._refuse, self._observe = refuse, observe
        self._pieces = {
            name: pieces_of(name, entry or self._size_on_disk(name))
            for name, entry in entries.items()
        }
        self._stream = cache(lambda name: FileIO(folder / name))
        self._tensor_files: dict[str, TensorFile] = {}
        self._shared = False
        self._owners: dict[Piece, int] = {}
        self._held: dict[Piece, Tensor] = {}
        self._received: dict[str, tuple[int, Tensor]] = {}
        self.device = torch.device("cpu")
        """The device that the target of a read must be on."""

    def verify(self) -> None:
        """Read and hash every file."""
        for pieces in self._pieces.values():
            for piece in pieces:
                self._load(piece, hold=False)

    def share(self, topology: Topology, *, hold: bool = True) -> None:
        """Read and hash every file, each process a part, and hold them until `release`; collective.

        All processes raise any error. Without `hold`, or alone, a process holds nothing: it goes on
        reading from the files.
        """
        if self._shared:
            return
        digest = hashlib.sha256(repr(self._pieces).encode()).hexdigest()
        if len(set(gather(digest))) > 1:
            raise self._refuse(
                self._folder, "not the same for every process; use storage that all hosts share"
            )
        owners = self._share_out(topology.launch.world_size)
        own = [piece for piece, rank in owners.items() if rank == topology.launch.rank]
        hold = hold and topology.launch.world_size > 1
        held = together(lambda: {piece: self._load(piece, hold) for piece in own})
        if hold:
            self._owners, self._held, self.device = owners, held, topology.device
            self._tensor_files.clear()
        self._shared = True

    def release(self) -> None:
        """Free the held bytes; from now on each process reads from the files for itself."""
        self._shared, self.device = False, torch.device("cpu")
        self._owners, self._held, self._received, self._tensor_files = {}, {}, {}, {}

    def size(self, name: str) -> int:
        """Return the length of a file in bytes, as it is stated."""
        return self._pieces[name][-1].stop

    def tensors(self, name: str) -> TensorFile:
        """Return a safetensors file; raises the error of `refuse` where it is none."""
        if name not in self._tensor_files:
            self._tensor_files[name] = TensorFile(self, name)
        return self._tensor_files[name]

    def read(self, name: str, start: int, target: Tensor, users: Set[int] | None = None) -> None:
        """Fill a contiguous tensor with the bytes of a file from `start` on.

        With `users`, the processes that need them, others may be left with something else. Raises
        OSError, or ValueError where the file is shorter.
        """
        content = memory_of(target)
        if not self._owners:
            read_at(self._stream(name), start, content.numpy().data)
            return
        if start + len(content) > self.size(name):
            raise ValueError(f"it ends before byte {start + len(content)}")
        while len(content):
            piece = next(one for one in self._pieces[name] if start < one.stop)
            if users is None or not users <= {self._owners[piece]}:
                part = self._receive(piece, start)[: len(content)]
            elif piece in self._held:
                part = self._held[piece][start - piece.start :][: len(content)]
            else:
                part = content[: piece.stop - start]
            content[: len(part)].copy_(part)
            start, content = start + len(part), content[len(part) :]

    def _receive(self, piece: Piece, position: int) -> Tensor:
        """Return some bytes from a position of the file on, which the owner sends to all.

        The last block of each file is kept, since what is read next is mostly in it.
        """
        first, block = self._received.get(piece.file, (0, torch.empty(0)))
        if not first <= position < first + len(block):
            length = min(_SENT_BYTES, _KEPT_BYTES // len(self._pieces))
            first = position - (position - piece.start) % length
            length = min(length, piece.stop - first)
            if piece in self._held:
                block = self._held[piece][first - piece.start :][:length].to(self.device)
            else:
                block = torch.empty(length, dtype=torch.uint8, device=self.device)
            dist.broadcast(block, self._owners[piece])
            self._received[piece.file] = first, block
        return block[position - first :]

    def _share_out(self, processes: int) -> dict[Piece, int]:
        """Give each process consecutive pieces, of about the same number of bytes."""
        pieces = [piece for pieces in self._pieces.values() for piece in pieces]
        total = sum(piece.stop - piece.start for piece in pieces)
        owners, middle = {}, 0.0
        for piece in pieces:
            half = (piece.stop - piece.start) / 2
            owners[piece] = min(int((middle + half) * processes / max(total, 1)), processes - 1)
            middle += 2 * half
        return owners

    def _load(self, piece: Piece, hold: bool) -> Tensor:
        """Read a piece, check its SHA-256 and return its bytes; only a last block unless `hold`."""
        path, expected = self._folder / piece.file, self._pieces[piece.file][-1].stop
        found = self._size_on_disk(piece.file)
        if found != expected:
            raise self._refuse(path, f"{found} bytes instead of {expected}")
        digest, length = hashlib.sha256(), piece.stop - piece.start if hold or piece.sha256 else 0
        content = torch.empty(length if hold else min(length, BLOCK_BYTES), dtype=torch.uint8)
        with self.reading(piece.file):
            for start in range(0, length, BLOCK_BYTES):
                block = content[start if hold else 0 :][: min(BLOCK_BYTES, length - start)]
                read_at(self._stream(piece.file), piece.start + start, block.numpy().data)
                digest.update(block.numpy().data)
                if self._observe:
                    self._observe(piece.file, expected, piece.start + start, block.numpy().data)
        if piece.sha256 not in (None, digest.hexdigest()):
            raise self._refuse(path, "damaged: its SHA-256 is not the stated one")
        return content

    def _size_on_disk(self, name: str) -> int:
        with self.reading(name):
            status = (self._folder / name).stat()
            if not S_ISREG(status.st_mode):
                raise ValueError("not a file")
            return status.st_size

    @contextmanager
    def reading(self, name: str, problem: str = "cannot be read") -> Iterator[None]:
        """Turn what goes wrong with reading a file into the error of `refuse`."""
        try:
            yield
        except (OSError, KeyError, ValueError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise self._refuse(self._folder / name, f"{problem} ({reason})") from None
