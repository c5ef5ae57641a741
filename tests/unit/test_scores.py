"""Test the metrics of tasks against known values and formulas, and on constant predictions."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest

from gpt_dist.config import TaskConfig
from gpt_dist.finetune.predict import Judged, describe, metric_rows, score


def task(metric: str, **keys: Any) -> TaskConfig:
    given = {"name": "t", "form": "classification", "format": "tsv", "splits": {}} | keys
    return TaskConfig.model_validate_json(json.dumps(given | {"metric": metric}), strict=True)


BINARY = {"labels": ["no", "yes"]}
# 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
TARGETS = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
PREDICTIONS = np.array([1, 1, 1, 0, 0, 1, 0, 0, 0, 0])


def test_accuracy_of_classes_and_of_choices():
    three = task("accuracy", labels=["a", "b", "c"])
    assert score(three, np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0])) == {"accuracy": 0.75}
    choices = task("accuracy", form="multiple_choice")
    assert score(choices, np.array([3, 1]), np.array([0, 1])) == {"accuracy": 0.5}


def test_f1_takes_class_one_for_the_positive():
    assert score(task("f1", **BINARY), TARGETS, PREDICTIONS) == {
        "accuracy": pytest.approx(7 / 10),
        "f1": pytest.approx(2 * 3 / (2 * 3 + 1 + 2)),
    }


def test_matthews_of_two_classes():
    expected = (3 * 4 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (4 + 1) * (4 + 2))
    assert score(task("matthews", **BINARY), TARGETS, PREDICTIONS) == {
        "accuracy": pytest.approx(7 / 10),
        "matthews": pytest.approx(expected),
    }


# The examples of Wikipedia's article on Spearman's coefficient: IQ, hours of television a week.
IQ = np.array([106, 100, 86, 101, 99, 103, 97, 113, 112, 110], dtype=np.float32)
HOURS = np.array([7, 27, 2, 50, 28, 29, 20, 12, 6, 17], dtype=np.float64)


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_scores_have_both_correlations(metric):
    found = score(task(metric), IQ, HOURS)
    assert found == {
        "pearson": pytest.approx(-73.6 / math.sqrt(592.1 * 1855.6)),
        "spearman": pytest.approx(-29 / 165),
    }
    assert all(type(value) is float for value in found.values())


def test_order_alone_makes_spearman_perfect_and_a_line_makes_pearson_so():
    targets = np.array([0.0, 1.0, 2.0, 5.0])
    curved = score(task("spearman"), targets, np.exp(targets))
    assert curved["spearman"] == pytest.approx(1)
    assert curved["pearson"] < 0.95
    assert score(task("pearson"), targets, 3 - 2 * targets)["pearson"] == pytest.approx(-1)


@pytest.mark.parametrize("metric", ["f1", "matthews", "pearson", "spearman"])
@pytest.mark.parametrize("targets", [[0, 1, 1], [0, 0, 0], [1]])
def test_predictions_that_do_not_vary_score_nothing_without_a_warning(metric, targets):
    labels = BINARY if metric in ("f1", "matthews") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score(task(metric, **labels), np.array(targets), np.zeros(len(targets), np.int64))
    assert found[metric] == 0.0


def test_a_score_is_shown_within_its_range():
    given = [np.float32(score) for score in (-0.2, 3.5, 5.6)]
    bounded = task("pearson", form="similarity", score_range=(0, 5))
    assert [one["score"] for one in describe(bounded, given)] == [0, 3.5, 5]
    assert next(describe(task("pearson", form="similarity"), given))["score"] == given[0]


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (["dev_b"], {"dev_b": (1, 0)}),
        (["dev_a", "dev_b"], {"dev_a": (3, 1), "dev_b": (1, 0), "dev": (4, 0.75)}),
        (["dev", "dev_b"], {"dev": (3, 1), "dev_b": (1, 0)}),
        (["test"], {"test": (2, 1)}),
    ],
)
def test_only_several_dev_splits_have_a_row_together(splits, expected):
    counts = {"dev_a": 3, "dev": 3, "dev_b": 1, "test": 2}
    judged = {
        name: Judged([], np.full(counts[name], name != "dev_b"), np.ones(counts[name]))
        for name in splits
    }
    rows = metric_rows(judged, task("accuracy", **BINARY))
    assert {row["split"]: (row["examples"], row["accuracy"]) for row in rows} == expected
