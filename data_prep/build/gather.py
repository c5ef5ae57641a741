"""Gather the clean documents of all sources, by jobs that read, unpack and clean.

Small files and ranges of large plain files are read by the worker that cleans them. Another large
file is unpacked by one worker in parts, which other workers clean meanwhile.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from data_prep.build.jobs import PART_BYTES, Cleaned, CleanJob, UnpackJob, grouped
from data_prep.build.spool import raw_file
from data_prep.build.work import Work, is_done
from data_prep.reading.documents import ReadOptions
from data_prep.reading.units import Unit, plan_units
from data_prep.sources import Source
from data_prep.steps import Steps

# A whole file of this size or more is unpacked for other workers to clean.
_LARGE_BYTES = PART_BYTES


def identity(source: Source) -> list[str | int]:
    """Return what tells whether a file is still the same: path, size, and time of its change."""
    status = source.path.stat()
    return [source.name, str(source.path.absolute()), status.st_size, status.st_mtime_ns]


class Gathering:
    """Jobs that gather documents, in the order that keeps all workers busy."""

    def __init__(
        self,
        sources: Iterable[Source],
        reading: ReadOptions,
        steps: Steps,
        sketches: bool,
        work: Work,
    ) -> None:
        """Plan the jobs; of large files, only the heads are read.

        Args:
            sources: The files to read.
            reading: How to read them.
            steps: How to clean documents.
            sketches: Whether to write sketches of documents, to search for duplicates.
            work: The work that is done.
        """
        self._reading = reading
        self._steps = steps
        self._sketches = sketches
        self._work = work
        self._slots: list[CleanJob | UnpackJob] = []  # in the order of the sources
        self._parts: dict[Path, int] = {}  # number of parts of each unpacked file
        self._found: dict[Path, int] = {}  # number of those that jobs were made of
        self._plan(sources)

    def run(self, advance: Callable[[int], None]) -> list[tuple[CleanJob, Cleaned]]:
        """Do all jobs, and return those of cleaning with their results, in order.

        `advance` is called with the number of bytes of text that were cleaned since.
        """
        done: dict[Path, tuple[CleanJob, Cleaned]] = {}
        for job, result in self._work.run(self._jobs()):
            if isinstance(job, UnpackJob):
                self._parts[job.prefix] = result.parts
            elif isinstance(job, CleanJob):
                done[job.prefix] = job, result
                raw_file(job.prefix).unlink(missing_ok=True)
                advance(result.source_bytes)
        return [done[prefix] for slot in self._slots for prefix in self._prefixes(slot)]

    def _plan(self, sources: Iterable[Source]) -> None:
        small: list[tuple[Unit, int]] = []
        for source in sources:
            size = source.path.stat().st_size
            for unit in plan_units(source, self._reading, PART_BYTES):
                if unit.end is None and size >= _LARGE_BYTES:
                    self._add(small)
                    small = []
                    prefix = self._prefix((unit,))
                    self._slots.append(UnpackJob(unit=unit, options=self._reading, prefix=prefix))
                else:
                    small.append((unit, size if unit.end is None else unit.end - unit.begin))
        self._add(small)

    def _add(self, units: Iterable[tuple[Unit, int]]) -> None:
        for group in grouped(units, PART_BYTES):
            self._slots.append(self._clean_job(group, self._prefix(group)))

    def _prefix(self, units: tuple[Unit, ...]) -> Path:
        return self._work.prefix(
            "text",
            self._reading.model_dump(mode="json"),
            self._steps.model_dump(mode="json"),
            self._sketches,
            [[*identity(unit.source), unit.begin, unit.end] for unit in units],
        )

    def _clean_job(self, units: tuple[Unit, ...], prefix: Path, unpacked: bool = False) -> CleanJob:
        return CleanJob(
            units=units,
            unpacked=unpacked,
            options=self._reading,
            steps=self._steps,
            sketches=self._sketches,
            prefix=prefix,
        )

    def _prefixes(self, slot: CleanJob | UnpackJob) -> list[Path]:
        if isinstance(slot, CleanJob):
            return [slot.prefix]
        return [slot.part(number) for number in range(self._parts[slot.prefix])]

    def _jobs(self) -> Iterator[CleanJob | UnpackJob | None]:
        """Yield a part that is unpacked, else a file to unpack, else small files, else None."""
        packed = deque(slot for slot in self._slots if isinstance(slot, UnpackJob))
        small = deque(slot for slot in self._slots if isinstance(slot, CleanJob))
        active: list[UnpackJob] = []
        while packed or small or active:
            part = next(filter(None, map(self._next_part, active)), None)
            if part:
                yield part
            elif packed and len(active) < max(1, self._work.pool.workers // 2):
                active.append(packed.popleft())
                yield active[-1]
            else:
                yield small.popleft() if small else None
            active = [job for job in active if not self._is_exhausted(job)]

    def _next_part(self, job: UnpackJob) -> CleanJob | None:
        number = self._found.get(job.prefix, 0)
        prefix = job.part(number)
        if not (is_done(prefix) or raw_file(prefix).exists()):
            return None
        self._found[job.prefix] = number + 1
        return self._clean_job((job.unit,), prefix, unpacked=True)

    def _is_exhausted(self, job: UnpackJob) -> bool:
        return self._found.get(job.prefix, 0) == self._parts.get(job.prefix)
