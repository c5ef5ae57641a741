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

    def agreed(self) -> bool:
        """Whether any process was signalled; every process must ask, and all get one answer."""
        flag = torch.tensor([int(self._noted)])
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
        return bool(flag)

    def close(self) -> None:
        """Give the group back."""
        dist.destroy_process_group(self._group)

    def _note(self) -> None:
        self._noted = True
