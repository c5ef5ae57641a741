"""Steps whose gradient is not finite: every process skips them, and too many end the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_dist.rendezvous import Launch
from gpt_dist.topology import form_groups


class Poisoned(torch.nn.Module):
    """An objective that turns not finite on chosen calls of one process."""

    def __init__(self, objective: torch.nn.Module, calls: set[int]) -> None:
        super().__init__()
        self.objective = objective
        self.calls = calls
        self.count = 0

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.count += 1
        loss = self.objective(tokens, labels)
        return loss * float("nan") if self.count in self.calls else loss


def train_with_a_poisoned_step(
    launch: Launch, device: torch.device, overrides: list[str], poisoned_rank: int
) -> list[tuple[bool, bool]]:
    """Three steps, the second poisoned: whether each was applied, and whether weights changed."""
    from deepspeed.utils import safe_get_full_fp32_param

    from gpt_dist.config.file import load_config
    from gpt_dist.config.resolution import resolve
    from gpt_dist.model import build_model
    from gpt_dist.train.engine import Engine
    from gpt_dist.train.objective import LanguageModelObjective

    small = ["model.hidden_size=16", "model.num_heads=2", "model.sequence_length=8"]
    config = load_config(
        Path("configs/pretrain/tiny.yaml"),
        [*small, "training.global_batch_size=4", "training.micro_batch_size=1", *overrides],
    )
    config = resolve(config, launch.world_size, vocab_size=200, samples=100)
    topology = form_groups(launch, device, config.parallel.tensor_parallel_size)
    torch.manual_seed(0)
    objective = LanguageModelObjective(build_model(config.model, topology.tensor_parallel_group))
    accumulation = 4 // topology.data_parallel_size
    calls = {accumulation + 1} if launch.rank == poisoned_rank else set()
    engine = Engine(Poisoned(objective, calls), config, topology)
    watched = objective.model.blocks[0].feed_forward_norm.bias
    outcomes = []
    for step in range(3):
        before = _value(watched, safe_get_full_fp32_param)
        update: Any = None
        for part in range(accumulation):
            tokens = torch.arange(8)[None] + step + part
            engine.backward(engine.forward(tokens, tokens + 1))
            update = engine.step(1e-3)
            assert (update is None) == (part < accumulation - 1)
        after = _value(watched, safe_get_full_fp32_param)
        outcomes.append((update.applied, not torch.equal(before, after)))
    return outcomes


def _value(parameter: torch.Tensor, get_full: Any) -> torch.Tensor:
    full = get_full(parameter)
    return (parameter.detach() if full is None else full).clone()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
def test_a_gradient_that_is_not_finite_is_skipped_everywhere(
    process_group, zero_stage, tensor_parallel_size, precision
):
    overrides = [
        f"parallel.zero_stage={zero_stage}",
        f"parallel.tensor_parallel_size={tensor_parallel_size}",
        f"training.precision={precision}",
    ]
    for rank, outcomes in enumerate(process_group(2).run(train_with_a_poisoned_step, overrides, 1)):
        assert outcomes == [(True, True), (False, False), (True, True)], f"rank {rank}"
