"""Pre-emption: a signal to any process, or the end of the launcher, ends the run after a step that
all agree on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

_DEEPSPEED_LAUNCHER = b"deepspeed.launcher.launch"


class Interruption:
    """Notes the signals by which schedulers announce the end of a job.

    The `deepspeed` command passes none on: it is gone at once, and what it started goes on without
    it. So the end of what started this process counts as a signal.
    """

    def __init__(self) -> None:
        self._noted = False
        self._group = dist.new_group(backend="gloo")
        self._started_by = _starters()
        for number in SIGNALS:
            signal.signal(number, lambda *_: self._note())

    def agreed(self, failed: bool = False) -> tuple[bool, bool]:
        """Whether any process was interrupted, and whether any has `failed`.

        Every process must ask, and all get one answer.
        """
        interrupted = self._noted or _starters() != self._started_by
        flags = torch.tensor([int(interrupted), int(failed)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group)
        any_interrupted, any_failed = flags.tolist()
        return bool(any_interrupted), bool(any_failed)

    def close(self) -> None:
        """Give the group back."""
        dist.destroy_process_group(self._group)

    def _note(self) -> None:
        self._noted = True


def _starters() -> tuple[int, ...]:
    """The process that started this one, and behind deepspeed's the command that started that."""
    parent = os.getppid()
    process = Path(f"/proc/{parent}")
    try:
        if _DEEPSPEED_LAUNCHER in (process / "cmdline").read_bytes():
            # The name, in parentheses, may hold spaces; the parent is the second field behind it.
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            return parent, int(fields[1])
    except OSError:
        pass
    return (parent,)
