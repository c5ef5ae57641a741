"""The checkpoint format: fragments in safetensors files, and a manifest that says where each is.

A checkpoint is a folder `step-00000020`. Each process wrote one file of its fragments, flat fp32
tensors named `KIND/PARAMETER`; `manifest.json`, written last, maps every parameter to its fragments
and carries the hash of every file. A folder without a valid manifest is not a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)
from torch import Tensor

from gpt_dist.data.tokens.folder import FileEntry, TokenizerName, file_sha256
from gpt_dist.errors import CheckpointError, first_problem
from gpt_dist.files.tensor_file import TensorFile

MANIFEST_NAME = "manifest.json"
FORMAT = "gpt_dist.checkpoint"
VERSION = 1

_ELEMENT_BYTES = 4

FileName = Annotated[str, Field(pattern=r"^(rank-\d{5}\.safetensors|tokenizer\.(model|json))$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FragmentEntry(_Record):
    """Elements offset to offset + length of the flattened shard of one tensor-parallel rank."""

    file: FileName
    tensor_parallel_rank: NonNegativeInt
    offset: NonNegativeInt
    length: PositiveInt


class ParameterEntry(_Record):
    """One parameter: full shape, the dimension that tensor parallelism splits, its fragments."""

    shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    tensor_parallel_dimension: NonNegativeInt | None
    fragments: tuple[FragmentEntry, ...]


class TopologyEntry(_Record):
    """The layout that wrote the checkpoint."""

    world_size: PositiveInt
    tensor_parallel_size: PositiveInt
    zero_stage: NonNegativeInt
    precision: str


class Manifest(_Record):
    """Content of `manifest.json`."""

    format: Literal["gpt_dist.checkpoint"]
    version: Literal[1]
    step: NonNegativeInt
    consumed_samples: NonNegativeInt
    optimizer_steps: NonNegativeInt
    """Updates that were applied: Adam's own count."""
    loss_scaler: dict[str, float]
    config: dict[str, Any]
    topology: TopologyEntry
    versions: dict[str, str]
    data_digest: str
    """Stands for the whole training data and its tokenizer."""
    probe_loss: FiniteFloat
    """What `gpt_dist.model.probe.probe_loss` gives for the weights, to be computed again."""
    files: dict[FileName, FileEntry]
    parameters: dict[str, ParameterEntry]
    digest: str = ""
    """SHA-256 of all the rest, as canonical JSON."""

    def sealed(self) -> Self:
        """The same with its digest."""
        content = self.model_dump(mode="json", exclude={"digest"})
        canonical = json.dumps(content, sort_keys=True).encode()
        return self.model_copy(update={"digest": hashlib.sha256(canonical).hexdigest()})


class Checkpoint:
    """A checkpoint on disk, read tensor by tensor."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Use `Checkpoint.open`."""
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the manifest, and check that its fragments cover every parameter.

        Raises CheckpointError naming the file. `verify` checks the files.
        """
        file = path / MANIFEST_NAME
        try:
            manifest = Manifest.model_validate_json(file.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{file}: {error.strerror}; not a checkpoint") from None
        except ValidationError as error:
            raise CheckpointError(
                f"{file}: not a manifest of {FORMAT} version {VERSION}: {first_problem(error)}"
            ) from None
        if manifest.sealed() != manifest:
            raise CheckpointError(f"{file}: damaged, its digest is another")
        for name, parameter in manifest.parameters.items():
            _check_coverage(file, name, parameter, manifest)
        return cls(path, manifest)

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Hash every file, or one part of them; CheckpointError names the first that differs."""
        self._refuse_planted_tokenizer()
        by_size = sorted(self.manifest.files.items(), key=lambda item: -item[1].bytes)
        for name, _ in by_size[part::parts]:
            self._verify_file(name)

    def verify_tokenizer(self) -> None:
        """Hash the tokenizer only; CheckpointError where it is damaged."""
        self._refuse_planted_tokenizer()
        for name in self.manifest.files:
            if name in get_args(TokenizerName):
                self._verify_file(name)

    def _refuse_planted_tokenizer(self) -> None:
        """Another tokenizer's file beside the listed one could be opened in its place."""
        for name in get_args(TokenizerName):
            if name not in self.manifest.files and (self.path / name).exists():
                raise CheckpointError(f"{self.path / name}: not of this checkpoint; remove it")

    def _verify_file(self, name: str) -> None:
        path, entry = self.path / name, self.manifest.files[name]
        with self._reading(name):
            found = path.stat().st_size
            if found != entry.bytes:
                raise CheckpointError(f"{path}: {found} bytes instead of {entry.bytes}")
            if file_sha256(path) != entry.sha256:
                raise CheckpointError(f"{path}: damaged, its SHA-256 is another")

    def read(self, kind: str, name: str) -> Tensor:
        """A whole parameter or moment, in its full shape, fp32."""
        entry = self._entry(name)
        dimension = entry.tensor_parallel_dimension
        if dimension is None:
            return self._read_shard(kind, name, 0, entry.shape)
        size = self.manifest.topology.tensor_parallel_size
        shape = list(entry.shape)
        shape[dimension] //= size
        shards = [self._read_shard(kind, name, rank, shape) for rank in range(size)]
        return torch.cat(shards, dim=dimension)

    def read_part(
        self,
        kind: str,
        name: str,
        tensor_parallel_size: int,
        tensor_parallel_rank: int,
        start: int,
        target: Tensor,
    ) -> None:
        """Fill a contiguous tensor with elements, from `start` on, of the flattened shard.

        The shard is what a process of another layout holds.
        """
        in_place = target.is_cpu and target.dtype == torch.float32
        values = target.view(-1) if in_place else torch.empty(target.numel())
        dimension = self._entry(name).tensor_parallel_dimension
        if dimension is None:
            self._read_flat(kind, name, 0, start, values)
        elif tensor_parallel_size == self.manifest.topology.tensor_parallel_size:
            self._read_flat(kind, name, tensor_parallel_rank, start, values)
        else:
            shards = self.read(kind, name).chunk(tensor_parallel_size, dim=dimension)
            shard = shards[tensor_parallel_rank].flatten()
            values.copy_(shard[start : start + len(values)])
        if not in_place:
            target.copy_(values.view(target.shape))

    def read_saved(self, rank: int, name: str) -> Tensor | None:
        """A tensor that one process wrote for itself, such as its random state, if it did."""
        file = f"rank-{rank:05d}.safetensors"
        with self._reading(file):
            return self._file(file).read(name) if name in self._file(file).names else None

    def _entry(self, name: str) -> ParameterEntry:
        if name not in self.manifest.parameters:
            raise CheckpointError(
                f"{self.path / MANIFEST_NAME}: has no {name}; take another checkpoint"
            )
        return self.manifest.parameters[name]

    def _read_shard(self, kind: str, name: str, rank: int, shape: Sequence[int]) -> Tensor:
        """The whole shard of one tensor-parallel rank."""
        shard = torch.empty(*shape)
        self._read_flat(kind, name, rank, 0, shard.view(-1))
        return shard

    def _read_flat(self, kind: str, name: str, rank: int, start: int, target: Tensor) -> None:
        """Fill a vector with elements of one saved shard, from `start` on, of its fragments."""
        stop = start + len(target)
        for fragment in self._entry(name).fragments:
            first = max(start, fragment.offset)
            last = min(stop, fragment.offset + fragment.length)
            if fragment.tensor_parallel_rank == rank and first < last:
                part = target[first - start : last - start]
                with self._reading(fragment.file):
                    file = self._file(fragment.file)
                    file.read_into(f"{kind}/{name}", first - fragment.offset, part)

    @cached_property
    def _open_files(self) -> dict[str, TensorFile]:
        return {}

    def _file(self, name: str) -> TensorFile:
        if name not in self._open_files:
            self._open_files[name] = TensorFile(self.path / name)
        return self._open_files[name]

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, KeyError, ValueError) as error:
            if not self.path.is_dir():
                raise CheckpointError(
                    f"{self.path}: its run has removed it meanwhile; take a newer one, or raise "
                    "checkpoint.keep"
                ) from None
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise CheckpointError(f"{self.path / name}: cannot be read ({reason})") from None


def _check_coverage(file: Path, name: str, entry: ParameterEntry, manifest: Manifest) -> None:
    """Every element of every shard is in exactly one fragment, of a file that can hold it."""
    dimension, size = entry.tensor_parallel_dimension, manifest.topology.tensor_parallel_size
    if dimension is None:
        size = 1
    elif dimension >= len(entry.shape) or entry.shape[dimension] % size:
        raise CheckpointError(
            f"{file}: {name} of shape {entry.shape} cannot be split {size} times on dimension "
            f"{dimension}; take another checkpoint"
        )
    bounds = {file: entry.bytes // _ELEMENT_BYTES for file, entry in manifest.files.items()}
    for rank in range(size):
        position = 0
        for fragment in sorted(entry.fragments, key=lambda fragment: fragment.offset):
            if fragment.tensor_parallel_rank == rank:
                if fragment.offset != position or fragment.length > bounds.get(fragment.file, 0):
                    break
                position += fragment.length
        if position * size != prod(entry.shape):
            raise CheckpointError(f"{file}: {name} is not whole on tensor-parallel rank {rank}")
