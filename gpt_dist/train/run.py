"""One run, of pre-training or of fine-tuning: engine, loop, checkpoints and reports together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt_dist.checkpoint.folder import warner
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.checkpoint.resume import find_checkpoint
from gpt_dist.checkpoint.save import DataSource, Saver
from gpt_dist.config import ResolvedConfig
from gpt_dist.model import GPT
from gpt_dist.topology import Topology, together
from gpt_dist.train.engine import Engine
from gpt_dist.train.interruption import Interruption
from gpt_dist.train.loop import Samples, Trainer
from gpt_dist.train.metrics import Headline, Reporter, Row
from gpt_dist.train.objective import Objective
from gpt_dist.train.start import Source, start_engine


@dataclass(frozen=True)
class Plan:
    """The parts of a run that differ: its objective, samples, validation and source."""

    objective: Callable[[GPT], Objective[Any]]
    samples: Samples
    validator: Callable[[Engine], Callable[[], Row]]
    """Makes what every process calls for validation figures."""
    headline: Headline
    data: DataSource
    source: Source | None


@dataclass(frozen=True)
class Outcome:
    """A run that has ended."""

    engine: Engine
    """With the weights of the last step."""
    best_first: list[int]
    """Steps, those that validated best first; known to the process that reports."""


def run(
    config: ResolvedConfig, plan: Plan, topology: Topology, interruption: Interruption
) -> Outcome:
    """Train as a resolved configuration says, from a checkpoint if training.resume leads to one."""
    directory = Path(config.run.directory)
    if config.training.deterministic:
        # cuBLAS reads it when it starts; without it, torch refuses its matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.training.deterministic)
    checkpoint = find_checkpoint(config, topology, plan.data.digest, warner(topology))
    done = checkpoint.manifest.step if checkpoint else 0
    engine = start_engine(config, topology, plan.objective, plan.source, checkpoint)
    max_steps = config.training.max_steps

    def report() -> Reporter:
        reporter = Reporter(directory, max_steps, plan.headline, done)
        config.save(directory / "config.yaml")
        return reporter

    reporting = together(lambda: report() if topology.is_main else None)
    with reporting or nullcontext() as reporter:
        if reporter:
            for line in _describe(config, topology, engine.num_parameters, plan, checkpoint):
                reporter.say(line)
        trainer = Trainer(
            engine,
            plan.samples,
            plan.validator(engine),
            config,
            topology,
            Saver(engine.state(), config, topology, plan.data),
            interruption,
            reporter,
        )
        trainer.run(done)
        trainer.saver.close()
        if reporter:
            reporter.summary()
    return Outcome(engine, reporter.best_first if reporter else [])


def _describe(
    config: ResolvedConfig,
    topology: Topology,
    parameters: int,
    plan: Plan,
    checkpoint: Checkpoint | None,
) -> Iterator[str]:
    training, warmup_steps = config.training, config.schedule.warmup_steps
    batch = "examples" if config.task else f"x {config.model.sequence_length} tokens"
    yield (
        f"{parameters:,} parameters a process, {training.precision}, {topology.device.type}; "
        f"data parallel {topology.data_parallel_size} x tensor parallel "
        f"{topology.tensor_parallel_size}, ZeRO {config.parallel.zero_stage}; "
        f"global batch {training.global_batch_size} {batch}, "
        f"{training.max_steps} steps"
    )
    if warmup_steps >= training.max_steps:
        yield (
            f"WARNING: schedule.warmup_steps {warmup_steps}: all {training.max_steps} steps are "
            "warm-up, below optimizer.learning_rate"
        )
    if checkpoint:
        yield f"resumed from {checkpoint.path}"
    elif plan.source:
        yield f"starting from the weights of {config.model.source}"
