"""The directory of a run: writable, and used by one run at a time."""

from __future__ import annotations

import fcntl
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from gpt_dist.errors import ConfigError
from gpt_dist.rendezvous import Launch


def check_writable(directory: Path) -> None:
    """Make the directory; raises ConfigError where this host cannot write to it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(
            f"run.directory: cannot write to {directory} ({error.strerror}); choose another"
        ) from None


@contextmanager
def locked(directory: Path, launch: Launch) -> Iterator[None]:
    """Keep other runs out of the directory; the lock goes with the process, however it ends.

    Raises ConfigError where a run is in it.
    """
    if launch.rank != 0:
        yield
        return
    with _lock(directory):
        yield


def _lock(directory: Path) -> TextIO:
    """Open the file that holds the lock while it is open."""
    try:
        file = (directory / ".lock").open("w")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"run.directory: another run is using {directory}; wait for it, or choose another"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"run.directory: {directory / '.lock'} cannot be locked against other runs "
            f"({error.strerror or error}); choose another, on a file system that has locks"
        ) from None
    return file


def set_aside_earlier_run(directory: Path) -> None:
    """Move what another run left here to where no resume takes it for this one's."""
    names = ("metrics.jsonl", "tensorboard", "checkpoints", "results.json", "model")
    left = [path for name in names if (path := directory / name).exists()]
    if not left:
        return
    left += [*directory.glob("config.yaml"), *directory.glob("*.tsv")]
    number = 1
    while (aside := directory / f"earlier-{number}").exists():
        number += 1
    aside.mkdir()
    for path in left:
        path.rename(aside / path.name)
    print(
        f"{directory} holds an earlier run: starting from scratch, what it left is now in "
        f"{aside.name}/",
        file=sys.stderr,
    )
