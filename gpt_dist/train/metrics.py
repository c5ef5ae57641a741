"""Reports of a run: metrics.jsonl, TensorBoard, and a live line on the console."""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from gpt_dist.checkpoint.folder import steps
from gpt_dist.train.directory import set_aside_earlier_run

Row = dict[str, int | float]


@dataclass(frozen=True)
class Headline:
    """The validation figure by which a run is judged."""

    key: str
    higher_is_better: bool


class Reporter:
    """Writes the rows of a run, on the one process that reports."""

    def __init__(
        self, directory: Path, max_steps: int, headline: Headline, first_step: int = 0
    ) -> None:
        """Go on after `first_step`, and drop what an interrupted run wrote beyond it."""
        self._directory = directory
        self._max_steps = max_steps
        self._first_step = first_step
        self._headline = headline
        self._values: dict[int, float] = {}
        if first_step:
            self._take_over_rows(first_step)
        else:
            set_aside_earlier_run(directory)
        self._file = (directory / "metrics.jsonl").open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(directory / "tensorboard", purge_step=first_step + 1)
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=max_steps)
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
            step_seconds = (time.perf_counter() - self._started) / (step - self._first_step)
            left = step_seconds * (self._max_steps - step)
            minutes, seconds = divmod(round(left), 60)
            self.say(f"step {step}/{self._max_steps}  {text}  {minutes}:{seconds:02} left")

    def validation(self, row: Row) -> None:
        """Record and show a row of validation figures."""
        self._write(row, "validation")
        self._remember(row)
        figures = "  ".join(
            f"{name.replace('_', ' ')} {value:,.4f}"
            for name, value in row.items()
            if name != "step"
        )
        self.say(f"step {row['step']}/{self._max_steps}  {figures}")

    @property
    def best_first(self) -> list[int]:
        """Return the validated steps after step 0, best first; equals are in their order."""
        sign = -1 if self._headline.higher_is_better else 1
        return sorted(filter(None, self._values), key=lambda step: sign * self._values[step])

    def summary(self) -> None:
        """Print what the run did, and where its files are."""
        seconds = time.perf_counter() - self._started
        self.say(f"trained on {self._tokens:,} tokens in {seconds:,.0f} s")
        if self._values:
            name = self._headline.key.replace("_", " ")
            (first, *_), (*_, last) = self._values, self._values.values()
            text = f"{name} {self._values[first]:,.4g} at step {first}, {last:,.4g} now"
            for step in self.best_first[:1]:
                if self._values[step] != last:
                    text += f", {self._values[step]:,.4g} at best, at step {step}"
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
        value = row.get(self._headline.key)
        if isinstance(value, int | float) and math.isfinite(value):
            self._values[int(row["step"])] = value

    def _take_over_rows(self, step: int) -> None:
        """Keep the rows up to a step, and drop what an interrupted run wrote beyond it."""
        path = self._directory / "metrics.jsonl"
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        rows = [row for line in text.splitlines() if (row := _parse_row(line, step))]
        saved = {0, *steps(self._directory / "checkpoints")}
        for row in rows:
            if row["step"] in saved:
                self._remember(row)
        replacement = path.with_suffix(".partial")
        lines = [json.dumps(row) + "\n" for row in rows]
        replacement.write_text("".join(lines), encoding="utf-8")
        replacement.rename(path)


def _parse_row(line: str, last_step: int) -> Row | None:
    """Return a row up to the last step, and None for other text, which a crash can leave."""
    with suppress(ValueError, RecursionError):
        row = json.loads(line)
        if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= last_step:
            return row
    return None
