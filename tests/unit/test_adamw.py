"""AdamW on fp32 masters, beside torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gpt_dist.config import OptimizerConfig
from gpt_dist.model import adamw
from gpt_dist.model.adamw import MasterAdamW, build_optimizer

CONFIG = OptimizerConfig(weight_decay=0.1)
SHAPES = ((6, 4), (4,), (5, 3), (7,))


def weights_of(dtype: torch.dtype) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]


def ready(weights: list[nn.Parameter], *, found_inf: float = 0.0) -> MasterAdamW:
    optimizer = MasterAdamW(weights, CONFIG)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(found_inf)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    return optimizer


@pytest.mark.parametrize("part_size", [1, 24, 10**6])
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_are_torchs_on_fp32(monkeypatch, dtype, micro_batches, part_size):
    monkeypatch.setattr(adamw, "PART_SIZE", part_size)
    weights = weights_of(dtype)
    optimizer = ready(weights)
    expected = [nn.Parameter(weight.detach().float()) for weight in weights]
    theirs = build_optimizer(expected, CONFIG)
    for group in theirs.param_groups:
        group["lr"] = 0.01
    for _ in range(3):
        for _ in range(micro_batches):
            for weight, other in zip(weights, expected, strict=True):
                gradient = torch.randn(weight.shape).to(dtype)
                if dtype == torch.float32 and weight.grad is not None:
                    weight.grad += gradient
                else:
                    weight.grad = gradient.clone()
                half = gradient.float() / 2
                other.grad = half if other.grad is None else other.grad + half
            if micro_batches > 1:
                optimizer.collect()
        optimizer.step()
        theirs.step()
        theirs.zero_grad()
        assert all(one.grad is None for one in [*weights, *optimizer.masters])
        for weight, master, other in zip(weights, optimizer.masters, expected, strict=True):
            torch.testing.assert_close(master, other, rtol=1e-6, atol=1e-7)
            assert torch.equal(weight, master.to(dtype))


def test_a_step_with_infinity_changes_nothing():
    weights = weights_of(torch.bfloat16)
    optimizer = ready(weights, found_inf=1.0)
    before = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.grad = torch.full_like(weight, torch.inf)
    optimizer.step()
    assert all(map(torch.equal, weights, before))
    assert all(state["step"] == 0 for state in optimizer.state.values())
    assert all(weight.grad is None for weight in weights)
