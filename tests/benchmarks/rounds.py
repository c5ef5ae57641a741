"""Run the sides of a comparison in turn, each in a fresh process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from gpt_dist.progress import show_progress
from gpt_dist.topology import computes_bf16, device_type

Figures = Mapping[str, float]
"""Figures of one run of a side, by what they measure."""


def fast_precision() -> str:
    """Return bf16, or fp32 on a device that only emulates bf16, which nobody would use there."""
    device = torch.device(device_type())
    return "bf16" if computes_bf16(device) else "fp32"


def run(command: list[str]) -> str:
    """Run a command; return its output, or exit with its errors if it fails."""
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(f"{' '.join(command)}\n{finished.stderr}")
    return finished.stdout


def run_side(module: str, side: str, settings: Mapping[str, Any]) -> Any:
    """Run a side of a benchmark as a program; return what its last line says in JSON."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", side, json.dumps(settings)]
    return json.loads(run(command).splitlines()[-1])


def in_turn(
    sides: Mapping[str, Callable[[], Figures]], rounds: int, what: str
) -> dict[str, Figures]:
    """Return the medians of all sides over the rounds, one round of each after the other."""
    found: dict[str, list[Figures]] = {name: [] for name in sides}
    turns = [(name, measure) for _ in range(rounds) for name, measure in sides.items()]
    with show_progress() as report:
        for number, (name, measure) in enumerate(turns):
            report(what, number, len(turns))
            found[name].append(measure())
        report(what, len(turns), len(turns))
    return {name: _medians(figures) for name, figures in found.items()}


def _medians(figures: list[Figures]) -> Figures:
    return {key: statistics.median(one[key] for one in figures) for key in figures[0]}
