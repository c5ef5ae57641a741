"""Checkpoint writer: in the background, each published atomically."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from gpt_dist.checkpoint.fingerprint import KINDS, Fingerprints, check_equal, total
from gpt_dist.checkpoint.folder import partial_path, prune, remove, step_path
from gpt_dist.checkpoint.format import (
    FORMAT,
    MANIFEST_NAME,
    VERSION,
    Manifest,
    ParameterEntry,
    TopologyEntry,
    rank_file,
)
from gpt_dist.checkpoint.state import TrainingState, fingerprint_parts, snapshot
from gpt_dist.config import ResolvedConfig
from gpt_dist.errors import CheckpointError
from gpt_dist.files.entries import ChunkedEntry, HashedFile
from gpt_dist.files.folders import publish
from gpt_dist.files.tensor_file import write_tensor_file
from gpt_dist.topology import Topology, gloo_group

_PACKAGES = ("gpt_dist", "torch", "deepspeed", "megatron-core", "numpy")


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that the numbers of a run depend on."""
    return {name: version(name) for name in _PACKAGES}


@dataclass(frozen=True)
class DataSource:
    """The origin of a run's samples, as far as checkpoints record it."""

    digest: str
    """Stands for the whole data: SHA-256 in hexadecimal."""
    tokenizer_name: str
    tokenizer: bytes
    """The tokenizer's file: a checkpoint is enough to use the model."""


@dataclass(frozen=True)
class _Job:
    """A checkpoint to be written: all that is needed of the live state beside the snapshot."""

    step: int
    live: Fingerprints | None
    """Those of the weights that forward uses, where what is written is to be compared with them."""
    keep: Collection[int]
    optimizer_steps: int
    loss_scaler: dict[str, float]


@dataclass(frozen=True)
class _Report:
    """One process's part of a checkpoint."""

    failure: str | None
    file: str
    entry: ChunkedEntry | None
    parameters: dict[str, ParameterEntry]
    fingerprints: Fingerprints
    live: Fingerprints | None


class Saver:
    """Saves the state of a run; at most one checkpoint is being written at a time.

    The processes agree over a group of their own, so that training can go on meanwhile. The
    fingerprints of what is written go into the manifest. Those of the first checkpoint must be
    those of the weights that the live model uses.
    """

    def __init__(
        self, state: TrainingState, config: ResolvedConfig, topology: Topology, data: DataSource
    ) -> None:
        self._state = state
        self._config = config
        self._topology = topology
        self._data = data
        self._folder = Path(config.run.directory) / "checkpoints"
        self._file = rank_file(topology.launch.rank)
        self._parameters = state.describe()
        self._compared = False
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
        live = None if self._compared else self._state.live_fingerprints()
        self._compared = True
        snapshot(self._state, self._buffers)
        job = _Job(step, live, keep, *self._state.counters())
        self._writing = self._thread.submit(self._write, job)
        if not self._config.checkpoint.asynchronous:
            self.wait()

    @property
    def failed(self) -> bool:
        """True once the last save is known to have failed; `wait` raises why."""
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
        """Write this rank's part, and publish the whole; return what failed on any rank."""
        partial = partial_path(self._folder, job.step)
        failure, entry, found = None, None, {}
        try:
            partial.mkdir(parents=True, exist_ok=True)
            entry = _write_tensors(partial / self._file, self._buffers)
            shards = self._topology.tensor_parallel_size
            precision = self._state.precision if job.live else None
            found = fingerprint_parts(self._parameters, shards, self._buffers, precision)
        except Exception as error:  # noqa: BLE001 -- every rank must learn of any
            failure = f"rank {self._topology.launch.rank}: {error}"
        own = _Report(failure, self._file, entry, self._parameters, found, job.live)
        reports = self._exchange(own)
        failures = [report.failure for report in reports if report.failure]
        if not failures and self._topology.is_main:
            failures = self._publish(job, partial, reports)
            if not failures:
                prune(self._folder, self._config.checkpoint, job.keep)
        failures = self._exchange(failures)[0] or failures
        if failures and self._topology.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        return failures

    def _publish(self, job: _Job, partial: Path, reports: list[_Report]) -> list[str]:
        """Write the manifest and give the folder its name; return what failed."""
        try:
            found = total(report.fingerprints for report in reports)
            for report in reports:
                check_equal(found, report.live or {}, _refuse_copy)
            files = {report.file: report.entry for report in reports}
            files[self._data.tokenizer_name] = _write_tokenizer(self._data, partial)
            manifest = self._manifest(job, files, _merge(reports, found))
            content = manifest.sealed().model_dump_json(indent=1, exclude_defaults=True)
            (partial / MANIFEST_NAME).write_text(content)
            final = step_path(self._folder, job.step)
            if final.exists():
                remove(final)
            publish(partial, final)
        except Exception as error:  # noqa: BLE001 -- every rank must learn of any
            return [f"rank 0: {error}"]
        return []

    def _manifest(
        self, job: _Job, files: dict[str, Any], parameters: dict[str, ParameterEntry]
    ) -> Manifest:
        config, topology = self._config, self._topology
        return Manifest(
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

    def _exchange(self, report: Any) -> list[Any]:
        reports: list[Any] = [None] * self._topology.launch.world_size
        dist.all_gather_object(reports, report, group=self._group)
        return reports


def _refuse_copy(name: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is not the same in the model that it was copied from; please report this"
    )


def _merge(reports: Sequence[_Report], found: Fingerprints) -> dict[str, ParameterEntry]:
    """Return the parameters with the fragments of all ranks, and their fingerprints."""
    merged: dict[str, ParameterEntry] = {}
    for report in reports:
        for name, entry in report.parameters.items():
            known = merged[name].fragments if name in merged else ()
            by_kind = {kind: f"{found[f'{kind}/{name}']:016x}" for kind in KINDS}
            update = {"fragments": (*known, *entry.fragments), "fingerprints": by_kind}
            merged[name] = entry.model_copy(update=update)
    return merged


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> ChunkedEntry:
    """Write tensors to a file; ValueError where a weight is not finite."""
    for name, tensor in tensors.items():
        if name.startswith("weight/") and not tensor.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")
    entries = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    return write_tensor_file(path, entries, tensors.__getitem__)


def _write_tokenizer(data: DataSource, folder: Path) -> ChunkedEntry:
    file = HashedFile(folder / data.tokenizer_name, len(data.tokenizer))
    file.write(data.tokenizer)
    return file.close()
