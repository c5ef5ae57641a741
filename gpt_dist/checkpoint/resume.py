"""The choice of the checkpoint that a run resumes from, and its checks."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from gpt_dist.checkpoint.folder import first_valid, open_shared, paths, step_path, sweep
from gpt_dist.checkpoint.format import MANIFEST_NAME, Checkpoint, Manifest
from gpt_dist.checkpoint.save import DataSource
from gpt_dist.config import Config, ResolvedConfig
from gpt_dist.data.tokens.mixture import Phase, continue_phases
from gpt_dist.errors import CheckpointError, first_problem
from gpt_dist.topology import Topology, together

_FIXED = ("model", "task", "objective", "run.seed", "training.global_batch_size")
"""Keys that decide the model and its samples; all else may change between the parts of a run."""

_FIXED_OF_TASKS = ("optimizer", "schedule", "training.precision")
"""Keys that a score depends on beside those: a fine-tuning run is one experiment."""

_FREE = ("model.source", "model.transferred_layers")
"""Keys without effect once pre-training has begun; a fine-tuned model's score is of its source,
so that there another source is another run."""


def find_checkpoint(
    config: ResolvedConfig, topology: Topology, data: DataSource, say: Callable[[str], None]
) -> Checkpoint | None:
    """Open the checkpoint that training.resume asks for; None to start from scratch.

    The ranks hash and hold its files together, and have damaged ones to `say`. Raises
    CheckpointError, on every rank, where a checkpoint is asked for and none is whole, or it belongs
    to another model, seed or data.
    """
    folder = Path(config.run.directory) / "checkpoints"
    resume = config.training.resume
    if topology.is_main:
        sweep(folder)
    candidates = paths(folder, topology)
    if resume == "never":
        return None
    auto = resume == "auto"
    opened = partial(open_shared, topology=topology)
    try:
        checkpoint = first_valid(candidates, say, opened) if auto else opened(Path(resume))
    except CheckpointError as error:
        remedy = "to start from scratch give another run.directory, or training.resume=never"
        if not auto:
            remedy = "give auto, never, or the path of a whole checkpoint"
        key = "" if auto else "training.resume: "
        raise CheckpointError(f"{key}{error}; {remedy}") from None
    if checkpoint is None:
        return None
    together(partial(_check_same_run, checkpoint, config, data))
    threads, now = checkpoint.manifest.topology.threads, torch.get_num_threads()
    if threads not in (None, now) and topology.device.type == "cpu":
        say(f"WARNING: {threads} threads a process until now, {now} from here on: other last bits")
    newer = candidates if topology.is_main else []
    why = "damaged" if auto else "superseded"
    together(partial(_set_aside_newer, newer, checkpoint.manifest.step, why))
    return checkpoint


def find_begun(config: Config) -> Checkpoint | None:
    """Open the newest checkpoint that records how a run was started; None before its first.

    Its weights are not looked at: `find_checkpoint` may pass over it. Needs no process group.
    """
    resume = config.training.resume
    if resume == "never":
        return None
    auto = resume == "auto"
    for path in paths(Path(config.run.directory) / "checkpoints") if auto else [Path(resume)]:
        with suppress(CheckpointError):
            return Checkpoint(path)
    return None


def resume_data(data: DataSource, manifest: Manifest) -> DataSource:
    """Return the data with the weights that a checkpoint's samples were drawn by, then its own."""
    if not data.phases:
        return data
    phases = continue_phases(_history(manifest, data), data.phases, manifest.consumed_samples)
    return replace(data, phases=phases)


def _history(manifest: Manifest, data: DataSource) -> tuple[Phase, ...]:
    """Return the phases of a checkpoint that had begun; without any, all was of its one digest."""
    digest = data.folders.get(manifest.data_digest, manifest.data_digest)
    first, *others = manifest.phases or [Phase(from_sample=0, weights={digest: 1})]
    return first, *(one for one in others if one.from_sample < manifest.consumed_samples)


def _set_aside_newer(candidates: list[Path], step: int, why: str) -> None:
    """Rename checkpoints newer than `step`, so that no later resume or clean-up counts them."""
    for path in candidates:
        if path > step_path(path.parent, step):
            aside, number = path.with_name(f"{path.name}.{why}"), 2
            while aside.exists():
                aside, number = path.with_name(f"{path.name}.{why}-{number}"), number + 1
            path.rename(aside)


def _check_same_run(checkpoint: Checkpoint, config: ResolvedConfig, data: DataSource) -> None:
    saved, own = _saved_config(checkpoint), config.model_dump(mode="json")
    fixed, free = (_FIXED + _FIXED_OF_TASKS, ()) if config.task else (_FIXED, _FREE)
    changes = [
        f"{name}: {json.dumps(before)} there, {json.dumps(now)} here"
        for name, before, now in _differences(saved, own)
        if any(name == one or name.startswith(f"{one}.") for one in fixed)
        and name not in free
        and (name, config.schedule.shape) != ("schedule.decay_steps", "constant")
    ]
    needed = _history(checkpoint.manifest, data)[-1].weights.keys()
    if not needed <= {data.digest, *data.folders}:
        paths = ", ".join(folder.path for folder in config.data.folders)
        missing = ", or a folder is missing (list it with weight 0)" if len(needed) > 1 else ""
        changes.append(f"data.path: other tokens or another tokenizer in {paths}{missing}")
    step, max_steps = checkpoint.manifest.step, config.training.max_steps
    consumed = data.consumed(step, config.training.global_batch_size)
    if consumed != checkpoint.manifest.consumed_samples:
        changes.append(f"skipped.jsonl: leaves out other samples of the first {step} steps")
    if step > max_steps:
        changes.append(f"training.max_steps: {step} steps made, {max_steps} here")
    if changes:
        follows = any(change.startswith("schedule.decay_steps") for change in changes)
        hint = " of it or of training.max_steps, which it follows" if follows else ""
        raise CheckpointError(
            f"{checkpoint.path}: this checkpoint is of another run: {'; '.join(changes)}; give "
            f"another run.directory, or take back the change{hint}"
        )


def _saved_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the configuration of a checkpoint with the keys of this version."""
    try:
        return Config.model_validate(checkpoint.manifest.config).model_dump(mode="json")
    except ValidationError as error:
        raise CheckpointError(
            f"{checkpoint.path / MANIFEST_NAME}: config.{first_problem(error)}; use the versions "
            f"that wrote it: {checkpoint.manifest.versions}"
        ) from None


def _differences(before: Any, now: Any, *keys: str) -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            difference
            for key in sorted(before.keys() | now.keys())
            for difference in _differences(before.get(key), now.get(key), *keys, key)
        ]
    return [] if before == now else [(".".join(keys), before, now)]
