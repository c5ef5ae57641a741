"""Keep what a build has finished in a folder, so that a rerun does only what is missing.

The folder is `.NAME.building` beside the output NAME. A job has a key, which is a hash of all that
decides its result: the inputs by path, size and time of change, the options, and the version of the
code. Its worker writes files named after the key, and last, in one step, a JSON file with the
result. A job whose JSON file is there is not done again.
"""

import fcntl
import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import ValidationError

from data_prep.pool import Pool
from gpt_dist.errors import DataError
from gpt_dist.files.entries import Record
from gpt_dist.files.folders import check_new, explained, publish

# Parts of every key. Change the number when a job gives another result for the same input.
_CODE = 3
_LIBRARIES = (
    "gpt_dist",
    "ftfy",
    "chardet",
    "orjson",
    "lxml",
    "pyarrow",
    "sentencepiece",
    "tokenizers",
)


ResultType = TypeVar("ResultType", bound=Record)


@dataclass(frozen=True, kw_only=True)
class Job(ABC, Generic[ResultType]):
    """Job of a worker."""

    prefix: Path
    """The path of the files that the job writes, without a suffix."""
    result: ClassVar[type[Record]]
    """The type of the result."""

    @abstractmethod
    def run(self) -> ResultType:
        """Write all files but that of the result, and return the result."""


AnyJob = TypeVar("AnyJob", bound=Job[Any])


def key_of(*parts: Any) -> str:
    """Return a key that is different for each list of JSON values."""
    text = json.dumps([_CODE, _versions(), *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def _versions() -> list[str]:
    installed = {name: list(distributions(name=name)) for name in _LIBRARIES}
    return [f"{name} {found[0].version}" for name, found in installed.items() if found]


def is_done(prefix: Path) -> bool:
    """Tell whether the job that writes files under this path is done."""
    return _result_file(prefix).exists()


def _result_file(prefix: Path) -> Path:
    return prefix.with_suffix(".json")


def _do(job: Job[Record]) -> Record:
    """Do a job and record its result, unless that is done already."""
    path = _result_file(job.prefix)
    try:
        return job.result.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        job.prefix.parent.mkdir(parents=True, exist_ok=True)
        result = job.run()
    partial = path.with_suffix(".partial")
    partial.write_text(result.model_dump_json())
    publish(partial, path, synced=False)
    return result


@dataclass(frozen=True)
class Work:
    """Folder of the work that is done, and the processes that do the rest."""

    folder: Path
    pool: Pool

    def run(self, jobs: Iterable[AnyJob | None]) -> Iterator[tuple[AnyJob, Any]]:
        """Do the jobs that are not done, and yield every job with its result, in any order.

        Of jobs that are the same, since their inputs are, only the first is done and yielded.
        A None among the jobs says that there is no job yet, but may be soon.
        """
        seen: set[Path] = set()

        def first(job: AnyJob | None) -> bool:
            is_first = job is None or job.prefix not in seen
            seen.update([job.prefix] if job else [])
            return is_first

        with closing(self.pool.as_completed(_do, filter(first, jobs))) as results:
            yield from results

    def results(
        self, jobs: Sequence[Job[ResultType]], done: Callable[[Any], None]
    ) -> list[ResultType]:
        """Do the jobs that are not done, and return all results in the order of the jobs.

        `done` is called with each job after it.
        """
        results = {}
        copies = Counter(job.prefix for job in jobs)
        for job, result in self.run(jobs):
            results[job.prefix] = result
            for _ in range(copies[job.prefix]):
                done(job)
        return [results[job.prefix] for job in jobs]

    def prefix(self, room: str, *parts: Any) -> Path:
        """Return the path for the files of a job that `parts`, JSON values, decide."""
        key = key_of(*parts)
        return self.folder / room / key[:2] / key


@contextmanager
def work_folder(output: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the folder of the work for `output`, held alone, and the absolute path of `output`.

    The folder stays after a failure, for the next try, unless no job is done, and is removed once
    the output is there.

    Raises:
        DataError: `output` exists or cannot be written, the disk is full, or another build for the
            same output is running.
    """
    output = output.resolve()
    folder = output.parent / f".{output.name}.building"
    if _is_made(output) and folder.exists():
        with suppress(DataError), _locked(folder):  # a build was killed at its very end
            shutil.rmtree(folder)
    output = check_new(output, DataError)
    room = "about three times the size of the unpacked text and run the command again to continue"
    with explained(output, folder, DataError, room):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            try:
                yield folder, output
            finally:
                if _is_made(output) or not any(folder.glob("text/*/*.json")):
                    shutil.rmtree(folder, ignore_errors=True)


def _is_made(output: Path) -> bool:
    return output.is_dir() and any(output.iterdir())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{folder}: another build for the same --output is running; wait for its end, or "
                "give another --output"
            ) from error
        yield
