"""One run, of pre-training or of fine-tuning: the training loop, saved and reported on the way."""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from gpt_dist.checkpoint.folder import warner
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.checkpoint.opened import OpenedModel
from gpt_dist.checkpoint.resume import find_checkpoint, resume_data
from gpt_dist.checkpoint.save import DataSource, Saver
from gpt_dist.config import ResolvedConfig
from gpt_dist.data.batches import TokenBatch, micro_batches, prefetch
from gpt_dist.data.tokens.mixture import Phase
from gpt_dist.errors import Interrupted, RolledBack, TrainingError
from gpt_dist.memory import peak_memory
from gpt_dist.model import GPT, flops_per_token, peak_flops
from gpt_dist.rendezvous import launcher_ended
from gpt_dist.topology import Topology, together
from gpt_dist.train.engine import Engine, Update
from gpt_dist.train.interruption import Interruption
from gpt_dist.train.ledger import LEDGER_NAME, leave_out, read_ledger
from gpt_dist.train.metrics import Reporter, Row
from gpt_dist.train.objective import Objective
from gpt_dist.train.opening import describe, warn_of_little_room
from gpt_dist.train.optimizer import learning_rate
from gpt_dist.train.profile import Profiler
from gpt_dist.train.start import load_checkpoint, start_engine
from gpt_dist.train.status import LAUNCHER_ENDED, Status

MAX_SKIPPED_STEPS = 20
"""Steps in a row without a finite gradient after which training stops; fp16 needs a few at first,
while its loss scale comes down."""

SPIKE_STEPS, SPIKE_DEVIATIONS = 128, 6
"""A loss is a spike where it is so many standard deviations above the mean of so many before, or of
half as many at first: the rule of SkipStepOptimizer in OLMo-core."""

UNREAD_STEPS = 2
"""Steps that the host may be ahead of what it knows of the device."""

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
    directory: Path
    """Directory of the whole run, of which this may be one seed's part."""
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
    losses: deque[float]
    """The losses of the last steps, for training.on_spike."""
    _unread: deque[tuple[int, Update]] = field(default_factory=deque, init=False)
    """Steps whose outcome the host has not read yet."""
    _interrupted: bool = field(default=False, init=False)
    """Whether any process is known to be interrupted."""
    _skipped: int = field(default=0, init=False)
    """Steps in a row, up to the last one that is known, whose update was skipped."""
    _last_report: int = field(init=False)
    _timer: float = field(init=False)
    """Time of the last report, plus the duration of validations and profilers since."""

    def run(self, done: int) -> None:
        """Train from the step after `done` to training.max_steps.

        Raises TrainingError if the gradient stays not finite, CheckpointError if a checkpoint
        cannot be written, and Interrupted, after having saved, if a scheduler ends the job.
        """
        max_steps = self.config.training.max_steps
        reported = self.config, self.topology, self.reporter
        profiler = Profiler(self.engine.phases, *reported, done)
        self._last_report, self._timer = done, time.perf_counter()
        if done == 0:
            self._validate(0)
        with closing(prefetch(self._global_batches(done, max_steps))) as batches:
            for step in range(done + 1, max_steps + 1):
                with self._untimed():
                    profiler.before(step)
                self.topology.progress.begin("step", step)
                with self.engine.phases("data"):
                    batch = next(batches)
                self._train(step, batch)
                with self._untimed():
                    profiler.after(step)
                is_validated = self._is_due(step, self.config.validation.interval)
                if is_validated:
                    self._read_outcomes()
                    self._validate(step)
                if self._save_if_due(step, is_validated) and step < max_steps:
                    self.saver.wait()
                    why = LAUNCHER_ENDED if launcher_ended(self.topology.launch) else "by a signal"
                    text = f"interrupted and saved at step {step} ({why}); start again to go on"
                    if self.reporter:  # before a launcher kills this process, as another has ended
                        Status("interrupted", step, text).write(self.plan.directory)
                    raise Interrupted(text)
        self.saver.wait()

    def _is_due(self, step: int, interval: int) -> bool:
        return step % interval == 0 or step == self.config.training.max_steps

    def _global_batches(self, done: int, max_steps: int) -> Iterator[list[MicroBatch]]:
        """Yield this process's micro-batches of each step."""
        rank = self.topology.data_parallel_rank
        for step in range(done + 1, max_steps + 1):
            yield [self.samples.batch(part) for part in self._share(step, rank)]

    def _share(self, step: int, data_parallel_rank: int) -> Iterator[NDArray[np.int64]]:
        """Yield the samples of a process in a step, by micro-batches."""
        training = self.config.training
        share = self.topology.data_parallel_size, data_parallel_rank
        stop = self.plan.data.consumed(step, training.global_batch_size)
        bounds = stop - training.global_batch_size, stop
        return micro_batches(*bounds, training.micro_batch_size, *share)

    def _train(self, step: int, batch: list[MicroBatch]) -> None:
        """Make a step, and report it where that is due."""
        rate = learning_rate(step, self.config.optimizer.learning_rate, self.config.schedule)
        alerts = self.interruption.noted, self.saver.failed
        _, update = self.engine.train_batch(batch, rate, alerts)
        self._unread.append((step, update))
        is_reported = self._is_due(step, self.config.logging.interval) or step == 1
        self._read_outcomes(0 if is_reported else UNREAD_STEPS)
        if self.reporter and is_reported:
            self.reporter.training(self._row(step, rate, update))
            Status("running", step).write(self.plan.directory)

    def _read_outcomes(self, unread: int = 0) -> None:
        """Read the outcomes of steps but for the last ones, at the same step on every process."""
        while len(self._unread) > unread:
            step, update = self._unread.popleft()
            self._skipped = 0 if update.applied else self._skipped + 1
            if self._skipped:
                self._report_skipped(step, update)
            elif self.config.training.on_spike:
                self._check_loss(step, update.loss)
            interrupted, failed = update.alerts
            self._interrupted |= interrupted
            if failed:
                self.saver.wait()

    @contextmanager
    def _untimed(self, kind: str = "other") -> Iterator[None]:
        """Leave what is done in the context out of the time of steps."""
        start = time.perf_counter()
        self.topology.progress.begin(kind)
        yield
        self._timer += time.perf_counter() - start

    def _validate(self, step: int) -> None:
        with self._untimed("validation"):
            row = self.plan.validate(self.engine)
            if self.reporter and row:
                self.reporter.validation({"step": step, **row})
            elif self.reporter and step == 0:
                self.reporter.say("no validation: too little text is held out for one window")

    def _save_if_due(self, step: int, is_validated: bool) -> bool:
        """Save at each interval, the best, the last, and when the job ends: return whether it does.

        Every process learns of a signal to one of them a few steps later.
        """
        config = self.config.checkpoint
        is_wanted = is_validated and config.keep_best
        is_saved = is_wanted or self._interrupted or self._is_due(step, config.interval)
        if (every := self.config.training.check_replicas) and (is_saved or step % every == 0):
            self.engine.state().check_copies()
        if is_saved:
            self._read_outcomes()
            self.topology.progress.begin("save")
            best = self.reporter.best_first[:1] if self.reporter and config.keep_best else []
            ends = self._interrupted or step == self.config.training.max_steps
            self.saver.save(step, best, self.losses, ends)
            if self.reporter:
                Status("running", step).write(self.plan.directory)
        return self._interrupted

    def _row(self, step: int, rate: float, update: Update) -> Row:
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
            "loss": update.loss,
            "learning_rate": rate,
            "grad_norm": update.grad_norm,
            "step_seconds": seconds,
            "tokens_per_second": batch_tokens / seconds,
            "memory_bytes": peak_memory(topology.device),
        }
        if peak := peak_flops(topology.device):
            flops = flops_per_token(config.model) * batch_tokens / seconds
            row["mfu"] = flops / (peak * topology.launch.world_size)
        return row

    def _report_skipped(self, step: int, update: Update) -> None:
        """Report a skipped step; raise TrainingError if it is the last, or one too many."""
        ranks = update.bad_ranks
        where = f" on rank(s) {', '.join(map(str, ranks))}" if ranks else ""
        samples = self._name_samples(step, ranks)
        text = f"step {step}: the gradient is not finite{where}, the update is skipped ({samples})"
        if self.reporter:
            self.reporter.say(text)
        # fp16's loss scale costs a step now and then, which may be the last.
        training = self.config.training
        is_harmless = training.precision == "fp16" and math.isfinite(update.loss)
        if training.on_spike and not is_harmless:
            self._end_or_go_back(step, text)
        if step == training.max_steps and not is_harmless:
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

    def _name_samples(self, step: int, ranks: Collection[int] = ()) -> str:
        """Name the samples that some ranks, by default all, have in a step."""
        found: set[int] = set()
        size = self.topology.tensor_parallel_size
        for share in {rank // size for rank in ranks} or range(self.topology.data_parallel_size):
            found.update(*(part.tolist() for part in self._share(step, share)))
        firsts, lasts = (sorted(n for n in found if n + by not in found) for by in (-1, 1))
        return "samples " + ", ".join(f"{a} to {b}" for a, b in zip(firsts, lasts, strict=True))

    def _check_loss(self, step: int, loss: float) -> None:
        """Remember the loss of a step; raise TrainingError or RolledBack if it is a spike."""
        known = self.losses or [loss]
        bound = np.mean(known) + SPIKE_DEVIATIONS * np.std(known)
        if len(known) >= SPIKE_STEPS // 2 and loss > bound:
            text = f"step {step}: the loss {loss:.4f} is a spike, above {bound:.4f}"
            self._end_or_go_back(step, f"{text} ({self._name_samples(step)})")
        self.losses.append(loss)

    def _end_or_go_back(self, step: int, text: str) -> NoReturn:
        """End the run, or have it go back and leave out the samples of a step; collective."""
        self.saver.wait()
        if self.config.training.on_spike == "stop":
            raise TrainingError(
                f"{text}, and training.on_spike is stop; look at the samples, lower "
                "optimizer.learning_rate, or use training.on_spike=rollback"
            )
        size, directory = self.config.training.global_batch_size, Path(self.config.run.directory)
        batch = self.plan.data.consumed(step, size) // size - 1

        def write() -> None:
            if self.topology.is_main:
                leave_out(directory, batch, size, step, text)

        together(write)
        raise RolledBack(f"{text}; going back to the last checkpoint, without these samples")


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
    say = warner(topology)
    checkpoint = find_checkpoint(config, topology, _without_left_out(plan.data, config), say)
    engine = start_engine(config, topology, plan.objective, plan.source, checkpoint)
    again = config.training.model_copy(update={"resume": "auto"})
    while True:
        try:
            return engine, _train(config, plan, topology, interruption, engine, checkpoint)
        except RolledBack as spike:
            topology.progress.begin("going back")
            say(str(spike))
        resumed = config.model_copy(update={"training": again})
        data = _without_left_out(plan.data, config)
        checkpoint = find_checkpoint(resumed, topology, data, say)
        assert checkpoint, "the ledger names it"
        load_checkpoint(engine, checkpoint, config, topology)


def _without_left_out(data: DataSource, config: ResolvedConfig) -> DataSource:
    ledger = together(lambda: read_ledger(Path(config.run.directory)))
    return replace(data, left_out=tuple(one.batch for one in ledger))


def _train(
    config: ResolvedConfig,
    plan: Plan,
    topology: Topology,
    interruption: Interruption,
    engine: Engine,
    checkpoint: Checkpoint | None,
) -> list[int]:
    """Train from a checkpoint, or the start, to the end; return the validated steps, best first.

    Raises RolledBack where training goes back, and otherwise as `Trainer.run`.
    """
    done = checkpoint.manifest.step if checkpoint else 0
    reporting = together(lambda: Reporter(config, done) if topology.is_main else None)
    data = _without_left_out(plan.data, config)
    if checkpoint:
        data = resume_data(data, checkpoint.manifest)
    with reporting or nullcontext() as reporter:
        if reporter:
            Status("running", done).write(plan.directory)
            reporter.say(describe(config, topology, engine) + warn_of_little_room(config, engine))
            if checkpoint:
                reporter.say(f"resumed from {checkpoint.path}")
                if checkpoint.manifest.consumed_samples in [one.from_sample for one in data.phases]:
                    reporter.say("from here on, token folders have other weights")
            elif plan.source:
                reporter.say(f"starting from the weights of {config.model.source}")
            if data.left_out:
                reporter.say(f"leaving out {len(data.left_out)} global batch(es) of {LEDGER_NAME}")
        interruption.folder = Path(config.run.directory) / "checkpoints"
        saver = Saver(engine.state(), config, topology, data)
        losses = deque(checkpoint.manifest.losses if checkpoint else (), SPIKE_STEPS)
        drawn = replace(plan, data=data), plan.draw(data.phases), config, topology
        try:
            Trainer(engine, *drawn, saver, interruption, reporter, losses).run(done)
        except RolledBack:
            saver.close()
            raise
        saver.close()
        if reporter:
            reporter.summary()
    return reporter.best_first if reporter else []
