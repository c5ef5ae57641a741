"""Pre-emption: a signal to any process, or the end of the launcher, ends a run between steps."""

import signal
import time

from gpt_dist.rendezvous import Launch, launcher_ended

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interruption:
    """Notes Ctrl-C, and the signals by which schedulers announce the end of a job.

    The `deepspeed` command passes no signal on: it ends at once, and its processes go on without
    it. So the end of the launcher counts as a signal.
    """

    def __init__(self, launch: Launch) -> None:
        self._signalled = False
        self._launch, self._checked = launch, 0.0
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
        self._signalled = True
