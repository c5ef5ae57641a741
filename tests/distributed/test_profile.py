"""Profiles of a few steps: the phases, the files that they leave, and runs that go on unchanged."""

from __future__ import annotations

import gzip
import json
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gpt_dist.train.profile import PHASES, Phases
from tests.distributed.test_layouts import SMALL
from tests.rows import read_rows
from tests.runs import train

STEPS = 6
LAYOUTS = [
    (1, {}),
    (2, {"parallel.zero_stage": 0}),
    (2, {"parallel.zero_stage": 1, "training.precision": "bf16"}),
    (2, {"parallel.zero_stage": 2}),
    (2, {"parallel.zero_stage": 3}),
]


def read_table(directory: Path) -> dict[str, tuple[float, float]]:
    """Return milliseconds and share of each phase."""
    lines = (directory / "profile/table.txt").read_text().splitlines()
    assert lines[0].split() == ["steps", "4", "to", "5", "ms", "a", "step", "share"]
    rows = (line.split() for line in lines[1 : len(PHASES) + 2])
    return {name: (float(value), float(share.rstrip("%"))) for name, value, share in rows}


@pytest.mark.parametrize(("processes", "layout"), LAYOUTS)
def test_a_profiled_run_is_the_same_run(process_group, token_folder, tmp_path, processes, layout):
    settings = SMALL | layout | {"data.path": token_folder, "training.max_steps": STEPS}
    group = process_group(processes)
    group.run(train, settings, tmp_path / "plain")
    for _ in range(2):  # a second start of the same run makes the same steps again
        profiled = settings | {"training.profile": 2, "training.resume": "never"}
        group.run(train, profiled, tmp_path / "profiled")
    found, expected = (
        [row for row in read_rows(tmp_path / name) if "loss" in row]
        for name in ("profiled", "plain")
    )
    assert len(found) == STEPS
    for key in ("step", "loss", "grad_norm"):
        assert [row[key] for row in found] == [row[key] for row in expected]
    # A Python process with torch and DeepSpeed holds a few hundred MB.
    assert all(1e8 < row["memory_bytes"] < 1e11 for row in found + expected)

    table = read_table(tmp_path / "profiled")
    assert list(table) == [*PHASES, "all"]
    assert sum(table[phase][1] for phase in PHASES) == pytest.approx(100, abs=0.5)
    assert all(table[phase][0] > 0 for phase in ("forward", "backward", "optimizer"))
    assert (table["reduction"][0] > 0) == (processes > 1)
    folder = tmp_path / "profiled/profile"
    assert "on rank" in (folder / "table.txt").read_text().splitlines()[-1]
    assert [path.name for path in sorted(folder.iterdir())] == [
        "table.txt",
        "trace-rank-0.json.gz",
    ]
    with gzip.open(folder / "trace-rank-0.json.gz") as file:
        events = json.load(file)["traceEvents"]
    ranges = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert {name for name in PHASES if name in ranges} == {
        *("data", "forward", "backward", "optimizer"),
        *(["reduction"] if processes > 1 else []),
    }
    assert ranges.count("data") == 2
    forwards = ranges.count("forward")
    assert forwards == 2 * 8 // (2 * processes)
    # These stages reduce each parameter's gradient in a hook of the backward pass.
    has_hooks = layout.get("parallel.zero_stage", 0) > 1
    assert (ranges.count("reduction") > forwards) == has_hooks


def test_a_resumed_run_is_profiled_from_its_own_fourth_step_on(
    process_group, token_folder, tmp_path
):
    settings = SMALL | {"data.path": token_folder, "training.profile": 9}
    process_group(1).run(train, settings | {"training.max_steps": 3}, tmp_path)
    assert not (tmp_path / "profile").exists()
    process_group(1).run(train, settings | {"training.max_steps": 8}, tmp_path)
    assert (tmp_path / "profile/table.txt").read_text().startswith("steps 7 to 8 ")


class Event:
    """Stands for torch.cuda.Event where there is no GPU: the moments are 1, 2, 3 … ms."""

    moments = count(1)

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.moment = next(self.moments)

    def elapsed_time(self, end: Event) -> float:
        return end.moment - self.moment


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_of_nested_phases_the_innermost_counts(monkeypatch, device):
    moments = count()
    clock = SimpleNamespace(perf_counter=lambda: next(moments) / 1000)
    monkeypatch.setattr("gpt_dist.train.profile.time", clock)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    phases = Phases(torch.device(device))

    @phases("reduction")
    def reduce() -> None:
        pass

    for _ in range(2):
        reduce()  # nothing is counted before the start
        phases.start()
        with phases("backward"):
            reduce()
            reduce()
        with phases("optimizer"):
            pass
        seconds = phases.stop()
        assert seconds == pytest.approx(
            {
                "data": 0,
                "forward": 0,
                "backward": 0.003,
                "reduction": 0.002,
                "optimizer": 0.001,
                "rest": 0.003,
            }
        )
