"""Test the learning-rate schedule and the choice of parameters that decay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gpt_dist.config import OptimizerConfig, ResolvedScheduleConfig
from gpt_dist.model.adamw import build_optimizer
from gpt_dist.train.optimizer import learning_rate


def test_the_papers_schedule():
    schedule = ResolvedScheduleConfig(warmup_steps=2000, decay_steps=10_000)
    rate = [learning_rate(step, 2.5e-4, schedule) for step in range(1, 10_001)]
    assert rate[0] == pytest.approx(2.5e-4 / 2000)
    assert rate[1999] == 2.5e-4
    assert rate[5999] == pytest.approx(1.25e-4)
    assert rate[-1] == pytest.approx(0, abs=1e-18)


def test_the_schedule_is_transformers_cosine():
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = transformers.get_cosine_schedule_with_warmup(optimizer, 10, 100)
    schedule = ResolvedScheduleConfig(warmup_steps=10, decay_steps=100)
    for step in range(100):
        expected = theirs.get_last_lr()[0]
        ours = 0.0 if step == 0 else learning_rate(step, 1e-3, schedule)
        assert math.isclose(ours, expected, rel_tol=1e-12, abs_tol=1e-18), step
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(("shape", "middle", "end"), [("linear", 0.5, 0), ("constant", 1, 1)])
def test_other_shapes(shape, middle, end):
    schedule = ResolvedScheduleConfig(warmup_steps=0, decay_steps=10, shape=shape)
    assert learning_rate(5, 1.0, schedule) == pytest.approx(middle)
    assert learning_rate(10, 1.0, schedule) == pytest.approx(end)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_a_run_shorter_than_its_warm_up_only_warms_up(shape):
    schedule = ResolvedScheduleConfig(warmup_steps=100, decay_steps=10, shape=shape)
    assert [learning_rate(step, 1.0, schedule) for step in (1, 10)] == [0.01, 0.1]
    schedule = ResolvedScheduleConfig(warmup_steps=10, decay_steps=10, shape=shape)
    assert [learning_rate(step, 1.0, schedule) for step in (1, 10)] == [0.1, 1]


@pytest.mark.parametrize(("shape", "after"), [("cosine", 0), ("linear", 0), ("constant", 1)])
def test_the_rate_stays_where_the_decay_ends(shape, after):
    for warmup_steps in (0, 4, 5):
        schedule = ResolvedScheduleConfig(warmup_steps=warmup_steps, decay_steps=5, shape=shape)
        assert [learning_rate(step, 1.0, schedule) for step in (6, 7, 100)] == [after] * 3


def test_a_constant_rate_does_not_need_a_decay():
    schedule = ResolvedScheduleConfig(warmup_steps=4, decay_steps=2, shape="constant")
    assert [learning_rate(step, 1.0, schedule) for step in (2, 4, 5, 9)] == [0.5, 1, 1, 1]


def test_biases_and_gains_do_not_decay():
    module = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    decayed, others = build_optimizer(
        module.parameters(), OptimizerConfig(weight_decay=0.5)
    ).param_groups
    assert decayed["weight_decay"] == 0.5
    assert others["weight_decay"] == 0
    assert {tuple(p.shape) for p in decayed["params"]} == {(3, 4), (4, 4)}
    assert all(p.dim() == 1 for p in others["params"])
    assert len(others["params"]) == 3
