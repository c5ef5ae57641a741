"""Steps whose gradient is not finite: every process skips them, and too many end the run."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_dist.checkpoint.folder import steps
from gpt_dist.data.batches import TokenBatch
from gpt_dist.model import GPT
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import form_groups
from gpt_dist.train.objective import LanguageModelObjective
from tests.checkpoints import refusal
from tests.distributed.test_layouts import SMALL


class Poisoned(LanguageModelObjective):
    """An objective whose loss, or gradient of one parameter, is not finite in chosen calls."""

    def __init__(self, model: GPT, poisons: dict[int, str], factor: float = math.nan) -> None:
        super().__init__(model)
        self.poisons = poisons
        self.factor = factor
        self.count = 0
        replicated = model.blocks[0].feed_forward_norm.bias
        replicated.register_hook(lambda gradient: self.poison(gradient, "gradient"))

    def forward(self, batch: TokenBatch[torch.Tensor]) -> torch.Tensor:
        self.count += self.training
        result = super().forward(batch)
        return self.poison(result, "loss") if self.training else result

    def poison(self, tensor: torch.Tensor, kind: str) -> torch.Tensor:
        return tensor * self.factor if self.poisons.get(self.count) == kind else tensor


Outcome = tuple[bool, bool, tuple[int, ...]]


def train_with_poisoned_steps(
    launch: Launch, device: torch.device, overrides: list[str], factor: float = math.nan
) -> list[Outcome]:
    """Make five steps: on the last rank, NaN or infinity is in the second's loss and in a
    parameter's gradient of the fourth.

    Returns for each step whether it was applied, whether weights, moments or loss changed, and the
    named ranks.
    """
    from gpt_dist.config.file import load_config
    from gpt_dist.config.resolution import resolve
    from gpt_dist.model import GPT
    from gpt_dist.train.engine import Engine

    small = ["model.hidden_size=16", "model.num_heads=2", "model.sequence_length=8"]
    config = load_config(
        Path("configs/pretrain/tiny.yaml"),
        [*small, "training.global_batch_size=4", "training.micro_batch_size=1", *overrides],
    )
    config = resolve(config, launch.world_size, vocab_size=200, samples=100)
    topology = form_groups(launch, device, config.parallel.tensor_parallel_size)
    torch.manual_seed(0)
    model = GPT(config.model, topology.tensor_parallel_group)
    accumulation = 4 // topology.data_parallel_size
    poisons = {accumulation + 1: "loss", 3 * accumulation + 1: "gradient"}
    is_last = launch.rank == launch.world_size - 1
    engine = Engine(Poisoned(model, poisons if is_last else {}, factor), config, topology)

    def state(tokens: torch.Tensor) -> list[torch.Tensor]:
        fragments = [fragment.tensors().values() for fragment in engine.state().owned.values()]
        return [part.clone() for parts in fragments for part in parts] + [
            engine.evaluate(TokenBatch(tokens, tokens))
        ]

    outcomes = []
    for step in range(5):
        tokens = torch.arange(8)[None] + step
        before = state(tokens)
        parts = [TokenBatch(tokens + part, tokens + part + 1) for part in range(accumulation)]
        loss, update = engine.train_batch(parts, 1e-3)
        assert math.isfinite(loss) == (step != 1)
        changed = not all(map(torch.equal, before, state(tokens)))
        outcomes.append((update.applied, changed, update.bad_ranks))
    updates, _ = engine.state().counters()
    assert updates == 3
    return outcomes


def with_fp16(launch: Launch, device: torch.device, overrides: list[str]) -> list[Outcome]:
    """Train where DeepSpeed accepts fp16, which the CPU has, slowly."""
    from deepspeed.accelerator import get_accelerator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
        return train_with_poisoned_steps(launch, device, overrides)


ZERO = [(0, "false"), *((stage, offload) for stage in (1, 2, 3) for offload in ("false", "true"))]


@pytest.mark.row(15, case="NaN, ZeRO {zero_stage}, tensor parallel {tensor_parallel_size}")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("zero_stage", "offload"), ZERO)
@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
def test_a_gradient_that_is_not_finite_is_skipped_everywhere(
    process_group, tensor_parallel_size, zero_stage, offload, precision
):
    overrides = [
        f"parallel.zero_stage={zero_stage}",
        f"parallel.tensor_parallel_size={tensor_parallel_size}",
        f"parallel.offload_optimizer={offload}",
        f"training.precision={precision}",
    ]
    for rank, outcomes in enumerate(process_group(2).run(with_fp16, overrides)):
        assert outcomes[::2] == [(True, True, ())] * 3, f"rank {rank}"
        for applied, changed, named in outcomes[1::2]:
            assert not applied, f"rank {rank}"
            assert not changed, f"rank {rank}"
            assert 1 in named, f"rank {rank}"


@pytest.mark.row(15, case="infinity, ZeRO {zero_stage}")
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_an_infinite_gradient_is_skipped_everywhere(process_group, zero_stage):
    overrides = [f"parallel.zero_stage={zero_stage}"]
    for outcomes in process_group(2).run(train_with_poisoned_steps, overrides, math.inf):
        assert outcomes[::2] == [(True, True, ())] * 3
        for applied, changed, named in outcomes[1::2]:
            assert (applied, changed, 1 in named) == (False, False, True)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_the_ranks_that_share_a_gradient_are_named(process_group, zero_stage):
    overrides = ["parallel.tensor_parallel_size=2", f"parallel.zero_stage={zero_stage}"]
    for outcomes in process_group(4).run(with_fp16, overrides):
        assert outcomes[3] == (False, False, (1, 3))


def poisoned_run(
    launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path, first: int
) -> str:
    """Pre-train with NaN in the loss from step `first` on; return what the run is refused with."""
    import gpt_dist.train.pretrain

    objective = partial(Poisoned, poisons=dict.fromkeys(range(first, 99), "loss"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt_dist.train.pretrain, "LanguageModelObjective", objective)
        return refusal(launch, device, overrides, directory)


@pytest.mark.parametrize(
    ("max_steps", "first", "saved", "message"),
    [
        (
            5,
            5,
            [4, 2],
            "step 5: the gradient is not finite on rank(s) 0, 1, the update is skipped "
            "(samples 32 to 39), as the last step; lower optimizer.learning_rate",
        ),
        pytest.param(
            30,
            5,
            [22, 20],
            "step 24: the gradient is not finite on rank(s) 0, 1, the update is "
            "skipped (samples 184 to 191), for the 20th time in a row; lower optimizer",
            marks=pytest.mark.row(16),
        ),
    ],
)
def test_a_run_that_ends_in_skipped_steps_fails(
    process_group, token_folder, tmp_path, max_steps, first, saved, message
):
    settings = SMALL | {"data.path": token_folder, "training.micro_batch_size": 4}
    settings |= {"training.max_steps": max_steps, "checkpoint.interval": 2, "checkpoint.keep": 2}
    for found in process_group(2).run(poisoned_run, settings, tmp_path, first):
        assert found.startswith(message)
    assert steps(tmp_path / "checkpoints") == saved
