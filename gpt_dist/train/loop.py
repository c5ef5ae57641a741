"""One run, of pre-training or of fine-tuning: the training loop, saved and reported on the way."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from gpt_dist.checkpoint.folder import warner
from gpt_dist.checkpoint.opened import OpenedModel
from gpt_dist.checkpoint.resume import find_checkpoint, resume_data
from gpt_dist.checkpoint.save import DataSource, Saver
from gpt_dist.config import ResolvedConfig
from gpt_dist.data.batches import TokenBatch, micro_batches, prefetch
from gpt_dist.data.tokens.mixture import Phase
from gpt_dist.errors import Interrupted, TrainingError
from gpt_dist.model import GPT, flops_per_token, peak_flops
from gpt_dist.topology import Topology, together
from gpt_dist.train.engine import Engine, Update
from gpt_dist.train.interruption import Interruption
from gpt_dist.train.metrics import Reporter, Row
from gpt_dist.train.objective import Objective
from gpt_dist.train.optimizer import learning_rate
from gpt_dist.train.start import start_engine

MAX_SKIPPED_STEPS = 20
"""Steps in a row without a finite gradient after which training stops; fp16 needs a few at first,
while its loss scale comes down."""

MicroBatch = TokenBatch[NDArray[Any]]


class Samples(Protocol):
    """Training samples by number."""

    tokens_per_sample: float
    """Average, for figures of speed."""

    def batch(self, samples: NDArray[np.int64]) -> MicroBatch:
        """Return the micro-batch of these samples, as the objective takes it."""


@dataclass(frozen=True)
class Plan:
    """Objective, data and validation of a run."""

    objective: Callable[[GPT], Objective[Any]]
    draw: Callable[[Sequence[Phase]], Samples]
    """Returns the training samples, for the weights of token folders if there are any."""
    validate: Callable[[Engine], Row]
    """Returns validation figures by name; every process calls it."""
    data: DataSource
    source: OpenedModel | None
    """Model to start from; None to start from scratch, or where only a checkpoint is resumed."""


@dataclass
class Trainer:
    """Trains an engine as planned, validates it, and has it saved."""

    engine: Engine
    plan: Plan
    samples: Samples
    config: ResolvedConfig
    topology: Topology
    saver: Saver
    interruption: Interruption
    reporter: Reporter | None
    """Given on the reporting process only."""
    _skipped: int = field(default=0, init=False)
    """Steps in a row, up to the last one, whose update was skipped."""
    _last_report: int = field(init=False)
    _timer: float = field(init=False)
    """Time of the last report, plus the duration of validations since."""

    def run(self, done: int) -> None:
        """Train from the step after `done` to training.max_steps.

        Raises TrainingError if the gradient stays not finite, CheckpointError if a checkpoint
        cannot be written, and Interrupted, after having saved, if a scheduler ends the job.
        """
        max_steps, interval = self.config.training.max_steps, self.config.validation.interval
        self._last_report, self._timer = done, time.perf_counter()
        if done == 0:
            self._validate(0)
        with closing(prefetch(self._global_batches(done, max_steps))) as batches:
            for step, batch in enumerate(batches, done + 1):
                is_last = step == max_steps
                self._train(step, batch, is_last)
                is_validated = is_last or step % interval == 0
                if is_validated:
                    self._validate(step)
                is_wanted = is_validated and self.config.checkpoint.keep_best
                if self._save_if_due(step, is_wanted or is_last) and not is_last:
                    self.saver.wait()
                    raise Interrupted(f"interrupted and saved at step {step}; start again to go on")
        self.saver.wait()

    def _global_batches(self, done: int, max_steps: int) -> Iterator[list[MicroBatch]]:
        """Yield this process's micro-batches of each step."""
        training, topology = self.config.training, self.topology
        share = topology.data_parallel_size, topology.data_parallel_rank
        size = training.global_batch_size
        for start in range(done * size, max_steps * size, size):
            parts = micro_batches(start, start + size, training.micro_batch_size, *share)
            yield [self.samples.batch(part) for part in parts]

    def _train(self, step: int, batch: list[MicroBatch], is_last: bool) -> None:
        """Make a step, and report it where that is due."""
        config = self.config
        rate = learning_rate(step, config.optimizer.learning_rate, config.schedule)
        loss, update = self.engine.train_batch(batch, rate)
        self._skipped = 0 if update.applied else self._skipped + 1
        if self._skipped:
            self._report_skipped(step, loss, update, is_last)
        if self.reporter and (step % config.logging.interval == 0 or step == 1 or is_last):
            self.reporter.training(self._row(step, loss, rate, update.grad_norm))

    def _validate(self, step: int) -> None:
        start = time.perf_counter()
        row = self.plan.validate(self.engine)
        if self.reporter and row:
            self.reporter.validation({"step": step, **row})
        elif self.reporter and step == 0:
            self.reporter.say("no validation: too little text is held out for one window")
        self._timer += time.perf_counter() - start

    def _save_if_due(self, step: int, wanted: bool) -> bool:
        """Save if wanted, at each interval, and when the job ends; return whether it ends."""
        config = self.config.checkpoint
        interrupted, failed = self.interruption.agreed(self.saver.failed)
        if failed:
            self.saver.wait()
        if wanted or interrupted or step % config.interval == 0:
            best = self.reporter.best_first[:1] if self.reporter and config.keep_best else []
            self.saver.save(step, best)
        return interrupted

    def _row(self, step: int, loss: float, rate: float, grad_norm: float) -> Row:
        """Return the figures of the steps since the last report."""
        now = time.perf_counter()
        seconds = (now - self._timer) / (step - self._last_report)
        self._last_report, self._timer = step, now
        config, topology = self.config, self.topology
        batch_tokens = config.training.global_batch_size * self.samples.tokens_per_sample
        row: Row = {
            "step": step,
            "samples": step * config.training.global_batch_size,
            "tokens": round(step * batch_tokens),
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": grad_norm,
            "step_seconds": seconds,
            "tokens_per_second": batch_tokens / seconds,
        }
        if peak := peak_flops(topology.device):
            flops = flops_per_token(config.model) * batch_tokens / seconds
            row["mfu"] = flops / (peak * topology.launch.world_size)
        return row

    def _report_skipped(self, step: int, loss: float, update: Update, is_last: bool) -> None:
        """Report a skipped step; raise TrainingError if it is the last, or one too many."""
        size, ranks = self.config.training.global_batch_size, update.bad_ranks
        where = f" on rank(s) {', '.join(map(str, ranks))}" if ranks else ""
        text = (
            f"step {step}: the gradient is not finite{where}, the update is skipped "
            f"(samples {(step - 1) * size} to {step * size - 1})"
        )
        if self.reporter:
            self.reporter.say(text)
        # fp16's loss scale costs a step now and then, which may be the last.
        is_harmless = self.config.training.precision == "fp16" and math.isfinite(loss)
        if is_last and not is_harmless:
            reason = "as the last step"
        elif self._skipped >= MAX_SKIPPED_STEPS:
            reason = f"for the {self._skipped}th time in a row"
        else:
            return
        self.saver.wait()
        raise TrainingError(
            f"{text}, {reason}; lower optimizer.learning_rate, or use training.precision bf16 "
            "or fp32"
        )


def run(
    config: ResolvedConfig, plan: Plan, topology: Topology, interruption: Interruption
) -> tuple[Engine, list[int]]:
    """Train as a resolved configuration says, from a checkpoint if training.resume leads to one.

    Returns the engine, and, on the reporting process, the validated steps, best first.
    """
    if config.training.deterministic:
        # cuBLAS reads it when it starts; without it, torch refuses its matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.training.deterministic)
    checkpoint = find_checkpoint(config, topology, plan.data, warner(topology))
    data, done = plan.data, 0
    if checkpoint:
        data, done = resume_data(data, checkpoint.manifest), checkpoint.manifest.step
    engine = start_engine(config, topology, plan.objective, plan.source, checkpoint)
    reporting = together(lambda: Reporter(config, done) if topology.is_main else None)
    with reporting or nullcontext() as reporter:
        if reporter:
            reporter.say(_describe(config, topology, engine.num_parameters))
            if checkpoint:
                reporter.say(f"resumed from {checkpoint.path}")
                if any(
                    one.from_sample == checkpoint.manifest.consumed_samples for one in data.phases
                ):
                    reporter.say("from here on, token folders have other weights")
            elif plan.source:
                reporter.say(f"starting from the weights of {config.model.source}")
        saver = Saver(engine.state(), config, topology, data)
        samples = plan.draw(data.phases)
        Trainer(engine, plan, samples, config, topology, saver, interruption, reporter).run(done)
        saver.close()
        if reporter:
            reporter.summary()
    return engine, reporter.best_first if reporter else []


def _describe(config: ResolvedConfig, topology: Topology, parameters: int) -> str:
    training, warmup_steps = config.training, config.schedule.warmup_steps
    batch = "examples" if config.task else f"x {config.model.sequence_length} tokens"
    text = (
        f"{parameters:,} parameters a process, {training.precision}, {topology.device.type}; "
        f"data parallel {topology.data_parallel_size} x tensor parallel "
        f"{topology.tensor_parallel_size}, ZeRO {config.parallel.zero_stage}; "
        f"global batch {training.global_batch_size} {batch}, {training.max_steps} steps"
    )
    if warmup_steps >= training.max_steps:
        text += (
            f"\nWARNING: schedule.warmup_steps {warmup_steps}: all {training.max_steps} steps are "
            "warm-up, below optimizer.learning_rate"
        )
    return text
