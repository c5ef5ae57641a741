"""Writes checkpoints in the background, and lets them appear whole or not at all."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from gpt_dist.checkpoint.folder import partial_path, prune, remove, step_path
from gpt_dist.checkpoint.format import (
    FORMAT,
    MANIFEST_NAME,
    VERSION,
    Checkpoint,
    Manifest,
    ParameterEntry,
    TopologyEntry,
)
from gpt_dist.checkpoint.state import TrainingState, snapshot
from gpt_dist.checkpoint.weights import SavedWeights
from gpt_dist.config import Config
from gpt_dist.data.tokens.folder import FileEntry
from gpt_dist.errors import CheckpointError
from gpt_dist.files.folders import sync, write_synced
from gpt_dist.files.tensor_file import write_tensor_file
from gpt_dist.model import agrees, probe_loss
from gpt_dist.topology import Topology, gloo_group

_PACKAGES = ("gpt_dist", "torch", "deepspeed", "megatron-core", "numpy")


def package_versions() -> dict[str, str]:
    """The versions of the packages that the numbers of a run depend on."""
    return {name: version(name) for name in _PACKAGES}


@dataclass(frozen=True)
class DataSource:
    """What a run's samples are made of, as far as checkpoints record it."""

    digest: str
    """Stands for the whole data: SHA-256 in hexadecimal."""
    tokenizer_name: str
    tokenizer: bytes
    """The tokenizer's file: a checkpoint is enough to use the model."""


@dataclass(frozen=True)
class _Job:
    """A checkpoint to be written: all that is needed of the live state beside the snapshot."""

    step: int
    live_loss: float | None
    """The live model's loss on fixed tokens, where it is to be compared."""
    keep: Collection[int]
    optimizer_steps: int
    loss_scaler: dict[str, float]


class Saver:
    """Saves the state of a run; at most one checkpoint is being written at a time.

    The processes agree over a group of their own, so that training can go on meanwhile. The first
    checkpoint is compared with the live model, whose loss on fixed tokens `probe` gives: what was
    written must give the same.
    """

    def __init__(
        self,
        state: TrainingState,
        config: Config,
        topology: Topology,
        data: DataSource,
        probe: Callable[[], float],
    ) -> None:
        self._state = state
        self._config = config
        self._topology = topology
        self._data = data
        self._probe: Callable[[], float] | None = probe
        self._folder = Path(config.run.directory) / "checkpoints"
        self._file = f"rank-{topology.launch.rank:05d}.safetensors"
        self._parameters = state.describe(self._file)
        self._buffers: dict[str, Tensor] = {}
        self._group = gloo_group()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int, keep: Collection[int] = ()) -> None:
        """Take a snapshot and write it; returns at once where checkpoint.asynchronous is set.

        Older checkpoints go as checkpoint.keep and keep_every say, but those of the steps `keep`.

        Raises CheckpointError if this save, or the one before it, failed.
        """
        self.wait()
        live_loss = self._probe() if self._probe else None
        self._probe = None
        snapshot(self._state, self._buffers)
        job = _Job(step, live_loss, keep, *self._state.counters())
        self._writing = self._thread.submit(self._write, job)
        if not self._config.checkpoint.asynchronous:
            self.wait()

    @property
    def failed(self) -> bool:
        """Whether the last save is known to have failed; `wait` raises why."""
        return bool(self._writing and self._writing.done() and self._writing.exception())

    def wait(self) -> None:
        """Return when nothing is being written; raises CheckpointError if the last save failed."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def close(self) -> None:
        """Give thread and group back; nothing can be saved any more."""
        self._thread.shutdown()
        dist.destroy_process_group(self._group)

    def _write(self, job: _Job) -> None:
        """Write the snapshot; CheckpointError, whatever went wrong, and on whatever rank."""
        try:
            failures = self._write_together(job)
        except Exception as error:  # noqa: BLE001 -- another process may be gone
            failures = [f"rank {self._topology.launch.rank}: {error}"]
        if failures:
            raise CheckpointError(
                f"{step_path(self._folder, job.step)}: not written ({'; '.join(failures)}); "
                "earlier checkpoints are whole"
            )

    def _write_together(self, job: _Job) -> list[str]:
        """Write this rank's part, and publish the whole; what went wrong on any rank."""
        partial = partial_path(self._folder, job.step)
        failure, entry = None, None
        try:
            partial.mkdir(parents=True, exist_ok=True)
            entry = _write_tensors(partial / self._file, self._buffers)
        except Exception as error:  # noqa: BLE001 -- every rank must learn of any
            failure = f"rank {self._topology.launch.rank}: {error}"
        reports = self._exchange((failure, self._file, entry, self._parameters))
        failures = [report[0] for report in reports if report[0]]
        if not failures and self._topology.is_main:
            failures = self._publish(job, partial, reports)
            if not failures:
                prune(self._folder, self._config.checkpoint, job.keep)
        failures = self._exchange(failures)[0] or failures
        if failures and self._topology.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        return failures

    def _publish(self, job: _Job, partial: Path, reports: list[Any]) -> list[str]:
        """Write the manifest and give the folder its name; what went wrong, if anything."""
        try:
            files = {file: entry for _, file, entry, _ in reports}
            files[self._data.tokenizer_name] = _write_tokenizer(self._data, partial)
            unproven = self._manifest(job, files, _merge([report[3] for report in reports]))
            loss = self._prove(Checkpoint(partial, unproven), job.live_loss)
            proven = unproven.model_copy(update={"probe_loss": loss})
            content = proven.sealed().model_dump_json(indent=1)
            write_synced(partial / MANIFEST_NAME, content.encode())
            sync(partial)
            final = step_path(self._folder, job.step)
            if final.exists():
                remove(final)
            partial.rename(final)
            sync(self._folder)
        except Exception as error:  # noqa: BLE001 -- every rank must learn of any
            return [f"rank 0: {error}"]
        return []

    def _manifest(
        self, job: _Job, files: dict[str, FileEntry], parameters: dict[str, ParameterEntry]
    ) -> Manifest:
        """The manifest without its probe_loss."""
        config, topology = self._config, self._topology
        return Manifest(
            probe_loss=0.0,
            format=FORMAT,
            version=VERSION,
            step=job.step,
            consumed_samples=job.step * config.training.global_batch_size,
            optimizer_steps=job.optimizer_steps,
            loss_scaler=job.loss_scaler,
            config=config.model_dump(mode="json"),
            topology=TopologyEntry(
                world_size=topology.launch.world_size,
                tensor_parallel_size=topology.tensor_parallel_size,
                zero_stage=config.parallel.zero_stage,
                precision=config.training.precision,
            ),
            versions=package_versions(),
            data_digest=self._data.digest,
            files=files,
            parameters=parameters,
        )

    def _prove(self, written: Checkpoint, live_loss: float | None) -> float:
        """The loss that the written weights give; CheckpointError if it is not the live model's."""
        loss = probe_loss(SavedWeights(written).__getitem__, self._config.model)
        if not math.isfinite(loss):
            raise CheckpointError(f"its weights give a loss of {loss} on fixed tokens")
        if live_loss is not None and not agrees(live_loss, loss, self._config.training.precision):
            raise CheckpointError(
                f"its weights give a loss of {loss:.6f} on fixed tokens, the model that they were "
                f"copied from {live_loss:.6f}; please report this"
            )
        return loss

    def _exchange(self, report: Any) -> list[Any]:
        reports: list[Any] = [None] * self._topology.launch.world_size
        dist.all_gather_object(reports, report, group=self._group)
        return reports


def _merge(parts: list[dict[str, ParameterEntry]]) -> dict[str, ParameterEntry]:
    """The parameters with the fragments of all ranks."""
    merged: dict[str, ParameterEntry] = {}
    for part in parts:
        for name, entry in part.items():
            known = merged[name].fragments if name in merged else ()
            merged[name] = entry.model_copy(update={"fragments": (*known, *entry.fragments)})
    return merged


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileEntry:
    entries = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    digest = write_tensor_file(path, entries, tensors.__getitem__)
    return FileEntry(bytes=path.stat().st_size, sha256=digest)


def _write_tokenizer(data: DataSource, folder: Path) -> FileEntry:
    write_synced(folder / data.tokenizer_name, data.tokenizer)
    digest = hashlib.sha256(data.tokenizer).hexdigest()
    return FileEntry(bytes=len(data.tokenizer), sha256=digest)
