"""Keep worker processes connected, so that many tests share one start-up."""

from __future__ import annotations

import multiprocessing as mp
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest
import torch.distributed as dist


class ProcessGroup:
    """Group of `size` processes joined in a torch.distributed group, on the CPU or a GPU each."""

    def __init__(self, size: int, on_gpus: bool = False) -> None:
        context = mp.get_context("spawn")
        self._store = tempfile.TemporaryDirectory()
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(rank, size, on_gpus, f"{self._store.name}/rendezvous", theirs),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float = 180) -> list[Any]:
        """Run function(launch, device, *arguments) on every rank, and return the results by rank.

        A failure names the rank; a rank that does not answer in time ends the group.
        """
        for connection in self._connections:
            connection.send((function, arguments))
        results: dict[int, Any] = {}
        waiting = dict(zip(self._connections, range(len(self._connections)), strict=True))
        while waiting:
            ready = wait(list(waiting), timeout)
            if not ready:
                self.close()
                pytest.fail(f"ranks {sorted(waiting.values())} did not answer in {timeout} s")
            for connection in ready:
                rank = waiting.pop(connection)
                try:
                    result, error = connection.recv()
                except EOFError:
                    error = "the process died"
                if error:
                    self.close()
                    pytest.fail(f"rank {rank}: {error}")
                results[rank] = result
        return [results[rank] for rank in sorted(results)]

    @property
    def alive(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._store.cleanup()


def _serve(rank: int, size: int, on_gpus: bool, rendezvous: str, connection: Connection) -> None:
    if not on_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from gpt_dist.rendezvous import Launch
    from gpt_dist.topology import connect

    launch = Launch("test", rank, size, rank, size)
    device = connect(launch, dist.FileStore(rendezvous, size))
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = function(launch, device, *arguments), None
        except Exception:  # noqa: BLE001 -- the test shows any
            answer = None, traceback.format_exc()
        _leave_groups()
        connection.send(answer)


def _leave_groups() -> None:
    """Give back the groups that a test has formed beside those of its layout: each has threads."""
    from deepspeed.utils import groups
    from megatron.core import parallel_state
    from torch.distributed import distributed_c10d

    kept = {id(one) for module in (groups, parallel_state) for one in vars(module).values()}
    for group in [*distributed_c10d._world.pg_map]:
        if group is not dist.group.WORLD and id(group) not in kept:
            dist.destroy_process_group(group)
