"""The one training loop: batches in, updates out, figures reported on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from gpt_dist.checkpoint.save import Saver
from gpt_dist.config import Config
from gpt_dist.data.loader import BatchPlan, prefetch
from gpt_dist.data.windows import ShuffledWindows, Windows
from gpt_dist.errors import Interrupted, TrainingError
from gpt_dist.model import flops_per_token, peak_flops
from gpt_dist.topology import Topology
from gpt_dist.train.engine import Engine, Update
from gpt_dist.train.interruption import Interruption
from gpt_dist.train.metrics import Reporter, Row
from gpt_dist.train.objective import IGNORED_LABEL
from gpt_dist.train.optimizer import learning_rate

MAX_SKIPPED_STEPS = 20
"""Steps in a row without a finite gradient after which training stops; fp16 needs a few at first,
while its loss scale comes down."""


@dataclass
class Trainer:
    """Trains an engine on shuffled windows and validates it on others."""

    engine: Engine
    samples: ShuffledWindows
    validation: Windows
    config: Config
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
        assert max_steps is not None, "the configuration is not resolved yet"
        plan = self._plan()
        if done == 0:
            self.validate(0)
        interrupted, step = False, done
        skipped, last_step, last_time = 0, done, time.perf_counter()
        with closing(prefetch(self._batches(plan, done, max_steps))) as batches:
            for step in range(done + 1, max_steps + 1):
                rate = learning_rate(step, config.optimizer.learning_rate, config.schedule)
                loss, update = self._train_step(batches, plan.accumulation_steps, rate)
                skipped = 0 if update.applied else skipped + 1
                if skipped:
                    self._report_skipped(step, skipped)
                if step % config.logging.interval == 0 or step in (1, max_steps):
                    now = time.perf_counter()
                    seconds = (now - last_time) / (step - last_step)
                    self._report(step, loss, rate, update, seconds)
                    last_step, last_time = step, now
                if step % interval == 0 or step == max_steps:
                    pause = time.perf_counter()
                    self.validate(step)
                    last_time += time.perf_counter() - pause
                interrupted = self.interruption.agreed()
                if step % config.checkpoint.interval == 0 or step == max_steps or interrupted:
                    self.saver.save(step)
                if interrupted:
                    break
        self.saver.wait()
        if interrupted and step < max_steps:
            raise Interrupted(f"interrupted and saved at step {step}; start again to go on")

    def validate(self, step: int) -> None:
        """Report the mean loss over the validation windows, the same for every layout."""
        count = min(len(self.validation), self.config.validation.max_samples or 2**63)
        if count == 0:
            if step == 0 and self.reporter:
                self.reporter.say("no validation: its text is shorter than one window")
            return
        self.engine.train(False)
        total = torch.zeros(2, dtype=torch.float64, device=self.topology.device)
        with torch.no_grad(), closing(prefetch(self._validation_batches(count))) as batches:
            for void, windows in batches:
                tokens, labels = self._to_device(windows)
                labels[torch.from_numpy(void)] = IGNORED_LABEL
                tokens_counted = (labels != IGNORED_LABEL).sum()
                loss = self.engine.forward(tokens, labels)
                total += torch.stack([loss.double() * tokens_counted, tokens_counted.double()])
        self.engine.train(True)
        dist.all_reduce(total, group=self.topology.data_parallel_group)
        loss_mean = float(total[0] / total[1])
        if self.reporter:
            perplexity = math.exp(loss_mean) if loss_mean < 700 else math.inf
            row: Row = {"step": step, "validation_loss": loss_mean}
            self.reporter.validation({**row, "validation_perplexity": perplexity})

    def _train_step(
        self, batches: Iterator[NDArray[np.int64]], micro_batches: int, rate: float
    ) -> tuple[Tensor, Update]:
        """One update; also this process's mean loss, still on the device."""
        loss_sum = torch.zeros((), device=self.topology.device)
        update = None
        for _ in range(micro_batches):
            loss = self.engine.forward(*self._to_device(next(batches)))
            self.engine.backward(loss)
            loss_sum += loss.detach()
            update = self.engine.step(rate)
        assert update is not None, "the engine and the plan disagree on accumulation"
        return loss_sum / micro_batches, update

    def _report(self, step: int, loss: Tensor, rate: float, update: Update, seconds: float) -> None:
        dist.all_reduce(loss, group=self.topology.data_parallel_group)
        if self.reporter is None:
            return
        config, topology = self.config, self.topology
        batch_tokens = config.training.global_batch_size * config.model.sequence_length
        row: Row = {
            "step": step,
            "samples": step * config.training.global_batch_size,
            "tokens": step * batch_tokens,
            "loss": float(loss) / topology.data_parallel_size,
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

    def _report_skipped(self, step: int, skipped: int) -> None:
        batch = self.config.training.global_batch_size
        what = (
            f"step {step}: the gradient is not finite, the update is skipped "
            f"(samples {(step - 1) * batch} to {step * batch - 1})"
        )
        if self.reporter:
            self.reporter.say(what)
        if skipped >= MAX_SKIPPED_STEPS:
            raise TrainingError(
                f"{what}, for the {skipped}th time in a row; lower optimizer.learning_rate, or use "
                "training.precision bf16 or fp32"
            )

    def _batches(self, plan: BatchPlan, done: int, max_steps: int) -> Iterator[NDArray[np.int64]]:
        for step in range(done, max_steps):
            for numbers in plan.micro_batches(step):
                yield self.samples.read(numbers)

    def _validation_batches(
        self, count: int
    ) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.int64]]]:
        """This process's micro-batches of the first `count` windows, and which rows are void.

        Every process gets the same number of batches, filled up with rows that do not count.
        """
        plan = self._plan()
        first = plan.data_parallel_rank * plan.micro_batch_size
        for start in range(0, count, plan.micro_batch_size * plan.data_parallel_size):
            numbers = np.arange(start + first, start + first + plan.micro_batch_size)
            yield numbers >= count, self.validation.read(numbers % count)

    def _plan(self) -> BatchPlan:
        training, topology = self.config.training, self.topology
        assert training.micro_batch_size is not None, "the configuration is not resolved yet"
        return BatchPlan(
            training.global_batch_size,
            training.micro_batch_size,
            topology.data_parallel_size,
            topology.data_parallel_rank,
        )

    def _to_device(self, windows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Inputs and labels [B, T] of windows [B, T + 1]."""
        tensor = torch.from_numpy(windows)
        if self.topology.device.type == "cuda":
            tensor = tensor.pin_memory().to(self.topology.device, non_blocking=True)
        return tensor[:, :-1].contiguous(), tensor[:, 1:].contiguous()
