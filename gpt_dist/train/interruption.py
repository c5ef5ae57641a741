"""Pre-emption: a signal to any process ends the run after a step that all agree on."""

from __future__ import annotations

import signal

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interruption:
    """Notes the signals by which schedulers announce the end of a job."""

    def __init__(self) -> None:
        self._noted = False
        self._group = dist.new_group(backend="gloo")
        for number in SIGNALS:
            signal.signal(number, lambda *_: self._note())

    def agreed(self, failed: bool = False) -> tuple[bool, bool]:
        """Whether any process was signalled, and whether any has `failed`.

        Every process must ask, and all get one answer.
        """
        flags = torch.tensor([int(self._noted), int(failed)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group)
        interrupted, any_failed = flags.tolist()
        return bool(interrupted), bool(any_failed)

    def close(self) -> None:
        """Give the group back."""
        dist.destroy_process_group(self._group)

    def _note(self) -> None:
        self._noted = True
