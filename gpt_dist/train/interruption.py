"""Pre-emption: a signal to any process, or the end of the launcher, ends the run after a step that
all agree on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist

from gpt_dist.rendezvous import Launch

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

_PARENTS = ("torchrun", "mpirun", "mpiexec", "srun")
"""Launchers that are the parents of what they start."""

_DEEPSPEED_PARENT = b"deepspeed.launcher.launch"
"""In the command line of what `deepspeed` starts, which starts the rest."""


class Interruption:
    """Notes the signals by which schedulers announce the end of a job.

    The `deepspeed` command passes none on: it is gone at once, and what it started goes on without
    it. So the end of the launcher counts as a signal.
    """

    def __init__(self, launch: Launch) -> None:
        self._noted = False
        self._group = dist.new_group(backend="gloo")
        self._launcher = launch.launcher
        self._launched_by = _launchers(self._launcher)
        for number in SIGNALS:
            signal.signal(number, lambda *_: self._note())

    def agreed(self, failed: bool = False) -> tuple[bool, bool]:
        """Whether any process was interrupted, and whether any has `failed`.

        Every process must ask, and all get one answer.
        """
        interrupted = self._noted or _launchers(self._launcher) != self._launched_by
        flags = torch.tensor([int(interrupted), int(failed)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group)
        any_interrupted, any_failed = flags.tolist()
        return bool(any_interrupted), bool(any_failed)

    def close(self) -> None:
        """Give the group back."""
        dist.destroy_process_group(self._group)

    def _note(self) -> None:
        self._noted = True


def _launchers(launcher: str) -> tuple[int, ...]:
    """The processes by which a launcher started this one, as they are now.

    A shell is none: a run may outlive it.
    """
    parent = os.getppid()
    if launcher in _PARENTS:
        return (parent,)
    process = Path(f"/proc/{parent}")
    try:
        if launcher == "deepspeed" and _DEEPSPEED_PARENT in (process / "cmdline").read_bytes():
            # The name, in parentheses, may hold spaces; the parent is the second field behind it.
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            return parent, int(fields[1])
    except OSError:
        pass
    return ()
