"""The record of a run in its directory, by which others know how it goes; and its lock."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from gpt_dist.errors import USER_ERROR, ConfigError, GptDistError, Interrupted, LaunchError
from gpt_dist.rendezvous import Launch

LAUNCHER_ENDED = "the launcher ended"


@dataclass(frozen=True)
class Status:
    """Record of the reporting process: running, complete, interrupted, failed or refused."""

    state: str
    step: int | None = None
    """The last step that was reported; None before training begins."""
    why: str = ""
    host: str = field(default_factory=socket.gethostname)
    rank: int = 0
    process: int = field(default_factory=os.getpid)
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def write(self, directory: Path) -> None:
        """Replace the record; a full disk costs the record, and not the run."""
        partial = directory / ".status.json.partial"
        with suppress(OSError):
            partial.write_text(json.dumps(asdict(self)) + "\n")
            partial.rename(directory / "status.json")


def read_status(directory: Path) -> Status | None:
    """Return the record of a run; None where there is none that can be read."""
    with suppress(OSError, ValueError, TypeError):
        return Status(**json.loads((directory / "status.json").read_bytes()))
    return None


@contextmanager
def recorded(directory: Path, launch: Launch) -> Iterator[None]:
    """Record on the first rank how the context ends, if the run has a directory."""
    before, error = read_status(directory), None
    try:
        yield
    except BaseException as failure:
        error = failure
        raise
    finally:
        # Another run may use the directory; then this one was refused, and the record is its own.
        with suppress(ConfigError):
            if launch.rank == 0 and directory.is_dir():
                with _lock_soon(directory):
                    now = read_status(directory)
                    _end(now.step if now and now != before else None, error).write(directory)


def record_end(directory: Path, rank: int, why: str, exit_status: int) -> None:
    """Record on this rank that a run ends by the fault of another process."""
    now = read_status(directory)
    step = now.step if now else None
    state = "refused" if step is None and exit_status == USER_ERROR else "failed"
    Status(state, step, why, rank=rank).write(directory)


def _end(step: int | None, error: BaseException | None) -> Status:
    if error is None:
        return Status("complete", step)
    refused = step is None and isinstance(error, GptDistError)
    state = "refused" if refused and not isinstance(error, LaunchError) else "failed"
    why = f"{type(error).__name__}: {error}".partition("\n")[0]
    return Status("interrupted" if isinstance(error, Interrupted) else state, step, why)


def _lock_soon(directory: Path) -> TextIO:
    """Return the lock; a supervisor that only tries whether it is free holds it for a moment."""
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        with suppress(ConfigError):
            return lock(directory)
        time.sleep(0.01)
    return lock(directory)


def lock(directory: Path) -> TextIO:
    """Return the file that holds the lock of a run while it is open; ConfigError if it is held."""
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
