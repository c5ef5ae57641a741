"""Pre-emption: a signal to any process, or the end of the launcher, ends the run after a step that
all agree on."""

from __future__ import annotations

import signal

import torch
import torch.distributed as dist

from gpt_dist.rendezvous import Launch, launcher_ended
from gpt_dist.topology import gloo_group

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interruption:
    """Notes the signals by which schedulers announce the end of a job.

    The `deepspeed` command passes none on: it is gone at once, and what it started goes on without
    it. So the end of the launcher counts as one.
    """

    def __init__(self, launch: Launch) -> None:
        self._noted = False
        self._group = gloo_group()
        self._launch = launch
        for number in SIGNALS:
            signal.signal(number, lambda *_: self._note())

    def agreed(self, failed: bool = False) -> tuple[bool, bool]:
        """Whether any process was interrupted, and whether any has `failed`.

        Every process must ask, and all get one answer.
        """
        interrupted = self._noted or launcher_ended(self._launch)
        flags = torch.tensor([int(interrupted), int(failed)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group)
        any_interrupted, any_failed = flags.tolist()
        return bool(any_interrupted), bool(any_failed)

    def close(self) -> None:
        """Give the group back."""
        dist.destroy_process_group(self._group)

    def _note(self) -> None:
        self._noted = True
