"""Run jobs in worker processes of this machine, or in the other ranks of an MPI launch."""

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

from gpt_dist.errors import LaunchError

Job = TypeVar("Job")
Result = TypeVar("Result")

# Open MPI, the family of MPICH, and Slurm set these variables for each rank.
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
# Jobs in flight beyond one a worker, so that no worker waits for the leader.
_AHEAD = 2
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Pool:
    """Worker processes behind the executor interface."""

    executor: Executor | Any  # mpi4py's executor does not derive from the base class
    workers: int

    def as_completed(
        self, function: Callable[[Job], Result], jobs: Iterable[Job | None]
    ) -> Generator[tuple[Job, Result], None, None]:
        """Run jobs and yield each with its result as soon as it is done, in any order.

        A slow worker does not hold the others: each takes the next job when it has done one.
        Closing the generator before its end cancels the jobs in flight or waits for them.

        Args:
            function: The function of a module that does a job.
            jobs: The jobs. A None among them says that there is no job yet, but may be soon.
        """
        pending: dict[Future[Result], Job] = {}
        source = iter(jobs)
        more = True
        try:
            while more or pending:
                while more and len(pending) < self.workers + _AHEAD:
                    try:
                        job = next(source)
                    except StopIteration:
                        more = False
                        break
                    if job is None:
                        break
                    pending[self.executor.submit(function, job)] = job
                if pending:
                    done, _ = wait(pending, _POLL_SECONDS if more else None, FIRST_COMPLETED)
                    for future in done:
                        yield pending.pop(future), future.result()
                else:
                    time.sleep(_POLL_SECONDS)
        finally:
            for future in pending:
                future.cancel()
            wait(pending)

    def map(
        self, function: Callable[[Job], Result], jobs: Iterable[Job]
    ) -> Generator[Result, None, None]:
        """Run jobs and yield their results in the order of the jobs."""
        early: dict[int, Result] = {}
        wanted = 0
        numbered = _Numbered(function)
        for (number, _), result in self.as_completed(numbered, enumerate(jobs)):
            early[number] = result
            while wanted in early:
                yield early.pop(wanted)
                wanted += 1


@dataclass(frozen=True)
class _Numbered:
    """Function of a job that takes the job with its number."""

    function: Callable[[Any], Any]

    def __call__(self, numbered: tuple[int, Any]) -> Any:
        return self.function(numbered[1])


@contextmanager
def open_pool(workers: int) -> Iterator[Pool | None]:
    """Open a pool of `workers` processes, or of all MPI ranks but the first under an MPI launcher.

    On those other ranks, work until the first rank is done, then yield None.

    Raises:
        LaunchError: An MPI launcher is used, but mpi4py is not installed or does not connect.
    """
    launched = next((int(os.environ[name]) for name in _MPI_SIZES if name in os.environ), 1)
    if launched > 1:
        with _open_mpi_pool(launched) as pool:
            yield pool
    else:
        context = get_context("spawn")
        with ProcessPoolExecutor(workers, context, _become_worker, (os.getpid(),)) as executor:
            yield Pool(executor, workers)


@contextmanager
def _open_mpi_pool(launched: int) -> Iterator[Pool | None]:
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except ImportError as error:
        raise LaunchError(
            f"launched as an MPI rank, but mpi4py cannot be imported ({error}); "
            "install gpt_dist[mpi], or use --workers without mpirun"
        ) from error
    size = MPI.COMM_WORLD.Get_size()
    if size != launched:
        raise LaunchError(
            f"{launched} processes were launched, but MPI connects {size}; with Slurm, use "
            "`srun --mpi=pmix` where `srun --mpi=list` shows pmix, else mpirun"
        )
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
        yield None if executor is None else Pool(executor, size - 1)


def _become_worker(leader: int) -> None:
    """Leave Ctrl-C, which reaches every process of a terminal, to the leader; end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(leader,), daemon=True).start()


def _end_with(leader: int) -> None:
    """End this process soon after its parent: a killed leader cannot tell its workers."""
    while os.getppid() == leader:
        time.sleep(0.2)
    os._exit(1)
