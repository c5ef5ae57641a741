"""Pre-emption: a signal to any process, or the end of the launcher, ends a run between steps."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from gpt_dist.checkpoint.folder import step_path, steps
from gpt_dist.rendezvous import Launch, launcher_ended
from gpt_dist.watchdog import Progress

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

LONG_STEP = 5.0
"""Seconds of a step after which a launcher's grace may end before the state is saved."""


class Interruption:
    """Notes Ctrl-C, and the signals by which schedulers announce the end of a job.

    The `deepspeed` command passes no signal on: it ends at once, and its processes go on without
    it. So the end of the launcher counts as a signal.
    """

    def __init__(self, launch: Launch, progress: Progress) -> None:
        self._signalled = False
        self._launch, self._progress, self._checked = launch, progress, 0.0
        self.folder: Path | None = None
        """Folder of the run's checkpoints, of which the newest is named where steps are long."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    @property
    def noted(self) -> bool:
        """True once this process knows that the job ends; others may not know yet."""
        if not self._signalled and time.monotonic() > self._checked + 1:
            self._checked = time.monotonic()
            if launcher_ended(self._launch):
                self._signalled = True
        return self._signalled

    def _note(self, *_: object) -> None:
        is_first, self._signalled = not self._signalled, True
        seconds = self._progress.longest("step")
        if is_first and self._launch.rank == 0 and seconds > LONG_STEP:
            with suppress(OSError):
                text = f"a signal ends the run after this step, which may take {seconds:.0f} s; "
                # Not by print, which the signal may have interrupted.
                os.write(2, f"{text}until it is saved, {self._newest()}\n".encode())

    def _newest(self) -> str:
        """Name the newest checkpoint, with its age."""
        folder = self.folder
        if not folder or not (found := steps(folder)):
            return "there is no checkpoint"
        seconds = time.time() - step_path(folder, found[0]).stat().st_mtime
        return f"the newest checkpoint is of step {found[0]}, {seconds / 60:.0f} minutes old"
