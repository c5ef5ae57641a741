"""Time pre-training of one, two and four processes in several layouts, and print two tables.

Run by `make bench-layouts`, on the CPU. The layouts run in turn, each in fresh processes, through
launch/pretrain.py.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks import data_reading
from tests.benchmarks.rounds import in_turn
from tests.benchmarks.training import ROUNDS, TOKENS, WIDE, Work, pretrain

Layouts = Mapping[str, tuple[int, dict[str, int]]]
"""Number of processes and settings of a layout by its name, the layout to compare with first."""

ONE, DATA_2, TENSOR_2 = "1 process", "data parallel 2", "tensor parallel 2"
LAYOUTS: Layouts = {
    ONE: (1, {}),
    DATA_2: (2, {"parallel.zero_stage": 0}),
    "data parallel 2, ZeRO 1": (2, {"parallel.zero_stage": 1}),
    "data parallel 2, ZeRO 2": (2, {"parallel.zero_stage": 2}),
    "data parallel 2, ZeRO 3": (2, {"parallel.zero_stage": 3}),
    TENSOR_2: (2, {"parallel.tensor_parallel_size": 2}),
}
SCALING: Layouts = {
    **{name: LAYOUTS[name] for name in (ONE, DATA_2, TENSOR_2)},
    "data parallel 4": (4, {"parallel.zero_stage": 0}),
    "tensor parallel 4": (4, {"parallel.tensor_parallel_size": 4}),
}
SCALING_BATCH = 4
"""Sequences of a step that four processes can share."""


def compare_layouts(layouts: Layouts, work: Work, directory: Path) -> Table:
    """Return the table of layouts on one host beside one process and data parallel 2.

    All have the same cores, so that the ideal of each is the speed of one process.
    """
    batch = f"{work.precision}, {work.batch_size} x {work.sequence_length} tokens a step"
    table = Table(batch, "tokens/s", f"by {ONE}", f"by {DATA_2}")
    sides = {
        name: partial(pretrain, work, directory, processes, **overrides)
        for name, (processes, overrides) in layouts.items()
    }
    found = in_turn(sides, ROUNDS, batch)
    for name, figures in found.items():
        speed = figures["speed"]
        ratios = (speed / found[base]["speed"] for base in (ONE, DATA_2))
        table.add_row(name, f"{speed:,.0f}", *(f"{ratio:.2f}" for ratio in ratios))
    return table


def main() -> None:
    """Print a table of all layouts of two processes, and one of growing numbers of processes."""
    with tempfile.TemporaryDirectory() as name:
        tokens = Path(name) / "tokens"
        data_reading.write_tokens(tokens, TOKENS, real=True, vocab_size=40_000)
        work = dataclasses.replace(WIDE, tokens=str(tokens))
        Console().print(compare_layouts(LAYOUTS, work, Path(name)))
        larger = dataclasses.replace(work, batch_size=SCALING_BATCH)
        Console().print(compare_layouts(SCALING, larger, Path(name)))


if __name__ == "__main__":
    main()
