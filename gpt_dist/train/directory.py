"""The directory of a run: writable, and used by one run at a time."""

import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from uuid import uuid4

from gpt_dist.config import ResolvedConfig
from gpt_dist.errors import ConfigError
from gpt_dist.rendezvous import Launch, open_store
from gpt_dist.topology import Topology, connect, disconnect, form_groups, gather, together
from gpt_dist.train.ledger import LEDGER_NAME
from gpt_dist.train.status import Status, lock, record_end
from gpt_dist.watchdog import Progress, Watchdog

CACHE_SECONDS = 5.0
"""Seconds in which a host sees what another has written; NFS keeps what it knows of a folder."""


def check_writable(directory: Path) -> None:
    """Make the directory; raise ConfigError where this host cannot write to it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(
            f"run.directory: cannot write to {directory} ({error.strerror}); choose another"
        ) from None


def train_alone(config: ResolvedConfig, launch: Launch, train: Callable[[Topology], None]) -> None:
    """Connect the processes and train, while run.directory is locked against other runs.

    The lock ends with the process, however that ends. Raises ConfigError where another run has it.
    """
    directory, progress = Path(config.run.directory), Progress()
    with nullcontext() if launch.rank else lock(directory):
        if not launch.rank:
            Status("running").write(directory)
        store, seconds = open_store(launch), config.training.watchdog
        record = partial(record_end, directory, launch.rank)
        with Watchdog(launch, store, seconds, directory / "logs", progress, record):
            device = connect(launch, store)
            topology = form_groups(launch, device, config.parallel.tensor_parallel_size)
            check_shared(directory, topology.launch)
            train(replace(topology, progress=progress))
            disconnect()


def check_shared(directory: Path, launch: Launch) -> None:
    """Raise ConfigError, on every process, where hosts have directories of their own; collective.

    Each process writes a part of a checkpoint, and rank 0 publishes the whole.
    """
    if launch.local_world_size == launch.world_size:
        return
    checkpoints = directory / "checkpoints"
    folder = checkpoints if checkpoints.is_dir() else directory
    mark, host = gather((folder / f".shared-{uuid4().hex}", socket.gethostname()))[0]
    try:
        together(lambda: None if launch.rank else mark.touch())
        together(lambda: _look_for(mark, host))
    finally:
        if launch.rank == 0:
            mark.unlink(missing_ok=True)


def _look_for(mark: Path, host: str) -> None:
    """Wait for a file that another host has made; ConfigError if it does not come."""
    deadline = time.monotonic() + CACHE_SECONDS
    while not mark.exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"run.directory: {socket.gethostname()} does not see what {host} writes to "
                f"{mark.parent}; each host writes a part of every checkpoint, so choose a "
                "directory that all hosts share"
            )
        time.sleep(0.1)


def set_aside_earlier_run(directory: Path) -> None:
    """Move the files of an earlier run into a folder `earlier-N`, which no resume reads."""
    contents = "tensorboard/*", "checkpoints/step-*", "model/*", "profile/*"
    found = ("metrics.jsonl", "results.json", *contents)
    left = [directory / Path(name).parts[0] for name in found if any(directory.glob(name))]
    if not left:
        return
    left += [*directory.glob("config.yaml"), *directory.glob("*.tsv")]
    left += [*directory.glob(LEDGER_NAME)]
    folders = (directory / f"earlier-{number}" for number in count(1))
    aside = next(folder for folder in folders if not folder.exists())
    aside.mkdir()
    for path in left:
        moved, target = [path], aside
        if path.name == "checkpoints" and (path.is_symlink() or path.is_mount()):
            moved, target = [*path.glob("step-*")], path / aside.name  # which stay on their disk
            target.mkdir(exist_ok=True)
        for one in moved:
            one.rename(target / one.name)
    text = f"{directory} holds an earlier run: starting from scratch, its files are now in"
    print(text, f"{aside.name}/", file=sys.stderr)
