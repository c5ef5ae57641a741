"""Pre-emption: a signal to any process, or the end of the launcher, ends a run between steps."""

import signal

import torch
import torch.distributed as dist

from gpt_dist.rendezvous import Launch, launcher_ended
from gpt_dist.topology import gloo_group

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interruption:
    """Notes the signals by which schedulers announce the end of a job.

    The `deepspeed` command passes no signal on: it ends at once, and its processes go on without
    it. So the end of the launcher counts as a signal.
    """

    def __init__(self, launch: Launch) -> None:
        self._noted = False
        self._group = gloo_group()
        self._launch = launch
        for number in SIGNALS:
            signal.signal(number, self._note)

    def agreed(self, failed: bool = False) -> tuple[bool, bool]:
        """Return whether any process was interrupted, and whether any has `failed`; collective."""
        interrupted = self._noted or launcher_ended(self._launch)
        flags = torch.tensor([interrupted, failed], dtype=torch.int)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group)
        return bool(flags[0]), bool(flags[1])

    def close(self) -> None:
        """Give the group back."""
        dist.destroy_process_group(self._group)

    def _note(self, *_: object) -> None:
        self._noted = True
