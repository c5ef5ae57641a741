"""Predictions of a fine-tuned model, shared out over processes, and metrics of predictions."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor
from torch.distributed import ProcessGroup

from gpt_dist.config import TaskConfig
from gpt_dist.data.batches import TaskBatch, micro_batches, prefetch
from gpt_dist.data.tasks.examples import EncodedSplit, collate
from gpt_dist.data.tasks.reading import DEV
from gpt_dist.errors import TrainingError
from gpt_dist.finetune.objective import head_shape, task_losses
from gpt_dist.progress import Report, silent
from gpt_dist.topology import gather


@dataclass(frozen=True)
class Judged:
    """Scores and predictions for the examples of a split."""

    scores: list[NDArray[Any]]
    """For each example, a score for each class or choice, or one score."""
    predictions: NDArray[Any]
    """The number of the likeliest class or choice, or the score moved into its range."""
    targets: NDArray[Any] | None
    """None in a split without labels."""


@dataclass(frozen=True)
class Evaluator:
    """Judges a model by splits of a task, with the same figures for every layout.

    The processes of the data-parallel group share the examples: all must call, and get all results.
    """

    evaluate: Callable[[TaskBatch[NDArray[Any]]], Tensor]
    """Returns the scores of a batch, as the task's head gives them."""
    task: TaskConfig
    batch_size: int
    group: ProcessGroup
    report: Report = silent

    def judge(self, split: EncodedSplit, limit: int | None = None) -> Judged:
        """Score the examples of a split, or the first `limit` ones, and predict from the scores.

        Raises TrainingError if a score is not finite.
        """
        task, group = self.task, self.group
        order = np.argsort(split.lengths[:limit], kind="stable")
        places = micro_batches(0, len(order), self.batch_size, group.size(), group.rank())
        parts = (order[part % len(order)] for part in places)
        own: dict[int, NDArray[np.float32]] = {}
        with closing(prefetch((numbers, collate(split, numbers)) for numbers in parts)) as batches:
            for numbers, batch in batches:
                scores = self.evaluate(batch).float().cpu().numpy()
                own.update(zip(numbers.tolist(), scores, strict=True))
                self.report("scoring", len(own), math.ceil(len(order) / group.size()))
        found = {number: row for part in gather(own, group) for number, row in part.items()}
        # An example with fewer choices than others of its batch has -inf for the rest.
        rows = [row[row != -np.inf] if row.ndim else row for _, row in sorted(found.items())]
        if not all(np.isfinite(row).all() for row in rows):
            raise TrainingError(
                f"{task.name}: a score is not a finite number; lower optimizer.learning_rate, or "
                "use training.precision bf16 or fp32"
            )
        is_score = head_shape(task)[0] == "score"
        predictions = [_within(row, task.score_range) if is_score else row.argmax() for row in rows]
        targets = None if split.targets is None else split.targets[:limit]
        return Judged(rows, np.array(predictions), targets)

    def validate(self, splits: Mapping[str, EncodedSplit], limit: int | None) -> dict[str, float]:
        """Return `validation_loss` of all dev splits, and `SPLIT_METRIC` of each one.

        Only the first `limit` examples of each count.
        """
        dev = {name: split for name, split in splits.items() if name.startswith(DEV)}
        judged = {name: self.judge(split, limit) for name, split in dev.items()}
        kind, losses = head_shape(self.task)[0], []
        for one in judged.values():
            assert one.targets is not None, "dev splits have labels"
            scores, targets = map(torch.tensor, one.scores), torch.tensor(one.targets)
            pairs = zip(scores, targets, strict=True)
            losses += [float(task_losses(kind, *pair)) for pair in pairs]
        row = {"validation_loss": float(np.mean(losses))}
        for name, metrics in metrics_of(judged, self.task).items():
            row |= {f"{name}_{metric}": value for metric, value in metrics.items()}
        return row


def metric_rows(judged: Mapping[str, Judged], task: TaskConfig) -> list[dict[str, Any]]:
    """Return a row of metrics for each split with labels, and one for several dev splits."""
    counts = {name: len(one.predictions) for name, one in judged.items()}
    return [
        {"task": task.name, "split": name, "examples": counts.get(name, sum(counts.values()))}
        | metrics
        for name, metrics in metrics_of(judged, task).items()
        if name in judged or len(judged) > 1
    ]


def metrics_of(judged: Mapping[str, Judged], task: TaskConfig) -> dict[str, dict[str, float]]:
    """Return the metrics of each split with labels, and of all dev splits together as `dev`."""
    pairs = {
        name: (one.targets, one.predictions)
        for name, one in judged.items()
        if one.targets is not None
    }
    dev = [pair for name, pair in pairs.items() if name.startswith(DEV)]
    if dev:
        targets, predictions = map(np.concatenate, zip(*dev, strict=True))
        pairs.setdefault(DEV, (targets, predictions))
    return {name: score(task, *pair) for name, pair in pairs.items()}


def score(task: TaskConfig, targets: NDArray[Any], predictions: NDArray[Any]) -> dict[str, float]:
    """Return metrics of at least one example by name, task.metric among them, from -1 to 1.

    Classes and choices, given by number, have accuracy, and f1 (class 1 is positive) or matthews
    if that is task.metric. Scores have pearson and spearman. A correlation is 0 if targets or
    predictions do not vary.
    """
    vary = np.ptp(targets) and np.ptp(predictions)
    if task.metric in ("pearson", "spearman"):
        if not vary:
            return {"pearson": 0.0, "spearman": 0.0}
        pair = targets.astype(np.float64), predictions.astype(np.float64)
        pearson, spearman = pearsonr(*pair).statistic, spearmanr(*pair).statistic
        return {"pearson": float(pearson), "spearman": float(spearman)}
    scores = {"accuracy": float(accuracy_score(targets, predictions))}
    if task.metric == "f1":
        scores["f1"] = float(f1_score(targets, predictions, zero_division=0.0))
    if task.metric == "matthews":
        scores["matthews"] = float(matthews_corrcoef(targets, predictions)) if vary else 0.0
    return scores


def describe(task: TaskConfig, scores: list[NDArray[Any]]) -> Iterator[dict[str, Any]]:
    """Yield predictions for display: a score, or the likeliest label and all probabilities."""
    kind, _ = head_shape(task)
    for row in scores:
        if kind == "score":
            yield {"score": _within(row, task.score_range)}
            continue
        names = task.labels or [str(number) for number in range(len(row))]
        probabilities = dict(zip(names, softmax(row.astype(np.float64)).tolist(), strict=False))
        yield {"label": names[int(row.argmax())], "probabilities": probabilities}


def _within(score: NDArray[np.float32], limits: tuple[float, float] | None) -> float:
    low, high = limits or (-math.inf, math.inf)
    return min(max(float(score), low), high)
