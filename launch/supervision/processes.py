"""The processes of one start of a command: found, signalled, and all ended."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import psutil

from gpt_dist.errors import LaunchError

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_POLL_SECONDS = 0.1

OWN_END_SECONDS = 10.0
"""Time in which processes notice by themselves that their launcher has ended."""

KILL_SECONDS = 10.0
"""Time in which the kernel ends a process after SIGKILL."""


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


class Processes:
    """The launcher and all below it; this process must have nothing else below it."""

    def __init__(self, words: Sequence[str], launcher: str, script: str) -> None:
        """Start a command in a session of its own, which a Ctrl-C of the terminal does not reach.

        If this process is killed, the launcher is told to end. Raises LaunchError if there is no
        such command.
        """
        self._script = script
        # Those two pass this one on, and kill soon after SIGTERM.
        self._ask = signal.SIGUSR1 if launcher in ("mpirun", "srun") else signal.SIGTERM
        self._told: set[int] = set()
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, self._ask),
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise LaunchError(f"{words[0]}: cannot be started: {error}") from None

    @property
    def exit_status(self) -> int | None:
        """The launcher's exit status, a negative number for a signal; None while it runs."""
        return self._process.poll()

    def left(self) -> list[psutil.Process]:
        """Return the processes that have not ended, the launcher included."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
                elif process.ppid() == os.getpid() and process.pid != self._process.pid:
                    with suppress(ChildProcessError):
                        os.waitpid(process.pid, os.WNOHANG)
        return found

    def interrupt(self) -> None:
        """Ask the run to save and end; may be called again for processes that came later.

        The training processes of this host are told themselves, since launchers pass signals on
        late, or kill soon after. Where there are none, the launcher must tell those elsewhere.
        """
        ranks = [process for process in self.left() if _runs(process, self._script)]
        if not ranks and not self._told and self.exit_status is None:
            self._told.add(self._process.pid)
            self._process.send_signal(self._ask)
        for process in ranks:
            if process.pid not in self._told:
                self._told.add(process.pid)
                with suppress(psutil.NoSuchProcess):
                    process.terminate()

    def end(self, grace: float, say: Callable[[str], None]) -> bool:
        """Return when no process is left, and whether one had to be told to end.

        Raises LaunchError where one cannot be ended.
        """
        begin, told = time.monotonic(), False
        while left := self.left():
            waited = time.monotonic() - begin
            if waited > grace + KILL_SECONDS:
                raise LaunchError(f"{_names(left)}: cannot be ended; restart this host")
            if waited > grace:
                say(f"{_names(left)}: still there after {grace:.0f} s, killed")
                self.kill()
            elif waited > OWN_END_SECONDS and not told:
                told = True
                say(f"{_names(left)}: still there, told to end")
                for process in left:
                    with suppress(psutil.NoSuchProcess):
                        process.terminate()
                        process.resume()  # a stopped one would not notice
            time.sleep(_POLL_SECONDS)
        return told

    def kill(self) -> None:
        """Kill every process, and return when they have ended or KILL_SECONDS have passed."""
        left = self.left()
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        deadline = time.monotonic() + KILL_SECONDS
        while self.left() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


def _names(processes: Sequence[psutil.Process]) -> str:
    return "process " + ", ".join(str(process.pid) for process in processes)


def _runs(process: psutil.Process, script: str) -> bool:
    """Return whether a process is Python running the script itself, not a launcher of it."""
    with suppress(psutil.Error):
        words = process.cmdline()[1:]
        return next((word for word in words if not word.startswith("-")), None) == script and (
            "-m" not in words[: words.index(script)]
        )
    return False
