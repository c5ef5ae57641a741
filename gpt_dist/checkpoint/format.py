"""The checkpoint format: fragments in safetensors files, and a manifest that locates each.

A checkpoint is a folder `step-00000020`. Each process wrote one file of its fragments, flat fp32
tensors named `KIND/PARAMETER`; `manifest.json`, written last, maps every parameter to its fragments
and carries the hashes of every file and the fingerprints of every parameter. A folder without a
valid manifest is not a checkpoint.
"""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import torch
from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator
from pydantic_core import from_json
from torch import Tensor

from gpt_dist.checkpoint.fingerprint import KINDS, Kind, Place, fingerprint
from gpt_dist.data.tokens.folder import TokenizerName
from gpt_dist.data.tokens.mixture import Phase
from gpt_dist.errors import CheckpointError, first_problem
from gpt_dist.files.entries import ChunkedEntry, Record, SealedRecord, read_small
from gpt_dist.files.shared import SharedFiles
from gpt_dist.files.tensor_file import Shape

MANIFEST_NAME = "manifest.json"
FORMAT = "gpt_dist.checkpoint"
VERSION = 2
"""Version 1 has the loss of the weights on fixed tokens instead of fingerprints and chunks."""

_ELEMENT_BYTES = 4
_TOKENIZER_NAMES = get_args(TokenizerName)

FileName = Annotated[str, Field(pattern=r"^(rank-\d{5}\.safetensors|tokenizer\.(model|json))$")]
Fingerprint = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


class FragmentEntry(Record):
    """Elements offset to offset + length of the flattened shard of one tensor-parallel rank."""

    file: FileName
    tensor_parallel_rank: NonNegativeInt
    offset: NonNegativeInt
    length: PositiveInt

    @property
    def stop(self) -> int:
        """The first element behind it."""
        return self.offset + self.length

    def overlaps(self, other: Self) -> bool:
        """Return whether two fragments of a parameter have an element in common."""
        same_shard = self.tensor_parallel_rank == other.tensor_parallel_rank
        return same_shard and self.offset < other.stop and other.offset < self.stop


class ParameterEntry(Record):
    """One parameter: full shape, the dimension that tensor parallelism splits, its fragments.

    `fingerprints` are those of `gpt_dist.checkpoint.fingerprint`, in hexadecimal.
    """

    shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    tensor_parallel_dimension: NonNegativeInt | None
    fragments: tuple[FragmentEntry, ...]
    fingerprints: dict[Kind, Fingerprint] = Field(default={})


class TopologyEntry(Record):
    """The layout that wrote the checkpoint."""

    world_size: PositiveInt
    tensor_parallel_size: PositiveInt
    zero_stage: NonNegativeInt
    precision: str
    threads: PositiveInt | None = None  # of a process on the CPU


class Manifest(SealedRecord):
    """Content of `manifest.json`."""

    format: Literal["gpt_dist.checkpoint"]
    version: Literal[1, 2]
    step: NonNegativeInt
    consumed_samples: NonNegativeInt
    optimizer_steps: NonNegativeInt
    """Updates that were applied: Adam's own count."""
    loss_scaler: dict[str, FiniteFloat]
    config: dict[str, Any]
    topology: TopologyEntry
    versions: dict[str, str]
    data_digest: str
    """Stands for the whole training data and its tokenizer."""
    phases: tuple[Phase, ...] = ()
    """The weights by which samples were drawn from token folders, and those planned; empty in
    fine-tuning and in checkpoints of earlier versions."""
    losses: tuple[FiniteFloat, ...] = ()
    """The last losses before it, with which training.on_spike compares."""
    probe_loss: float | None = Field(default=None, allow_inf_nan=False)
    """In version 1: what `gpt_dist.model.probe.probe_loss` gives for the weights."""
    files: dict[FileName, ChunkedEntry]
    parameters: dict[str, ParameterEntry]

    @model_validator(mode="after")
    def _check_proof(self) -> Self:
        """Refuse a manifest without the proof of content that its version has."""
        entries = self.parameters.values()
        if self.version == 1 and self.probe_loss is None:
            raise ValueError("probe_loss: missing")
        if self.version > 1 and any(len(entry.fingerprints) < len(KINDS) for entry in entries):
            raise ValueError("parameters: a fingerprint is missing")
        return self


class Checkpoint:
    """A checkpoint on disk, read tensor by tensor."""

    def __init__(self, path: Path) -> None:
        """Read and check the manifest and the tokenizer; CheckpointError names the file.

        The files of the ranks are not looked at.
        """
        self.path, file = path, path / MANIFEST_NAME
        try:
            # From objects: of JSON, each error would hold a copy of the whole.
            self.manifest = Manifest.model_validate(from_json(read_small(file)))
        except OSError as error:
            raise CheckpointError(f"{file}: {error.strerror}; not a checkpoint") from None
        except ValueError as error:
            raise CheckpointError(
                f"{file}: not a manifest of {FORMAT} version 1 to {VERSION}: {first_problem(error)}"
            ) from None
        if self.manifest.sealed() != self.manifest:
            raise CheckpointError(f"{file}: damaged: its digest does not match its content")
        for name, parameter in self.manifest.parameters.items():
            _check_coverage(file, name, parameter, self.manifest)
        ranks = dict(self.manifest.files)
        tokenizer = {name: ranks.pop(name) for name in _TOKENIZER_NAMES if name in ranks}
        for name in _TOKENIZER_NAMES:  # another one could be opened in place of the listed one
            if name not in tokenizer and (path / name).exists():
                raise CheckpointError(f"{path / name}: not of this checkpoint; remove it")
        SharedFiles(path, tokenizer, _refuse).verify()
        self.files = SharedFiles(path, ranks, _refuse)
        """The files of the ranks, which hold all tensors: to be verified or shared."""

    def read(
        self, kind: str, name: str, wanted: Sequence[FragmentEntry | None] | None = None
    ) -> Tensor:
        """Return a whole parameter or moment, in its full shape, in fp32.

        Where the files are shared, it is on the device that the processes communicate from; and
        where each wants a part at most, of the shards that the checkpoint has, others of its
        elements may be something else.
        """
        entry = self._entry(name)
        shape, dimension = list(entry.shape), entry.tensor_parallel_dimension
        size = 1 if dimension is None else self.manifest.topology.tensor_parallel_size
        if dimension is not None:
            shape[dimension] //= size
        shards = [torch.empty(shape, device=self.files.device) for _ in range(size)]
        for fragment in entry.fragments:
            if fragment.tensor_parallel_rank < size:
                shard = shards[fragment.tensor_parallel_rank].view(-1)
                users = None
                if wanted is not None:
                    users = {n for n, one in enumerate(wanted) if one and one.overlaps(fragment)}
                file = self.files.tensors(fragment.file)
                file.read_into(f"{kind}/{name}", shard[fragment.offset : fragment.stop], users)
        return shards[0] if dimension is None else torch.cat(shards, dimension)

    def read_checked(self, kind: Kind, name: str) -> Tensor:
        """Return the same in host memory; CheckpointError if its fingerprint is another."""
        tensor = self.read(kind, name).cpu()
        if fingerprint([tensor], Place()) != [self.fingerprint(kind, name, tensor)]:
            raise self.refuse_fingerprint(f"{kind}/{name}")
        return tensor

    def fingerprint(self, kind: Kind, name: str, tensor: Tensor) -> int:
        """Return the stated fingerprint, or in version 1, without any, that of what was read."""
        stated = self._entry(name).fingerprints
        return int(stated[kind], 16) if stated else fingerprint([tensor], Place())[0]

    def refuse_fingerprint(self, name: str) -> CheckpointError:
        """Return the error for a tensor that has another fingerprint than is stated."""
        return CheckpointError(
            f"{self.path}: {name} has another fingerprint than when it was saved; take another "
            f"checkpoint, or the versions that wrote it: {self.manifest.versions}"
        )

    def read_saved(self, rank: int, name: str) -> Tensor | None:
        """Return a tensor that a process wrote for itself, such as its random state, if it did."""
        tensors = self.files.tensors(rank_file(rank))
        return tensors.read(name).cpu() if name in tensors.entries else None

    def check_shapes(
        self, expected: Mapping[str, Shape], wish: str, remedy: str, prefix: str = ""
    ) -> None:
        """Refuse parameters, of those under a prefix, that have others than the expected shapes.

        The error says whose `wish` they are, and the `remedy`.
        """
        parameters = self.manifest.parameters
        found = {name: parameters[name].shape for name in parameters if name.startswith(prefix)}
        for name in sorted(expected.keys() | found.keys()):
            if found.get(name) != expected.get(name):
                raise CheckpointError(
                    f"{self.path / MANIFEST_NAME}: {name} has shape {found.get(name)}, {wish} "
                    f"{expected.get(name)}; {remedy}"
                )

    def _entry(self, name: str) -> ParameterEntry:
        if name not in self.manifest.parameters:
            raise CheckpointError(
                f"{self.path / MANIFEST_NAME}: has no {name}; take another checkpoint"
            )
        return self.manifest.parameters[name]


def rank_file(rank: int) -> str:
    """Return the name of the file that a process writes."""
    return f"rank-{rank:05d}.safetensors"


def _refuse(path: Path, problem: str) -> CheckpointError:
    if not path.parent.is_dir():
        return CheckpointError(
            f"{path.parent}: its run has removed it meanwhile; take a newer one, or raise "
            "checkpoint.keep"
        )
    return CheckpointError(f"{path}: {problem}")


def _check_coverage(file: Path, name: str, entry: ParameterEntry, manifest: Manifest) -> None:
    """Refuse an element that is not in exactly one fragment, of a file that can hold it."""
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
