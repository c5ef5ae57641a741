"""A profile of a few steps: the time of each phase, the longest operations, and the peak memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from gpt_dist.config import ResolvedConfig
from gpt_dist.files.folders import write_result
from gpt_dist.memory import peak_memory
from gpt_dist.topology import Topology, gather, together
from gpt_dist.train.metrics import Reporter

STEPS_BEFORE = 3
"""Steps of a start that are not profiled: they compile, and allocate what all steps use again."""

PHASES = ("data", "forward", "backward", "reduction", "optimizer", "rest")
OPERATIONS = 10
"""Operations that the table lists."""


class Phases:
    """Divides the time of profiled steps into phases; of nested ones, the innermost counts.

    It is the time of the device's queue on a GPU, and of the host elsewhere.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open = ["rest"]
        self._marks: list[tuple[str, Any]] | None = None
        """Moments from which a phase lasts to the next one; None while nothing is profiled."""

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count what is done in the context, or in a decorated function, as one of PHASES."""
        if self._marks is None:
            yield
            return
        self._enter([*self._open, phase])
        with record_function(phase):
            yield
        self._enter(self._open[:-1])

    def start(self) -> None:
        """Begin with what belongs to no other phase."""
        self._marks = []
        self._enter(self._open)

    def stop(self) -> dict[str, float]:
        """Return the seconds of each phase, which add up to the time since the start."""
        self._enter(self._open)
        marks, self._marks = self._marks or [], None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = dict.fromkeys(PHASES, 0.0)
        for (phase, begin), (_, end) in pairwise(marks):
            is_host = isinstance(begin, float)
            seconds[phase] += end - begin if is_host else begin.elapsed_time(end) / 1000
        return seconds

    def _enter(self, phases: list[str]) -> None:
        moment: Any = time.perf_counter()
        if self._device.type == "cuda":
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self._open = phases
        assert self._marks is not None
        self._marks.append((phases[-1], moment))


class Profiler:
    """Profiles the steps that training.profile asks for, on the reporting process."""

    def __init__(
        self,
        phases: Phases,
        config: ResolvedConfig,
        topology: Topology,
        reporter: Reporter | None,
        done: int,
    ) -> None:
        """Choose the steps of a run that has made `done` before."""
        self._phases, self._topology, self._reporter = phases, topology, reporter
        self._folder = Path(config.run.directory) / "profile"
        first, count = done + STEPS_BEFORE + 1, config.training.profile or 0
        self._steps = range(first, min(first + count, config.training.max_steps + 1))
        if reporter and count and not self._steps:
            reporter.say(f"training.profile: no step is profiled, for that needs step {first}")

    def before(self, step: int) -> None:
        """Start before the first step to profile; collective."""
        if not (self._steps and step == self._steps[0]):
            return
        # On the host, what the profiler itself holds would be counted with it later.
        self._memory = gather(_memory(self._topology.device))
        if self._reporter:
            activities = [ProfilerActivity.CPU]
            if self._topology.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities)
            self._profile.start()
            self._phases.start()

    def after(self, step: int) -> None:
        """Write the table and the trace after the last one; collective.

        Raises GptDistError, on every process, if they cannot be written.
        """
        if self._steps and step == self._steps[-1]:
            together(self._write)

    def _write(self) -> None:
        if not self._reporter:
            return
        seconds = self._phases.stop()
        self._profile.stop()
        text = "\n".join([*self._times(seconds), *_peaks(self._memory)])
        self._folder.mkdir(exist_ok=True)
        write_result(self._folder / "table.txt", text + "\n")
        self._profile.export_chrome_trace(str(self._folder / "trace-rank-0.json.gz"))
        self._reporter.say(f"{text}\nin {self._folder}: table.txt, trace-rank-0.json.gz")

    def _times(self, seconds: dict[str, float]) -> Iterator[str]:
        """Yield the lines of the phases and of the longest operations."""
        steps, total = self._steps, sum(seconds.values())

        def line(name: str, value: float) -> str:
            return f"{name:60.60} {value / len(steps) * 1000:10.2f} {value / total:7.1%}"

        yield f"{f'steps {steps[0]} to {steps[-1]}':60} {'ms a step':>10} {'share':>7}"
        yield from (line(phase, value) for phase, value in seconds.items())
        yield line("all", total)
        kind = self._topology.device.type
        where = "device" if kind == "cuda" else "cpu"
        self_seconds = {
            event.key: getattr(event, f"self_{where}_time_total") / 1e6
            for event in self._profile.key_averages()
            if event.device_type.name == kind.upper()
            and not (event.key in PHASES or (kind == "cuda" and event.is_user_annotation))
        }
        yield "longest operations, each without those inside it:"
        for key in sorted(self_seconds, key=lambda key: -self_seconds[key])[:OPERATIONS]:
            yield line(key, self_seconds[key])


def _memory(device: torch.device) -> dict[str, int]:
    """Return the peak memory of this process by what is counted."""
    if device.type == "cuda":
        reserved = torch.cuda.max_memory_reserved(device)
        return {"in tensors": peak_memory(device), "reserved by PyTorch": reserved}
    return {"resident": peak_memory(device)}


def _peaks(memory: list[dict[str, int]]) -> Iterator[str]:
    """Yield a line for each kind of peak memory, given those of all processes."""
    for kind in memory[0]:
        rank, largest = max(enumerate(one[kind] for one in memory), key=lambda pair: pair[1])
        yield f"peak memory {kind} before: {largest / 1e9:.2f} GB on rank {rank}, the largest"
