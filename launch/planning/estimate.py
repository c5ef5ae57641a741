"""Memory and time of a layout, from traces of small relatives of its model.

Live bytes and times are linear in the number of layers and in the micro-batch size, operation by
operation, so that two depths and two sizes say what a trace of the whole would.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_dist.config import ResolvedConfig
from planning.machines import Machine
from planning.operations import KINDS
from planning.trace import STEPS, Segment, trace

MARGIN = 1.15
"""A layout fits if this times its tensors, and the machine's reserve, fit. Allocators fragment, and
messages between tensor-parallel processes were measured to take up to 13 % more."""

LIVE_PARAMETERS = 1e9
"""Elements of gathered weights up to which ZeRO 3 keeps them (stage3_max_live_parameters)."""

MICRO_BATCHES = 2
"""Traced of a step; those that follow are like the second."""

Rows = NDArray[np.float64]
"""[operations, columns]: live bytes of each kind, seconds of computation, of communication."""


@dataclass(frozen=True)
class Table:
    """Traced operations with the figures of each, by segment."""

    names: dict[Segment, list[Any]]
    rows: dict[Segment, Rows]


@dataclass(frozen=True)
class Estimate:
    """Prediction for one layout."""

    config: ResolvedConfig
    world_size: int
    memory: dict[str, float]
    """Bytes of a process's tensors when they are the most, by kind."""
    computation: float
    communication: float
    """Seconds of a step."""
    machine: Machine
    is_full: bool
    """True if the layout was traced as it is, and not extrapolated."""
    is_exact: bool
    """True if the memory is certain to be that of a full trace."""

    @property
    def peak(self) -> float:
        """Return the most bytes of tensors that a process holds at once."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Return whether the machine has that much, with a margin."""
        return self.peak * MARGIN + self.machine.reserve <= self.machine.memory

    @property
    def has_room(self) -> bool:
        """Return whether it would fit even if a quarter more was needed."""
        return self.peak * 1.25 + self.machine.reserve <= self.machine.memory

    @property
    def seconds(self) -> float:
        """Return the time of a step; a GPU gathers ZeRO 3's weights while it computes."""
        if self.machine.gpu and self.config.parallel.zero_stage == 3:
            return max(self.computation, self.communication)
        return self.computation + self.communication


class Planner:
    """Predicts layouts of one number of processes on one machine."""

    def __init__(self, world_size: int, machine: Machine) -> None:
        self.world_size = world_size
        self.machine = machine
        self._tables: dict[str, Table] = {}

    def estimate(self, config: ResolvedConfig, full: bool = False) -> Estimate:
        """Predict a layout; `full` traces it as it is, which takes longer."""
        depth, lower = config.model.num_layers, _depth(config)
        count = self._micro_batches(config)
        if full or lower + 1 >= depth:
            table = self._of_depth(config, depth, full)
            candidates = [(True, rows) for rows in table.rows.values()]
            seconds = _seconds(table, count)
        else:
            low, high = (self._of_depth(config, lower + more, full) for more in (0, 1))
            beyond = depth - lower - 1
            candidates = list(_extrapolate(low, high, beyond))
            before, after = _seconds(low, count), _seconds(high, count)
            seconds = after + beyond * (after - before)
        peaks = [(is_exact, _largest(rows)) for is_exact, rows in candidates]
        is_exact, live = max(peaks, key=lambda peak: peak[1].sum())
        memory = dict(zip(KINDS, live.tolist(), strict=True))
        computation, communication = seconds.tolist()
        times, how = (computation, communication), (full, is_exact)
        return Estimate(config, self.world_size, memory, *times, self.machine, *how)

    def _micro_batches(self, config: ResolvedConfig) -> int:
        """Return the number of micro-batches of a process in a step."""
        training, parts = config.training, config.parallel.tensor_parallel_size
        return training.global_batch_size * parts // (self.world_size * training.micro_batch_size)

    def _of_depth(self, config: ResolvedConfig, layers: int, full: bool) -> Table:
        """Return the operations at a depth; large micro-batches on GPUs from those of 1 and 2."""
        size = config.training.micro_batch_size
        if not full and size > 2 and self.machine.gpu:
            low, high = (self._traced(config, layers, rows) for rows in (1, 2))
            if low.names == high.names:
                rows = {
                    key: low.rows[key] + (size - 1) * (high.rows[key] - low.rows[key])
                    for key in low.rows
                }
                return Table(low.names, rows)
        return self._traced(config, layers, size)

    def _traced(self, config: ResolvedConfig, layers: int, size: int) -> Table:
        """Trace the layout with another depth and micro-batch, and few micro-batches."""
        copies = self.world_size // config.parallel.tensor_parallel_size
        batch = size * copies * min(self._micro_batches(config), MICRO_BATCHES)
        model = config.model.model_copy(update={"num_layers": layers})
        training = config.training.model_copy(
            update={"micro_batch_size": size, "global_batch_size": batch, "compile": False}
        )
        changed = config.model_copy(update={"model": model, "training": training})
        key = changed.model_dump_json()
        if key not in self._tables:
            self._tables[key] = _tabulate(changed, self.world_size, self.machine)
        return self._tables[key]


def _depth(config: ResolvedConfig) -> int:
    """Return a depth from which on each further layer adds the same."""
    if config.parallel.zero_stage < 3:
        return 2
    # Below this depth ZeRO 3 keeps all weights once they are gathered.
    layer = 12 * config.model.hidden_size**2 / config.parallel.tensor_parallel_size
    return 2 + math.ceil(LIVE_PARAMETERS / layer)


def _tabulate(config: ResolvedConfig, world_size: int, machine: Machine) -> Table:
    """Trace a configuration, and give each operation its time."""
    names, rows = {}, {}
    for segment, noted in trace(config, world_size, on_gpu=machine.gpu is not None).items():
        names[segment] = [operation.function for operation, _ in noted]
        figures = []
        for operation, live in noted:
            seconds = machine.seconds(operation) if segment.step == STEPS - 1 else 0.0
            figures.append((*live, *((0.0, seconds) if operation.ranks else (seconds, 0.0))))
        rows[segment] = np.array(figures)
    return Table(names, rows)


def _largest(rows: Rows) -> Rows:
    """Return the live bytes of each kind where they are the most together."""
    live = rows[:, : len(KINDS)]
    return live[np.argmax(live.sum(axis=1))]


def _extrapolate(low: Table, high: Table, beyond: int) -> Iterator[tuple[bool, Rows]]:
    """Yield rows of a deeper model by segment, and whether they are exact.

    Where both models do the same operations, each is extrapolated. At the start and in the update
    they do not, and the largest moment is; DeepSpeed's buckets are then taken to have no limit.
    What happens in the middle blocks lies between the first and the last in live bytes too.
    """
    for segment, rows in high.rows.items():
        if segment.place == "middle" or segment not in low.rows:
            continue
        last, first = rows[:, : len(KINDS)], low.rows[segment][:, : len(KINDS)]
        is_exact = high.names[segment] == low.names[segment]
        if not is_exact:
            last, first = _largest(rows)[None], _largest(low.rows[segment])[None]
        yield is_exact, last + beyond * (last - first)


def _seconds(table: Table, count: int) -> Rows:
    """Return the seconds of computation and of communication in a step of `count` micro-batches."""
    total = np.zeros(2)
    for segment, rows in table.rows.items():
        if segment.step == STEPS - 1:
            # Those left out are like the second, and their ends like the first's.
            is_repeated = segment.micro_batch == (0 if segment.phase == "update" else 1)
            times = 1 + is_repeated * max(0, count - MICRO_BATCHES)
            total += times * rows[:, len(KINDS) :].sum(axis=0)
    return total
