"""Names of a run's checkpoints; opening the newest whole one; removing old ones."""

import re
import shutil
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path

from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.config import CheckpointConfig
from gpt_dist.errors import CheckpointError
from gpt_dist.topology import Topology, gather, together

_STEP = re.compile(r"step-(\d{8})")


def step_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return folder / f"step-{step:08d}"


def partial_path(folder: Path, step: int) -> Path:
    """Return its path while it is being written."""
    return folder / f".step-{step:08d}.partial"


def steps(folder: Path) -> list[int]:
    """Return the steps that have a folder, newest first, without looking into it."""
    found = map(step_of, folder.iterdir()) if folder.is_dir() else ()
    return sorted((step for step in found if step is not None), reverse=True)


def step_of(path: Path) -> int | None:
    """Return the step of a checkpoint by its path; None where a run gives no such name."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def paths(folder: Path, topology: Topology | None = None) -> list[Path]:
    """Return the checkpoints of a folder, newest first, without looking into them.

    With a topology all its processes call this, and get what the first of them finds.
    """
    found = [step_path(folder, step) for step in steps(folder)]
    return gather(found)[0] if topology else found


def first_valid(
    candidates: Sequence[Path], say: Callable[[str], None], opened: Callable[[Path], Checkpoint]
) -> Checkpoint | None:
    """Open the first of some checkpoints that can be opened; return None for an empty list.

    Damaged ones are passed over, with a warning. Raises CheckpointError if all are damaged.
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


def open_newest(
    folder: Path, opened: Callable[[Path], Checkpoint], topology: Topology | None = None
) -> Checkpoint:
    """Open the newest whole checkpoint of a run that may go on; CheckpointError where none is."""
    while True:
        candidates, whole = paths(folder, topology), None
        with suppress(CheckpointError):
            whole = first_valid(candidates, warner(topology), opened)
        # The run may have removed the newest by now, and written a newer one.
        if (whole and whole.path == candidates[0]) or candidates == paths(folder, topology):
            break
    if whole is None:
        raise CheckpointError(
            f"{folder}: no checkpoint in it is whole; take another checkpoint, or a backup"
        )
    return whole


def open_whole(path: Path) -> Checkpoint:
    """Open a checkpoint and hash every file of it; CheckpointError where one is damaged."""
    checkpoint = Checkpoint(path)
    checkpoint.files.verify()
    return checkpoint


def open_shared(path: Path, topology: Topology) -> Checkpoint:
    """Have all processes open, hash and hold a checkpoint together; any error is raised on all."""
    checkpoint = together(lambda: Checkpoint(path))
    checkpoint.files.share(topology)
    return checkpoint


def warner(topology: Topology | None = None) -> Callable[[str], None]:
    """Return what shows a warning that all processes of a topology have cause to give, once."""
    silent = topology is not None and not topology.is_main
    return lambda text: None if silent else print(text, file=sys.stderr, flush=True)


def prune(folder: Path, config: CheckpointConfig, keep: Collection[int] = ()) -> None:
    """Remove all but the newest, those whose step is a multiple of keep_every, and those given."""
    for step in steps(folder)[config.keep :]:
        if step not in keep and not (config.keep_every and step % config.keep_every == 0):
            remove(step_path(folder, step))


def remove(path: Path) -> None:
    """Remove a checkpoint atomically: under its own name it is whole until it is gone."""
    removed = path.with_name(f".{path.name}.removed.partial")
    shutil.rmtree(removed, ignore_errors=True)
    with suppress(OSError):
        path.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what interrupted saves left; only while no process of the run is saving."""
    for path in folder.glob(".step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)
