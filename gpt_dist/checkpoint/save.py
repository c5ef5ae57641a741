"""Checkpoint writer: in the background, each published atomically."""

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gpt_dist.checkpoint.fingerprint import KINDS, Fingerprints, check_equal, total
from gpt_dist.checkpoint.folder import partial_path, prune, remove, step_path
from gpt_dist.checkpoint.format import (
    FORMAT,
    MANIFEST_NAME,
    VERSION,
    FragmentEntry,
    Manifest,
    ParameterEntry,
    TopologyEntry,
    rank_file,
)
from gpt_dist.checkpoint.state import TrainingState, check_numbers, snapshot
from gpt_dist.config import ResolvedConfig
from gpt_dist.data.batches import batch_of
from gpt_dist.data.tokens.mixture import Phase
from gpt_dist.errors import CheckpointError
from gpt_dist.files.entries import ChunkedEntry, describe_file
from gpt_dist.files.folders import publish
from gpt_dist.files.tensor_file import write_tensor_file
from gpt_dist.topology import Result, Topology, gather, gloo_group

_PACKAGES = ("gpt_dist", "torch", "deepspeed", "megatron-core", "numpy")


@cache
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
    phases: tuple[Phase, ...] = ()
    """Weights of the token folders, in pre-training."""
    folders: Mapping[str, str] = field(default_factory=dict)
    """Digests of the token folders, by those and by the ones that earlier versions recorded."""
    left_out: tuple[int, ...] = ()
    """Numbers of the global batches that the run does not train on."""

    def consumed(self, step: int, batch_size: int) -> int:
        """Return the number of the first sample after those of a step."""
        return (batch_of(step, self.left_out) + 1) * batch_size


@dataclass(frozen=True)
class _Part:
    """A process's part of a checkpoint."""

    entry: ChunkedEntry
    places: dict[str, FragmentEntry]
    fingerprints: Fingerprints
    live: Fingerprints
    """Those of the weights that forward uses, where what is written is to be compared with them."""


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
        self._buffers: dict[str, Tensor] = {}
        self._is_proven = False
        """True once a checkpoint has been compared with the live model."""
        self._group = gloo_group()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(
        self,
        step: int,
        keep: Collection[int] = (),
        losses: Iterable[float] = (),
        ends: bool = False,
    ) -> None:
        """Take a snapshot and write it; returns at once where checkpoint.asynchronous is set.

        Args:
            step: The step that has been made.
            keep: The steps of checkpoints that stay, though checkpoint.keep and keep_every say that
                older ones go.
            losses: The last losses, which are recorded.
            ends: Whether training ends here, so that the state is written without a copy.

        Raises:
            CheckpointError: This save, or the one before it, failed.
        """
        self.wait()
        live = {} if self._is_proven else self._state.live_fingerprints()
        stands_still = ends or not self._config.checkpoint.asynchronous
        tensors = snapshot(self._state, self._buffers, stands_still)
        manifest = self._manifest(step, losses)
        self._writing = self._thread.submit(self._write, manifest, tensors, live, keep)
        self._is_proven = True
        if stands_still:
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

    def _manifest(self, step: int, losses: Iterable[float]) -> Manifest:
        """Return the manifest of the state as it is now, without files and parameters."""
        config, topology = self._config, self._topology
        optimizer_steps, loss_scaler = self._state.counters()
        return Manifest(
            format=FORMAT,
            version=VERSION,
            step=step,
            consumed_samples=self._data.consumed(step, config.training.global_batch_size),
            losses=tuple(losses),
            optimizer_steps=optimizer_steps,
            loss_scaler=loss_scaler,
            config=config.model_dump(mode="json"),
            topology=TopologyEntry(
                world_size=topology.launch.world_size,
                tensor_parallel_size=topology.tensor_parallel_size,
                zero_stage=config.parallel.zero_stage,
                precision=config.training.precision,
                threads=torch.get_num_threads() if topology.device.type == "cpu" else None,
            ),
            versions=package_versions(),
            data_digest=self._data.digest,
            phases=self._data.phases,
            files={},
            parameters={},
        )

    def _write(
        self,
        manifest: Manifest,
        tensors: Mapping[str, Tensor],
        live: Fingerprints,
        keep: Collection[int],
    ) -> None:
        """Write a snapshot; CheckpointError, whatever went wrong, and on whatever rank."""
        final = step_path(self._folder, manifest.step)
        partial = partial_path(self._folder, manifest.step)
        try:
            parts, failures = self._on_all(lambda: self._write_part(partial, tensors, live))
            if not failures:
                _, failures = self._on_all(lambda: self._publish(manifest, partial, parts, keep))
            if failures and self._topology.is_main:
                shutil.rmtree(partial, ignore_errors=True)
        except Exception as error:  # noqa: BLE001 -- another process may be gone
            failures = [f"rank {self._topology.launch.rank}: {error}"]
        if failures:
            raise CheckpointError(
                f"{final}: not written ({'; '.join(failures)}); earlier checkpoints are whole"
            )

    def _write_part(
        self, partial: Path, tensors: Mapping[str, Tensor], live: Fingerprints
    ) -> _Part:
        """Write this process's file; ValueError where a number of the state cannot be."""
        check_numbers(tensors, ValueError)
        partial.mkdir(parents=True, exist_ok=True)
        entries = {name: (one.dtype, tuple(one.shape)) for name, one in tensors.items()}
        path = partial / rank_file(self._topology.launch.rank)
        entry = write_tensor_file(path, entries, tensors.__getitem__)
        found = self._state.fingerprint_own(tensors, rounded=bool(live))
        return _Part(entry, self._state.places, found, live)

    def _publish(
        self, manifest: Manifest, partial: Path, parts: list[_Part], keep: Collection[int]
    ) -> None:
        """Write the manifest and give the folder its name, on the first process."""
        if not self._topology.is_main:
            return
        found = total(part.fingerprints for part in parts)
        for part in parts:
            check_equal(found, part.live, _refuse_copy)
        files = {rank_file(rank): part.entry for rank, part in enumerate(parts)}
        name, content = self._data.tokenizer_name, self._data.tokenizer
        (partial / name).write_bytes(content)
        files[name] = describe_file(partial / name)
        update = {"files": files, "parameters": self._parameters(parts, found)}
        sealed = manifest.model_copy(update=update).sealed()
        text = sealed.model_dump_json(indent=1, exclude_defaults=True)
        (partial / MANIFEST_NAME).write_text(text)
        final = step_path(self._folder, manifest.step)
        if final.exists():
            remove(final)
        publish(partial, final)
        prune(self._folder, self._config.checkpoint, keep)

    def _parameters(self, parts: Sequence[_Part], found: Fingerprints) -> dict[str, ParameterEntry]:
        """Return the parameters with the fragments of all ranks, and their fingerprints."""
        parameters = {}
        for name, entry in self._state.entries.items():
            fragments = tuple(part.places[name] for part in parts if name in part.places)
            by_kind = {kind: f"{found[f'{kind}/{name}']:016x}" for kind in KINDS}
            update = {"fragments": fragments, "fingerprints": by_kind}
            parameters[name] = entry.model_copy(update=update)
        return parameters

    def _on_all(self, action: Callable[[], Result]) -> tuple[list[Result], list[str]]:
        """Run an action on all processes; return what it gave, and what failed, on each."""
        report: tuple[Any, str | None]
        try:
            report = action(), None
        except Exception as error:  # noqa: BLE001 -- every rank must learn of any
            report = None, f"rank {self._topology.launch.rank}: {error}"
        reports: list[Any] = gather(report, self._group)
        return [result for result, _ in reports], [failure for _, failure in reports if failure]


def _refuse_copy(name: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is not the same in the model that it was copied from; please report this"
    )
