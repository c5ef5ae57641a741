"""The ranks of `launch/pretrain.py`, started in a second, and killed at a moment of one's choice.

Each is the real script in a process of its own, told its place by the environment, as the deepspeed
launcher does. It is forked from a process that has imported the libraries: their import takes five
seconds of every start, in which nothing can be learnt.
"""

from __future__ import annotations

import errno
import multiprocessing as mp
import os
import re
import resource
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pytest

from tests.hosts import Host

SIZE = 2
"""Processes of every run here."""

_CONTEXT = mp.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["gpt_dist.train.pretrain"])


@dataclass(frozen=True)
class Fault:
    """Action of a process on itself just before one of its own file operations.

    `event` is the operation's name among Python's audit events, `path` what its path must match,
    and `count` which of the operations it is.
    """

    event: str
    path: str
    act: Callable[[], None]
    count: int = 1

    def arm(self) -> None:
        """Watch this process's file operations from now on."""
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores
        seen = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event == self.event and re.search(self.path, str(arguments[0])):
                seen += 1
                if seen == self.count:
                    self.act()

        sys.addaudithook(watch)


@dataclass(frozen=True)
class InStep:
    """Action of a process on itself in its training step of that number since its start.

    It comes at the start of the step, `within` its forward pass, or once a reduction has begun.
    """

    number: int
    act: Callable[[], None]
    within: str = ""

    def arm(self) -> None:
        """Count the steps from now on."""
        from gpt_dist.train.engine import Engine

        train_batch, seen = Engine.train_batch, 0
        begin = {"": self.act, "forward": self._await_forward, "reduction": self._await_reduction}

        def counted(*arguments: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == self.number:
                begin[self.within]()
            return train_batch(*arguments)

        Engine.train_batch = counted  # type: ignore[method-assign]

    def _await_forward(self) -> None:
        from torch.nn.modules.module import register_module_forward_pre_hook

        from gpt_dist.model.layers import FeedForward

        register_module_forward_pre_hook(
            lambda module, _: self.act() if isinstance(module, FeedForward) else None
        )

    def _await_reduction(self) -> None:
        import torch.distributed as dist

        reduce = dist.all_reduce

        def reduce_and_act(*arguments: Any, **options: Any) -> None:
            reduce(*arguments, **options | {"async_op": True})
            self.act()

        dist.all_reduce = reduce_and_act


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def leave() -> None:
    os._exit(0)


def hang() -> None:
    time.sleep(1000)


def pause() -> None:
    time.sleep(8)


def refuse() -> None:
    raise PermissionError(errno.EACCES, "planted")


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def die_in_the_next_file() -> None:
    """Have the kernel end this process as soon as a file of its grows beyond a few bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


class Ranks:
    """The processes of one run."""

    def __init__(
        self,
        directory: Path,
        settings: list[str],
        faults: Mapping[int, Fault | InStep] | None = None,
        hosts: Sequence[Host] = (),
        **environment: str,
    ) -> None:
        """Start the run that the overrides `settings` describe, a fault in some of its ranks.

        With `hosts`, each rank runs on its own. `environment` is added to that of all ranks.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment = {"MASTER_PORT": str(port), **environment}
        directory.mkdir(exist_ok=True)
        self._console = directory / "console.txt"
        self._console.write_text("")
        # Without waiting for silence, the others end 2 seconds after one has failed.
        settings = ["training.watchdog=0", *settings, f"run.directory={directory}"]
        self.processes = [
            _CONTEXT.Process(
                target=_run_script,
                args=(rank, environment, settings, self._console, (faults or {}).get(rank), hosts),
                daemon=True,
            )
            for rank in range(SIZE)
        ]
        with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):
            for process in self.processes:
                process.start()

    @property
    def console(self) -> str:
        """Return all that the processes printed."""
        return self._console.read_text(errors="replace")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when a condition holds; the run must not end before."""
        deadline = time.monotonic() + 60
        while not condition():
            if time.monotonic() > deadline:
                self._fail("nothing within a minute")
            if not all(process.is_alive() for process in self.processes):
                self._fail("a rank has ended")
            time.sleep(0.002)

    def wait(self, timeout: float = 60) -> list[int | None]:
        """The exit statuses by rank; every rank must end in time."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        late = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        if late:
            self._fail(f"ranks {late} had not ended after {timeout} s")
        return [process.exitcode for process in self.processes]

    def wait_for_others(self, rank: int, timeout: float = 60) -> float:
        """The seconds from the end of one rank to that of the others, who must end in time."""
        self.processes[rank].join(60)
        begin = time.monotonic()
        self.wait(timeout)
        return time.monotonic() - begin

    def _fail(self, why: str) -> NoReturn:
        for process in self.processes:
            process.kill()
        pytest.fail(f"{why}\n{self.console}")


def run_to_its_end(directory: Path, settings: list[str]) -> str:
    """A run that nothing disturbs; what it printed."""
    ranks = Ranks(directory, settings)
    assert ranks.wait(180) == [0] * SIZE, ranks.console
    return ranks.console


def _run_script(
    rank: int,
    environment: dict[str, str],
    settings: list[str],
    console: Path,
    fault: Fault | InStep | None,
    hosts: Sequence[Host],
) -> None:
    descriptor = os.open(console, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(SIZE),
        MASTER_ADDR="127.0.0.1",
        **environment,
    )
    if hosts:
        hosts[rank].enter()
        os.environ.update(LOCAL_RANK="0", LOCAL_SIZE="1", MASTER_ADDR=hosts[0].address)
    sys.argv = ["launch/pretrain.py", "configs/pretrain/tiny.yaml", *settings]
    if fault:
        fault.arm()
    runpy.run_path(sys.argv[0], run_name="__main__")
