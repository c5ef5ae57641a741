"""Start the supervisor as users do, and follow its log."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.launching import BIN


class Supervised:
    """A supervisor at work, with what it prints."""

    def __init__(self, directory: Path, options: list[str], words: list[str]) -> None:
        """Start a command under the supervisor; `directory` is the run's."""
        self.directory = directory
        self._console = directory.with_name(f"{directory.name}.console")
        environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
        environment |= {"CUDA_VISIBLE_DEVICES": ""}
        with self._console.open("w") as console:
            self.process = subprocess.Popen(
                [sys.executable, "launch/supervise.py", *options, "--", *words],
                env=environment,
                stdout=console,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        """All that the supervisor has said in its log."""
        path = self.directory / "supervisor.log"
        return path.read_text() if path.exists() else ""

    @property
    def console(self) -> str:
        """All that came to the console."""
        return self._console.read_text(errors="replace")

    @property
    def below(self) -> list[psutil.Process]:
        """The processes that the supervisor has started, at any depth."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_until(self, condition: Callable[[], object], seconds: float = 180) -> None:
        """Return when a condition holds; the supervisor must not end before."""
        deadline = time.monotonic() + seconds
        while not condition():
            late = time.monotonic() > deadline
            if late or self.process.poll() is not None:
                self.process.kill()
                pytest.fail(f"{'too late' if late else 'ended'}\n{self.console}")
            time.sleep(0.01)

    def wait(self, seconds: float = 180) -> int:
        """Return the exit status; the supervisor must end in time, and leave no process."""
        below = self.below
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"not ended after {seconds} s\n{self.console}")
        assert not psutil.wait_procs(below, timeout=1)[1], self.console
        return status

    def said(self, pattern: str) -> list[str]:
        """The matches of a pattern in the log."""
        return re.findall(pattern, self.log)
