"""The supervisor's log: a line a fact, on the console and in the directory of the run."""

import fcntl
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from gpt_dist.errors import ConfigError

LOG_NAME = "supervisor.log"


class Log:
    """Log of one supervisor, which holds the file so that no second one starts the same run."""

    def __init__(self, directory: Path) -> None:
        """Make the directory and open the log; ConfigError where that is refused."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = (directory / LOG_NAME).open("a", encoding="utf-8")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"run.directory: another supervisor is using {directory}; wait for it, or choose "
                "another"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"run.directory: cannot write to {directory} ({error.strerror}); choose another"
            ) from None

    def say(self, text: str) -> None:
        """Write a fact; a full disk costs the line in the file, and not the run."""
        line = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} supervisor: {text}\n"
        with suppress(OSError):
            sys.stderr.write(line)
            sys.stderr.flush()
        with suppress(OSError):
            self._file.write(line)
            self._file.flush()
