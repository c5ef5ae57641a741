"""The checkpoints of a run: their names, which is the newest whole one, which may go."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.config import CheckpointConfig
from gpt_dist.errors import CheckpointError

_STEP = re.compile(r"step-(\d{8})")


def step_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def partial_path(folder: Path, step: int) -> Path:
    """Where it lies while it is being written."""
    return folder / f".step-{step:08d}.partial"


def steps(folder: Path) -> list[int]:
    """The steps that have a folder, newest first; whether it is whole is not looked at."""
    if not folder.is_dir():
        return []
    matches = (_STEP.fullmatch(path.name) for path in folder.iterdir())
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def newest_valid(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint whose every byte is as it was written; None if there is no folder.

    Damaged ones are passed over, and said so. Raises CheckpointError if all are damaged.
    """
    found = steps(folder)
    for step in found:
        try:
            checkpoint = Checkpoint.open(step_path(folder, step))
            checkpoint.verify()
        except CheckpointError as error:
            say(f"WARNING: {error}; falling back to the checkpoint before")
        else:
            return checkpoint
    if found:
        raise CheckpointError(
            f"{folder}: none of {len(found)} checkpoints is whole; to start from scratch give "
            "another run.directory, or training.resume=never"
        )
    return None


def prune(folder: Path, config: CheckpointConfig) -> None:
    """Remove all but the newest `keep`, and those whose step is a multiple of `keep_every`."""
    for step in steps(folder)[config.keep :]:
        if not (config.keep_every and step % config.keep_every == 0):
            shutil.rmtree(step_path(folder, step), ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what interrupted saves left; only while no process of the run is saving."""
    for path in folder.glob(".step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)
