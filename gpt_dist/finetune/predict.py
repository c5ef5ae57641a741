"""Predictions of a fine-tuned model, shared out over processes, and their metrics."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor
from torch.distributed import ProcessGroup

from gpt_dist.config import TaskConfig
from gpt_dist.data.batches import TaskBatch
from gpt_dist.data.loader import micro_batches, prefetch
from gpt_dist.data.tasks.examples import EncodedSplit, collate
from gpt_dist.errors import TrainingError
from gpt_dist.finetune.head import head_shape, task_losses
from gpt_dist.finetune.scores import score_splits
from gpt_dist.progress import Report, silent

Scores = list[NDArray[np.float32]]
"""For each example, a score for each class or choice, or one score."""

Evaluate = Callable[[TaskBatch[NDArray[Any]]], Tensor]
"""Returns the scores of a batch, as the task's head gives them."""


@dataclass(frozen=True)
class Judged:
    """Scores and predictions for the examples of a split."""

    scores: Scores
    predictions: NDArray[Any]
    """The number of the likeliest class or choice, or the score moved into its range."""
    targets: NDArray[Any] | None
    """None in a split without labels."""


def judge(
    evaluate: Evaluate,
    split: EncodedSplit,
    task: TaskConfig,
    batch_size: int,
    group: ProcessGroup,
    report: Report = silent,
) -> Judged:
    """Score the examples of a split, and predict from the scores.

    `group` is the data-parallel one: its processes must all call this, share the examples, and get
    all results. Raises TrainingError if a score is not finite.
    """
    order = np.argsort(split.lengths, kind="stable")
    places = micro_batches(0, len(order), batch_size, group.size(), group.rank())
    parts = (order[part % len(order)] for part in places)
    own: dict[int, NDArray[np.float32]] = {}
    with closing(prefetch((numbers, collate(split, numbers)) for numbers in parts)) as batches:
        for numbers, batch in batches:
            own.update(zip(numbers.tolist(), evaluate(batch).float().cpu().numpy(), strict=True))
            report("scoring", len(own), math.ceil(len(order) / group.size()))
    gathered: list[dict[int, NDArray[np.float32]]] = [{}] * group.size()
    dist.all_gather_object(gathered, own, group=group)
    found = {number: row for part in gathered for number, row in part.items()}
    # An example with fewer choices than others of its batch has -inf for the rest.
    scores = [row[row != -np.inf] if row.ndim else row for _, row in sorted(found.items())]
    if not all(np.isfinite(row).all() for row in scores):
        raise TrainingError(
            f"{task.name}: a score is not a finite number; lower optimizer.learning_rate, or use "
            "training.precision bf16 or fp32"
        )
    is_score = head_shape(task)[0] == "score"
    predictions = [_within(row, task.score_range) if is_score else row.argmax() for row in scores]
    return Judged(scores, np.array(predictions), split.targets)


def judge_splits(
    evaluate: Evaluate,
    splits: Mapping[str, EncodedSplit],
    task: TaskConfig,
    batch_size: int,
    group: ProcessGroup,
    report: Report = silent,
) -> dict[str, Judged]:
    """Judge several splits as `judge` does one."""
    return {
        name: judge(evaluate, split, task, batch_size, group, report)
        for name, split in splits.items()
    }


def validate(
    evaluate: Evaluate,
    splits: Mapping[str, EncodedSplit],
    task: TaskConfig,
    batch_size: int,
    group: ProcessGroup,
) -> dict[str, float]:
    """Return `validation_loss` of all examples of dev splits, and `SPLIT_METRIC` of each split.

    They are the same for every layout. Every process must call this.
    """
    kind, _ = head_shape(task)
    judged = judge_splits(evaluate, splits, task, batch_size, group)
    losses = []
    for one in judged.values():
        assert one.targets is not None, "dev splits have labels"
        scores, targets = map(torch.tensor, one.scores), torch.tensor(one.targets)
        losses += [float(task_losses(kind, *pair)) for pair in zip(scores, targets, strict=True)]
    row = {"validation_loss": float(np.mean(losses))}
    for name, metrics in metrics_of(judged, task).items():
        row |= {f"{name}_{metric}": value for metric, value in metrics.items()}
    return row


def metrics_of(judged: Mapping[str, Judged], task: TaskConfig) -> dict[str, dict[str, float]]:
    """Return the metrics of each split with labels, and of all dev splits together as `dev`."""
    pairs = {
        name: (one.targets, one.predictions)
        for name, one in judged.items()
        if one.targets is not None
    }
    return score_splits(task, pairs)


def describe(task: TaskConfig, scores: Scores) -> Iterator[dict[str, Any]]:
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
