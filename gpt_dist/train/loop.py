"""The one training loop: batches in, updates out, figures reported on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gpt_dist.checkpoint.save import Saver
from gpt_dist.config import ResolvedConfig
from gpt_dist.data.batches import TokenBatch
from gpt_dist.data.loader import BatchPlan, prefetch
from gpt_dist.errors import Interrupted, TrainingError
from gpt_dist.model import flops_per_token, peak_flops
from gpt_dist.topology import Topology
from gpt_dist.train.engine import Engine, Update
from gpt_dist.train.interruption import Interruption
from gpt_dist.train.metrics import Reporter, Row
from gpt_dist.train.optimizer import learning_rate


class Samples(Protocol):
    """Training samples by number."""

    @property
    def tokens_per_sample(self) -> float:
        """On average, for figures of speed."""

    def batch(self, samples: NDArray[np.int64]) -> TokenBatch[NDArray[Any]]:
        """Return the micro-batch of these samples, as the objective takes it."""


MAX_SKIPPED_STEPS = 20
"""Steps in a row without a finite gradient after which training stops; fp16 needs a few at first,
while its loss scale comes down."""


@dataclass
class Trainer:
    """Trains an engine on samples, validates it, and has it saved."""

    engine: Engine
    samples: Samples
    validate: Callable[[], Row]
    """Validation figures by name; every process calls it."""
    config: ResolvedConfig
    topology: Topology
    saver: Saver
    interruption: Interruption
    reporter: Reporter | None
    """Given on the reporting process only."""

    def run(self, done: int) -> None:
        """Train from the step after `done` to training.max_steps.

        Raises TrainingError when the gradient stays not finite, CheckpointError when a checkpoint
        cannot be written, and Interrupted after having saved when a scheduler ends the job.
        """
        config = self.config
        max_steps, interval = config.training.max_steps, config.validation.interval
        topology = self.topology
        plan = BatchPlan.of(config, topology.data_parallel_size, topology.data_parallel_rank)
        if done == 0:
            self._validate(0)
        interrupted, step = False, done
        skipped, last_step, last_time = 0, done, time.perf_counter()
        with closing(prefetch(self._batches(plan, done, max_steps))) as batches:
            for step in range(done + 1, max_steps + 1):
                rate = learning_rate(step, config.optimizer.learning_rate, config.schedule)
                loss, update = self.engine.train_batch(next(batches), rate)
                skipped = 0 if update.applied else skipped + 1
                if skipped:
                    self._report_skipped(step, skipped, loss, update)
                if step % config.logging.interval == 0 or step in (1, max_steps):
                    now = time.perf_counter()
                    seconds = (now - last_time) / (step - last_step)
                    self._report(step, loss, rate, update, seconds)
                    last_step, last_time = step, now
                best = False
                if step % interval == 0 or step == max_steps:
                    pause = time.perf_counter()
                    self._validate(step)
                    last_time += time.perf_counter() - pause
                    best = config.checkpoint.keep_best
                interrupted = self._save_if_due(step, best or step == max_steps)
                if interrupted:
                    break
        self.saver.wait()
        if interrupted and step < max_steps:
            raise Interrupted(f"interrupted and saved at step {step}; start again to go on")

    def _save_if_due(self, step: int, wanted: bool) -> bool:
        """Save when wanted, at each interval, and when the job ends; whether it does."""
        interval = self.config.checkpoint.interval
        interrupted, failed = self.interruption.agreed(self.saver.failed)
        if failed:
            self.saver.wait()
        if wanted or interrupted or step % interval == 0:
            self.saver.save(step, self._steps_to_keep())
        return interrupted

    def _steps_to_keep(self) -> set[int]:
        """Checkpoints that must stay, beside the newest; only the main process removes any."""
        if self.config.checkpoint.keep_best and self.reporter and self.reporter.best:
            return {self.reporter.best.step}
        return set()

    def _validate(self, step: int) -> None:
        row = self.validate()
        if self.reporter and row:
            self.reporter.validation({"step": step, **row})
        elif self.reporter and step == 0:
            self.reporter.say("no validation: too little text is held out for one window")

    def _report(self, step: int, loss: float, rate: float, update: Update, seconds: float) -> None:
        if self.reporter is None:
            return
        config, topology = self.config, self.topology
        batch_tokens = config.training.global_batch_size * self.samples.tokens_per_sample
        row: Row = {
            "step": step,
            "samples": step * config.training.global_batch_size,
            "tokens": round(step * batch_tokens),
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": update.grad_norm,
            "step_seconds": seconds,
            "tokens_per_second": batch_tokens / seconds,
        }
        peak = peak_flops(topology.device)
        if peak:
            rate_reached = flops_per_token(config.model) * batch_tokens / seconds
            row["mfu"] = rate_reached / (peak * topology.launch.world_size)
        self.reporter.training(row)

    def _report_skipped(self, step: int, skipped: int, loss: float, update: Update) -> None:
        training = self.config.training
        batch = training.global_batch_size
        named = ", ".join(map(str, update.bad_ranks))
        what = (
            f"step {step}: the gradient is not finite{named and f' on rank(s) {named}'}, the "
            f"update is skipped (samples {(step - 1) * batch} to {step * batch - 1})"
        )
        if self.reporter:
            self.reporter.say(what)
        # fp16's loss scale costs a step now and then, which may be the last.
        harmless = training.precision == "fp16" and math.isfinite(loss)
        at_the_end = step == training.max_steps and not harmless
        if at_the_end or skipped >= MAX_SKIPPED_STEPS:
            self.saver.wait()
            reason = "as the last step" if at_the_end else f"for the {skipped}th time in a row"
            raise TrainingError(
                f"{what}, {reason}; lower optimizer.learning_rate, or use training.precision bf16 "
                "or fp32"
            )

    def _batches(
        self, plan: BatchPlan, done: int, max_steps: int
    ) -> Iterator[list[TokenBatch[NDArray[Any]]]]:
        for step in range(done, max_steps):
            yield [self.samples.batch(numbers) for numbers in plan.micro_batches(step)]
