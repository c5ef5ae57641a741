"""Reports of a run: metrics.jsonl, TensorBoard, and a live line on the console."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar

from gpt_dist.checkpoint.folder import steps
from gpt_dist.config import ResolvedConfig
from gpt_dist.data.tasks.reading import DEV
from gpt_dist.files.folders import write_result
from gpt_dist.train.directory import set_aside_earlier_run

Row = dict[str, int | float]


class _Log:
    """A file of rows, of which those that the disk does not take are dropped, which is said."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path, self._say, self._dropped = path, say, 0
        self.stream = path.open("ab", buffering=0)
        self._size = self.stream.tell()

    def append(self, rows: bytes) -> None:
        """Append all or nothing."""
        try:
            self.stream.truncate(self._size)  # by what a full disk took of a row
            written = 0
            while written < len(rows):
                written += self.stream.write(rows[written:])
        except OSError as error:
            self._dropped += 1
            if self._dropped == 1:
                self._say(
                    f"WARNING: {self._path}: {error.strerror}; its rows are dropped meanwhile"
                )
            return
        self._size += len(rows)
        if self._dropped:
            self._say(f"{self._path}: written again; {self._dropped} rows were dropped")
            self._dropped = 0


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
        self._console = Console(stderr=True)
        if done:
            self._drop_rows_after(done, config.logging.interval)
        else:
            set_aside_earlier_run(directory)
        config.save(directory / "config.yaml")
        self._rows = _Log(directory / "metrics.jsonl", self.say)
        (directory / "tensorboard").mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{os.getpid()}"
        self._events = _Log(directory / "tensorboard" / name, self.say)
        start = SessionLog(status=SessionLog.START)  # hides what an interrupted run had after it
        form = Event(file_version="brain.Event:2")
        self._append_events([form, Event(step=done + 1, session_log=start)])
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
        self._events.stream.close()
        self._rows.stream.close()

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
        if self._console.is_terminal:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
            return
        with suppress(OSError):  # of a log on a full disk
            print(text, file=sys.stderr, flush=True)

    def _write(self, row: Row, group: str) -> None:
        # JSON has no NaN or infinity.
        plain = {k: v if math.isfinite(v) else None for k, v in row.items()}
        self._rows.append(json.dumps(plain).encode() + b"\n")
        figures = {k: v for k, v in row.items() if k not in ("step", "samples", "tokens")}
        scalars = [scalar(f"{group}/{key}", value) for key, value in figures.items()]
        self._append_events([Event(step=int(row["step"]), summary=one) for one in scalars])

    def _append_events(self, events: Iterable[Event]) -> None:
        records = BytesIO()
        for event in events:
            event.wall_time = time.time()
            RecordWriter(records).write(event.SerializeToString())
        self._events.append(records.getvalue())

    def _remember(self, row: Row) -> None:
        value = row.get(self._headline)
        if isinstance(value, int | float) and math.isfinite(value):
            self._values[int(row["step"])] = value

    def _drop_rows_after(self, last_step: int, interval: int) -> None:
        """Drop the rows of an interrupted run after a step, and text that a crash left."""
        path = self._directory / "metrics.jsonl"
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        saved = {0, *steps(self._directory / "checkpoints")}
        kept, recorded = [], 0
        for line in text.splitlines():
            with suppress(ValueError, RecursionError, TypeError, KeyError):
                row = json.loads(line)
                if row["step"] <= last_step:
                    kept.append(json.dumps(row) + "\n")
                    recorded = row["step"]
                    if row["step"] in saved:
                        self._remember(row)
        if recorded < (last_step // interval * interval or 1):
            self.say(f"WARNING: {path}: cut or gone: no row of steps {recorded + 1} to {last_step}")
        write_result(path, "".join(kept))
