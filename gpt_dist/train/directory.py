"""The directory of a run: writable, and used by one run at a time."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"run.directory: another run is using {directory}; wait for it, or choose another"
            ) from None
        yield
