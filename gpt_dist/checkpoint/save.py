"""Writes checkpoints in the background, and lets them appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from gpt_dist.checkpoint.folder import partial_path, prune, step_path
from gpt_dist.checkpoint.format import (
    FORMAT,
    MANIFEST_NAME,
    VERSION,
    Manifest,
    ParameterEntry,
    TopologyEntry,
)
from gpt_dist.checkpoint.state import TrainingState, snapshot
from gpt_dist.config import Config
from gpt_dist.data.tokens import TOKENIZER_NAME, FileEntry, TokenFolder, file_sha256
from gpt_dist.errors import CheckpointError
from gpt_dist.topology import Topology

_PACKAGES = ("gpt_dist", "torch", "deepspeed", "megatron-core", "numpy")


class Saver:
    """Saves the state of a run; at most one checkpoint is being written at a time.

    The processes agree over a group of their own, so that training can go on meanwhile.
    """

    def __init__(
        self, state: TrainingState, config: Config, topology: Topology, tokens: TokenFolder
    ) -> None:
        self._state = state
        self._config = config
        self._topology = topology
        self._tokens = tokens
        self._folder = Path(config.run.directory) / "checkpoints"
        self._file = f"rank-{topology.launch.rank:05d}.safetensors"
        self._parameters = state.describe(self._file)
        self._buffers: dict[str, Tensor] = {}
        self._group = dist.new_group(backend="gloo")
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None

    def save(self, step: int) -> None:
        """Take a snapshot and write it; returns at once where checkpoint.asynchronous is set.

        Raises CheckpointError if this save, or the one before it, failed.
        """
        self.wait()
        snapshot(self._state, self._buffers)
        write = self._writer(step)
        if self._config.checkpoint.asynchronous:
            self._thread = threading.Thread(target=write, name="checkpoint")
            self._thread.start()
        else:
            write()
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written; raises CheckpointError if the last save failed."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._error:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Give the group back; nothing can be saved any more."""
        dist.destroy_process_group(self._group)

    def _writer(self, step: int) -> Callable[[], None]:
        """What writes the snapshot; all that it needs of the live state is read now."""
        file, parameters = self._file, self._parameters
        optimizer_steps, loss_scaler = self._state.counters()

        def manifest(files: dict[str, FileEntry], entries: dict[str, ParameterEntry]) -> Manifest:
            config, topology = self._config, self._topology
            return Manifest(
                format=FORMAT,
                version=VERSION,
                step=step,
                consumed_samples=step * config.training.global_batch_size,
                optimizer_steps=optimizer_steps,
                loss_scaler=loss_scaler,
                config=config.model_dump(mode="json"),
                topology=TopologyEntry(
                    world_size=topology.launch.world_size,
                    tensor_parallel_size=topology.tensor_parallel_size,
                    zero_stage=config.parallel.zero_stage,
                    precision=config.training.precision,
                ),
                versions={name: version(name) for name in _PACKAGES},
                tokens_digest=self._tokens.digest,
                files=files,
                parameters=entries,
            )

        def write() -> None:
            partial = partial_path(self._folder, step)
            failure, entry = None, None
            try:
                partial.mkdir(parents=True, exist_ok=True)
                entry = _write_tensors(partial / file, self._buffers)
            except Exception as error:  # noqa: BLE001 -- every rank must learn of any
                failure = f"rank {self._topology.launch.rank}: {error}"
            reports = self._exchange((failure, file, entry, parameters))
            failures = [report[0] for report in reports if report[0]]
            if not failures and self._topology.is_main:
                failures = self._publish(step, partial, manifest, reports)
            failures = self._exchange(failures)[0] or failures
            if failures:
                if self._topology.is_main:
                    shutil.rmtree(partial, ignore_errors=True)
                self._error = CheckpointError(
                    f"{step_path(self._folder, step)}: not written ({'; '.join(failures)}); "
                    "earlier checkpoints are whole"
                )

        return write

    def _publish(
        self, step: int, partial: Path, manifest: Callable[..., Manifest], reports: list[Any]
    ) -> list[str]:
        """Write the manifest and give the folder its name; what went wrong, if anything."""
        entries: dict[str, ParameterEntry] = {}
        for _, _, _, parameters in reports:
            for name, entry in parameters.items():
                known = entries[name].fragments if name in entries else ()
                entries[name] = entry.model_copy(update={"fragments": (*known, *entry.fragments)})
        try:
            files = {file: entry for _, file, entry, _ in reports}
            files[TOKENIZER_NAME] = _copy_tokenizer(self._tokens, partial)
            content = manifest(files, entries).sealed().model_dump_json(indent=1)
            _write_synced(partial / MANIFEST_NAME, content.encode())
            _sync_folder(partial)
            final = step_path(self._folder, step)
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
            _sync_folder(self._folder)
            prune(self._folder, self._config.checkpoint)
        except OSError as error:
            return [f"rank 0: {error}"]
        return []

    def _exchange(self, report: Any) -> list[Any]:
        reports: list[Any] = [None] * self._topology.launch.world_size
        dist.all_gather_object(reports, report, group=self._group)
        return reports


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileEntry:
    save_file(tensors, path)
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
    return FileEntry(bytes=path.stat().st_size, sha256=file_sha256(path))


def _copy_tokenizer(tokens: TokenFolder, folder: Path) -> FileEntry:
    """A checkpoint is enough to use the model."""
    _write_synced(folder / TOKENIZER_NAME, tokens.tokenizer_path.read_bytes())
    return tokens.manifest.tokenizer


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
