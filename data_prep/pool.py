"""Run jobs in worker processes of this machine, or in the other ranks of an MPI launch."""

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

from gpt_dist.errors import LaunchError

Job = TypeVar("Job")
Result = TypeVar("Result")

# Open MPI, the family of MPICH, and Slurm set these variables for each rank.
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


@dataclass(frozen=True)
class Pool:
    """Worker processes behind the executor interface."""

    executor: Executor | Any  # mpi4py's executor does not derive from the base class
    workers: int

    def map(
        self, function: Callable[[Job], Result], jobs: Iterable[Job]
    ) -> Generator[Result, None, None]:
        """Run jobs and yield their results in order, with few more jobs in flight than workers.

        Closing the generator before its end cancels the jobs in flight or waits for them.
        """
        pending: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                pending.append(self.executor.submit(function, job))
                if len(pending) > self.workers + 2:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            wait(pending)


@contextmanager
def open_pool(workers: int) -> Iterator[Pool | None]:
    """Open a pool of `workers` processes, or of all MPI ranks but the first under an MPI launcher.

    On those other ranks, work until the first rank is done, then yield None.

    Raises:
        LaunchError: An MPI launcher is used, but mpi4py is not installed.
    """
    if any(int(os.environ.get(name, 1)) > 1 for name in _MPI_SIZES):
        with _open_mpi_pool() as pool:
            yield pool
    else:
        executor = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_ignore_ctrl_c)
        with executor:
            yield Pool(executor, workers)


@contextmanager
def _open_mpi_pool() -> Iterator[Pool | None]:
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except ImportError as error:
        raise LaunchError(
            f"launched as an MPI rank, but mpi4py cannot be imported ({error}); "
            "install gpt_dist[mpi], or use --workers without mpirun"
        ) from error
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
        yield None if executor is None else Pool(executor, MPI.COMM_WORLD.Get_size() - 1)


def _ignore_ctrl_c() -> None:
    """Ignore Ctrl-C, which reaches every process of a terminal, so that only the parent reacts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
