"""Reports of a run: metrics.jsonl, TensorBoard, and a live line on the console."""

import json
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from gpt_dist.checkpoint.folder import steps
from gpt_dist.config import ResolvedConfig
from gpt_dist.data.tasks.reading import DEV
from gpt_dist.files.folders import write_result
from gpt_dist.train.directory import set_aside_earlier_run

Row = dict[str, int | float]


class Reporter:
    """Writes the rows of a run, on the one process that reports."""

    def __init__(self, config: ResolvedConfig, done: int) -> None:
        """Write the configuration, and go on after step `done`."""
        self._directory = directory = Path(config.run.directory)
        self._max_steps = config.training.max_steps
        self._done = done
        self._headline = f"{DEV}_{config.task.metric}" if config.task else "validation_perplexity"
        self._sign = -1 if config.task else 1  # perplexity is better the lower it is
        self._values: dict[int, float] = {}
        if done:
            self._drop_rows_after(done)
        else:
            set_aside_earlier_run(directory)
        config.save(directory / "config.yaml")
        self._file = (directory / "metrics.jsonl").open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(directory / "tensorboard", purge_step=done + 1)
        self._console = Console(stderr=True)
        figures = TextColumn("{task.description}", markup=False)
        columns = TextColumn("step"), MofNCompleteColumn(), BarColumn(), figures
        hidden = not self._console.is_terminal
        self._progress = Progress(
            *columns, TimeRemainingColumn(), console=self._console, disable=hidden
        )
        self._task = self._progress.add_task("", total=self._max_steps)
        self._tokens = 0

    def __enter__(self) -> Self:
        self._progress.start()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._tensorboard.close()
        self._file.close()

    def training(self, row: Row) -> None:
        """Record a row of training figures, and show the main ones."""
        self._write(row, "train")
        self._tokens = int(row["tokens"])
        text = (
            f"loss {row['loss']:.4f}  grad norm {row['grad_norm']:.3f}  "
            f"lr {row['learning_rate']:.2e}  {row['tokens_per_second']:,.0f} tokens/s"
        )
        step = int(row["step"])
        self._progress.update(self._task, completed=step, description=text)
        if not self._console.is_terminal:
            step_seconds = (time.perf_counter() - self._started) / (step - self._done)
            minutes, seconds = divmod(round(step_seconds * (self._max_steps - step)), 60)
            self.say(f"step {step}/{self._max_steps}  {text}  {minutes}:{seconds:02} left")

    def validation(self, row: Row) -> None:
        """Record and show a row of validation figures."""
        self._write(row, "validation")
        self._remember(row)
        figures = (f"{key.replace('_', ' ')} {row[key]:,.4f}" for key in row if key != "step")
        self.say("  ".join([f"step {row['step']}/{self._max_steps}", *figures]))

    @property
    def best_first(self) -> list[int]:
        """Return the validated steps after step 0, best first, and earlier first among equals."""
        return sorted(filter(None, self._values), key=lambda step: self._sign * self._values[step])

    def summary(self) -> None:
        """Print the amount of training, the change of the headline and the files."""
        seconds = time.perf_counter() - self._started
        self.say(f"trained on {self._tokens:,} tokens in {seconds:,.0f} s")
        if self._values:
            name = self._headline.replace("_", " ")
            (first, *_), (*_, last) = self._values, self._values.values()
            text = f"{name} {self._values[first]:,.4g} at step {first}, {last:,.4g} now"
            best = next(iter(self.best_first), None)
            if best and self._values[best] != last:
                text += f", {self._values[best]:,.4g} at best, at step {best}"
            self.say(text)
        self.say(f"in {self._directory}: config.yaml, metrics.jsonl, tensorboard/, checkpoints/")

    def say(self, text: str) -> None:
        """Print a line above the live one."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _write(self, row: Row, group: str) -> None:
        # JSON has no NaN or infinity.
        plain = {k: v if math.isfinite(v) else None for k, v in row.items()}
        self._file.write(json.dumps(plain) + "\n")
        self._file.flush()
        for key, value in row.items():
            if key not in ("step", "samples", "tokens"):
                self._tensorboard.add_scalar(f"{group}/{key}", value, int(row["step"]))

    def _remember(self, row: Row) -> None:
        value = row.get(self._headline)
        if isinstance(value, int | float) and math.isfinite(value):
            self._values[int(row["step"])] = value

    def _drop_rows_after(self, last_step: int) -> None:
        """Drop the rows of an interrupted run after a step, and text that a crash left."""
        path = self._directory / "metrics.jsonl"
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        saved = {0, *steps(self._directory / "checkpoints")}
        kept = []
        for line in text.splitlines():
            with suppress(ValueError, RecursionError, TypeError, KeyError):
                row = json.loads(line)
                if row["step"] <= last_step:
                    kept.append(json.dumps(row) + "\n")
                    if row["step"] in saved:
                        self._remember(row)
        write_result(path, "".join(kept))
