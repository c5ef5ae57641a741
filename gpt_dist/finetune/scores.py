"""Compute the metrics of a task from targets and predictions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from gpt_dist.config import TaskConfig
from gpt_dist.data.tasks.reading import DEV

Pair = tuple[NDArray[Any], NDArray[Any]]
"""Targets and predictions."""


def score_splits(task: TaskConfig, splits: Mapping[str, Pair]) -> dict[str, dict[str, float]]:
    """Return the metrics of each split, and of all dev splits together under `dev`."""
    scores = {name: score(task, *pair) for name, pair in splits.items()}
    dev = [pair for name, pair in splits.items() if name.startswith(DEV)]
    if DEV not in splits and dev:
        scores[DEV] = score(task, *(np.concatenate(part) for part in zip(*dev, strict=True)))
    return scores


def score(task: TaskConfig, targets: NDArray[Any], predictions: NDArray[Any]) -> dict[str, float]:
    """Return metrics of at least one example by name, task.metric among them, from -1 to 1.

    Classes and choices, given by number, have accuracy, and f1 (class 1 is positive) or matthews
    if that is task.metric. Scores have pearson and spearman. A correlation is 0 if targets or
    predictions do not vary.
    """
    vary = np.ptp(targets) and np.ptp(predictions)
    if task.metric in ("pearson", "spearman"):
        pair = targets.astype(np.float64), predictions.astype(np.float64)
        correlations = {"pearson": pearsonr, "spearman": spearmanr}
        return {
            name: float(correlation(*pair).statistic) if vary else 0.0
            for name, correlation in correlations.items()
        }
    scores = {"accuracy": float(accuracy_score(targets, predictions))}
    if task.metric == "f1":
        scores["f1"] = float(f1_score(targets, predictions, zero_division=0.0))
    if task.metric == "matthews":
        scores["matthews"] = float(matthews_corrcoef(targets, predictions)) if vary else 0.0
    return scores
