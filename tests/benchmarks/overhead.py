"""Time what a step of a small model costs beside the step itself, and print a table.

Run by `make bench-layouts`: two processes train through launch/pretrain.py. On rank 0, which does
most of it, the functions concerned are timed: by the clock on the main thread, which a step waits
for, and by processor time on the others.
"""

from __future__ import annotations

import json
import os
import runpy
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks import data_reading
from tests.benchmarks.rounds import run
from tests.launching import free_port

CONFIG = "configs/pretrain/tiny.yaml"
STEPS = 400
UNTIMED = 20
TOKENS, VOCAB_SIZE = 10**7, 4096
TRAINER = "gpt_dist.train.loop", "Trainer"
PARTS: dict[str, list[tuple[str, str, str]]] = {
    "logs, metrics.jsonl, TensorBoard, status.json": [
        ("gpt_dist.train.metrics", "Reporter", "training"),
        ("gpt_dist.train.status", "Status", "write"),
        (*TRAINER, "_row"),
    ],
    "outcomes of steps, signals, end of the launcher": [
        (*TRAINER, "_read_outcomes"),
        ("gpt_dist.train.interruption", "Interruption", "noted"),
    ],
    "notes for the watchdog": [("gpt_dist.watchdog", "Progress", "begin")],
    "watchdog, in its thread": [
        ("gpt_dist.watchdog", "Watchdog", "_judge"),
        ("gpt_dist.watchdog", "Watchdog", "_send"),
        ("gpt_dist.watchdog", "Watchdog", "_receive"),
    ],
}
WAITING, READING = "waiting for a batch", "reading batches, in a thread"
THREADS = ("watchdog, in its thread", READING)


def _timed(function: Callable[..., Any], part: str, seconds: Counter[str]) -> Callable[..., Any]:
    clock = time.thread_time if part in THREADS else time.perf_counter

    @wraps(function)
    def timed(*arguments: Any) -> Any:
        begin = clock()
        try:
            return function(*arguments)
        finally:
            seconds[part] += clock() - begin

    return timed


def _timed_items(items: Iterator[Any], part: str, seconds: Counter[str]) -> Iterator[Any]:
    """Yield items, and count the time that each takes."""
    end = object()
    take = _timed(next, part, seconds)
    try:
        while (item := take(items, end)) is not end:
            yield item
    finally:
        if close := getattr(items, "close", None):
            close()


def train(report: Path, arguments: list[str]) -> None:
    """Train as one process, and write the seconds of each part where it is rank 0."""
    from importlib import import_module

    seconds: Counter[str] = Counter()
    for part, functions in PARTS.items():
        for module, owner, name in functions:
            found = getattr(import_module(module), owner)
            function = vars(found)[name]
            if isinstance(function, property):
                assert function.fget
                setattr(found, name, property(_timed(function.fget, part, seconds)))
            else:
                setattr(found, name, _timed(function, part, seconds))
    loop: Any = import_module(TRAINER[0])
    batches, prefetch = loop.Trainer._global_batches, loop.prefetch
    loop.Trainer._global_batches = lambda *given: _timed_items(batches(*given), READING, seconds)
    loop.prefetch = lambda items: _timed_items(prefetch(items), WAITING, seconds)
    sys.argv = ["launch/pretrain.py", CONFIG, *arguments]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        if os.environ["RANK"] == "0":
            report.write_text(json.dumps(seconds))


def measure(tokens: Path, directory: Path) -> Table:
    """Return the table of the parts of a step."""
    report, results = directory / "seconds.json", directory / "run"
    settings = [f"data.path={tokens}", f"run.directory={results}", f"training.max_steps={STEPS}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--master-port", str(free_port())]
    run([*torchrun, "-m", "tests.benchmarks.overhead", str(report), *settings])
    rows = map(json.loads, (results / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    steps = [row["step_seconds"] for row in rows if row["step"] > UNTIMED and "loss" in row]
    step = statistics.median(steps)
    seconds = json.loads(report.read_text())
    title = f"a step of {CONFIG} on two processes, {1000 * step:.0f} ms"
    table = Table(title, "µs a step", "share")
    parts = [*PARTS, READING, WAITING]
    for part, found in [*((part, seconds[part]) for part in parts), ("all", sum(seconds.values()))]:
        table.add_row(part, f"{1e6 * found / STEPS:,.0f}", f"{found / STEPS / step:.2%}")
    return table


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        tokens = Path(name) / "tokens"
        data_reading.write_tokens(tokens, TOKENS, real=True, vocab_size=VOCAB_SIZE)
        Console().print(measure(tokens, Path(name)))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(Path(sys.argv[1]), sys.argv[2:])
    else:
        main()
