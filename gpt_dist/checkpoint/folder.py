"""The checkpoints of a run: their names, which is the newest whole one, which may go."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from itertools import zip_longest
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
    found = (step_of(path) for path in folder.iterdir())
    return sorted((step for step in found if step is not None), reverse=True)


def step_of(path: Path) -> int | None:
    """The step of a checkpoint, by its path; None where that is not a run's."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def paths(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first; whether each is whole is not looked at."""
    return [step_path(folder, step) for step in steps(folder)]


def first_valid(
    candidates: Sequence[Path], say: Callable[[str], None], opened: Callable[[Path], Checkpoint]
) -> Checkpoint | None:
    """The first of some checkpoints that can be opened; None if there are none.

    Damaged ones are passed over, and said so. Raises CheckpointError if all are damaged.
    """
    for path, following in zip_longest(candidates, candidates[1:]):
        try:
            return opened(path)
        except CheckpointError as error:
            back = f"; falling back to {following.name}" if following else ""
            say(f"WARNING: {error}{back}")
    if candidates:
        raise CheckpointError(
            f"{candidates[0].parent}: none of {len(candidates)} checkpoints is whole; take a backup"
        )
    return None


def open_whole(path: Path) -> Checkpoint:
    """A checkpoint, every file of it hashed; CheckpointError where one is damaged."""
    checkpoint = Checkpoint.open(path)
    checkpoint.verify()
    return checkpoint


def prune(folder: Path, config: CheckpointConfig, keep: Collection[int] = ()) -> None:
    """Remove all but the newest, those whose step is a multiple of keep_every, and those given."""
    for step in steps(folder)[config.keep :]:
        if step not in keep and not (config.keep_every and step % config.keep_every == 0):
            remove(step_path(folder, step))


def remove(path: Path) -> None:
    """Remove a checkpoint; under its own name it is whole until it is gone."""
    removed = path.with_name(f".{path.name}.removed.partial")
    shutil.rmtree(removed, ignore_errors=True)
    with suppress(OSError):
        path.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what interrupted saves left; only while no process of the run is saving."""
    for path in folder.glob(".step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)
