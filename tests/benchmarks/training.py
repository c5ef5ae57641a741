"""Time pre-training beside other libraries, and print two tables.

Run by `make bench`. The sides of a comparison run in turn, each in a fresh process on the same
batches; a side's figure is the median over its rounds of the median step.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks import data_reading
from tests.benchmarks.rounds import Figures, fast_precision, in_turn, run, run_side
from tests.benchmarks.training_sides import (
    BETAS,
    CLIP_NORM,
    LEARNING_RATE,
    SIDES,
    WEIGHT_DECAY,
    Work,
)

ROUNDS = 2
STEPS = 6
WARM_UP_STEPS = 2
"""Steps at the start that are not counted: the first one compiles."""
TOKENS = 10**7
WIDE = Work(
    tokens="",
    num_layers=4,
    hidden_size=768,
    num_heads=12,
    vocab_size=40_064,
    sequence_length=512,
    batch_size=2,
    steps=STEPS,
    precision=fast_precision(),
)
GPT_1 = dataclasses.replace(WIDE, num_layers=12, batch_size=64, steps=20)
"""The whole model, for a GPU."""
OURS = "this project"


def pretrain(work: Work, directory: Path, processes: int = 1, **overrides: object) -> Figures:
    """Train through launch/pretrain.py; the memory is that of one process, without checkpoints."""
    settings: dict[str, object] = {
        "run.directory": directory / "run",
        "data.path": work.tokens,
        "model.num_layers": work.num_layers,
        "model.hidden_size": work.hidden_size,
        "model.num_heads": work.num_heads,
        "model.sequence_length": work.sequence_length,
        "model.dropout": work.dropout,
        "training.precision": work.precision,
        "training.global_batch_size": work.batch_size,
        "training.micro_batch_size": "null",
        "training.epochs": "null",
        "training.max_steps": work.steps,
        "training.compile": "true",
        "training.resume": "never",
        "optimizer.learning_rate": LEARNING_RATE,
        "optimizer.weight_decay": WEIGHT_DECAY,
        "optimizer.betas": list(BETAS),
        "optimizer.clip_norm": CLIP_NORM,
        "schedule.warmup_steps": 0,
        "schedule.shape": "constant",
        "parallel.zero_stage": 0,
        "validation.max_samples": 1,
        "logging.interval": 1,
    } | overrides
    launcher = [sys.executable]
    if processes > 1:
        launcher += [f"{Path(sys.executable).parent}/deepspeed", "--num_gpus", str(processes)]
    arguments = (f"{key}={value}" for key, value in settings.items())
    run([*launcher, "launch/pretrain.py", "configs/pretrain/gpt1.yaml", *arguments])
    lines = (directory / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    counted = [row for row in rows if "step_seconds" in row and row["step"] > WARM_UP_STEPS]
    speed = statistics.median(row["tokens_per_second"] for row in counted)
    return {"speed": speed, "bytes": counted[-1]["memory_bytes"]}


def peer(side: str, work: Work) -> Figures:
    """Train one of the other sides."""
    found = run_side("training_sides", side, dataclasses.asdict(work))
    seconds = statistics.median(found["seconds"][WARM_UP_STEPS:])
    return {"speed": work.batch_size * work.sequence_length / seconds, "bytes": found["bytes"]}


def compare_libraries(work: Work, directory: Path) -> Table:
    """Return the table of this project beside its peers."""
    what = f"{work.precision}, dropout {work.dropout:g}"
    table = Table(what, "tokens/s", "ours by theirs", "peak memory, MB")
    peers = {side: partial(peer, side, work) for side in SIDES}
    found = in_turn({OURS: partial(pretrain, work, directory), **peers}, ROUNDS, what)
    for side, figures in found.items():
        ratio = found[OURS]["speed"] / figures["speed"]
        row = f"{figures['speed']:,.0f}", f"{ratio:.2f}"
        table.add_row(side, *row, f"{figures['bytes'] / 1e6:,.0f}")
    return table


def main() -> None:
    """Print a table for each precision and dropout."""
    with tempfile.TemporaryDirectory() as name:
        tokens = Path(name) / "tokens"
        data_reading.write_tokens(tokens, TOKENS, real=True, vocab_size=40_000)
        has_gpu = torch.cuda.is_available()
        work = dataclasses.replace(GPT_1 if has_gpu else WIDE, tokens=str(tokens))
        print(
            f"{work.num_layers} layers x {work.hidden_size}, {work.batch_size} x 512 tokens a step"
        )
        for precision, dropout in ((work.precision, 0.1), ("fp32", 0.0)):
            one = dataclasses.replace(work, precision=precision, dropout=dropout)
            Console().print(compare_libraries(one, Path(name)))


if __name__ == "__main__":
    main()
