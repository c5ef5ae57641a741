"""Which checkpoint a run goes on from, and whether it may."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from gpt_dist.checkpoint.folder import newest_valid, step_path, steps, sweep
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.config import Config
from gpt_dist.errors import CheckpointError
from gpt_dist.topology import Topology

_FIXED = ("model", "run.seed", "training.global_batch_size")
"""What decides the model and its samples; all else may change between the parts of a run."""


def find_checkpoint(
    config: Config, topology: Topology, tokens_digest: str, say: Callable[[str], None]
) -> Checkpoint | None:
    """The checkpoint that training.resume leads to, the same on every rank; None to start afresh.

    The first rank searches, and hashes what it finds. Raises CheckpointError, on every rank, where
    a checkpoint is asked for and none is whole, or it belongs to another model, seed or data.
    """
    found: list[Any] = [None, None]
    if topology.is_main:
        try:
            checkpoint = _search(config, say)
            if checkpoint:
                _check_same_run(checkpoint, config, tokens_digest)
            found = [checkpoint.path if checkpoint else None, None]
        except CheckpointError as error:
            found = [None, str(error)]
    dist.broadcast_object_list(found, src=0)
    path, refusal = found
    if refusal:
        raise CheckpointError(refusal)
    return Checkpoint.open(path) if path else None


def _search(config: Config, say: Callable[[str], None]) -> Checkpoint | None:
    folder = Path(config.run.directory) / "checkpoints"
    sweep(folder)
    resume = config.training.resume
    if resume == "never":
        return None
    if resume == "auto":
        return newest_valid(folder, say)
    checkpoint = Checkpoint.open(Path(resume))
    checkpoint.verify()
    for step in steps(folder):
        if step > checkpoint.manifest.step:
            # Of the branch that is left; a later resume must not take it up again.
            path = step_path(folder, step)
            path.rename(path.with_name(f"{path.name}.superseded"))
    return checkpoint


def _check_same_run(checkpoint: Checkpoint, config: Config, tokens_digest: str) -> None:
    saved, own = checkpoint.manifest.config, config.model_dump(mode="json")
    changes = [
        f"{name}: {before!r} there, {now!r} here"
        for name, before, now in _differences("", saved, own)
        if any(name == fixed or name.startswith(f"{fixed}.") for fixed in _FIXED)
    ]
    if checkpoint.manifest.tokens_digest != tokens_digest:
        changes.append(f"data.path: other tokens or another tokenizer in {config.data.path}")
    if changes:
        raise CheckpointError(
            f"{checkpoint.path}: of another run: {'; '.join(changes)}; give another "
            "run.directory, or take back the change"
        )


def _differences(prefix: str, before: Any, now: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            difference
            for key in sorted(before.keys() | now.keys())
            for difference in _differences(
                f"{prefix}.{key}" if prefix else key, before.get(key), now.get(key)
            )
        ]
    return [] if before == now else [(prefix, before, now)]
