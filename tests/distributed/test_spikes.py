"""training.on_spike: a loss that leaps, or a gradient that is not finite, ends the run unsaved."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_dist.checkpoint.folder import steps
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.data.batches import TokenBatch
from gpt_dist.model import GPT
from gpt_dist.rendezvous import Launch
from gpt_dist.train.ledger import LEDGER_NAME
from gpt_dist.train.objective import LanguageModelObjective
from tests.checkpoints import refusal, saved_tensors
from tests.distributed.test_layouts import SMALL
from tests.rows import assert_same, read_rows


class Scaled(LanguageModelObjective):
    """An objective whose loss is multiplied in a training step, and in some after it."""

    def __init__(self, model: GPT, step: int, factor: float, count: int = 1) -> None:
        super().__init__(model)
        self.calls, self.scaled, self.factor = 0, range(step, step + count), factor

    def forward(self, batch: TokenBatch[torch.Tensor]) -> torch.Tensor:
        self.calls += self.training
        result = super().forward(batch)
        is_scaled = self.training and self.calls in self.scaled
        return result * self.factor if is_scaled else result


def scaled_run(
    launch: Launch,
    device: torch.device,
    overrides: dict[str, Any],
    directory: Path,
    step: int,
    factor: float,
    count: int = 1,
) -> str:
    """Pre-train, the loss of the last rank multiplied in some steps; return the refusal."""
    import gpt_dist.train.pretrain

    own = factor if launch.rank == launch.world_size - 1 else 1.0
    with pytest.MonkeyPatch.context() as patch:
        objective = partial(Scaled, step=step, factor=own, count=count)
        patch.setattr(gpt_dist.train.pretrain, "LanguageModelObjective", objective)
        return refusal(launch, device, overrides, directory)


@pytest.fixture
def settings(token_folder) -> dict[str, Any]:
    return SMALL | {
        "data.path": token_folder,
        "training.micro_batch_size": 4,
        "training.max_steps": 80,
        "training.on_spike": "stop",
        "checkpoint.interval": 10,
        "validation.interval": 80,
    }


@pytest.mark.row(33, case="a leap, `stop`")
def test_a_leap_of_the_loss_ends_the_run(process_group, settings, tmp_path):
    for message in process_group(2).run(scaled_run, settings, tmp_path, 75, 5.0):
        assert message.startswith("step 75: the loss ")
        assert "is a spike, above " in message
        assert "(samples 592 to 599), and training.on_spike is stop" in message
    assert steps(tmp_path / "checkpoints") == [70, 60, 50]


def test_no_leap_ends_no_run(process_group, settings, tmp_path):
    assert process_group(2).run(scaled_run, settings, tmp_path, 75, 1.0) == ["", ""]
    assert read_rows(tmp_path)[-1]["step"] == 80


@pytest.mark.row(33, case="NaN, `stop`")
@pytest.mark.row(15, case="the samples are named")
@pytest.mark.parametrize(("zero_stage", "tensor_parallel_size"), [(0, 1), (2, 1), (0, 2)])
def test_a_gradient_that_is_not_finite_ends_the_run_and_its_samples_are_named(
    process_group, settings, tmp_path, zero_stage, tensor_parallel_size
):
    settings |= {"parallel.zero_stage": zero_stage, "training.micro_batch_size": 2}
    settings |= {"parallel.tensor_parallel_size": tensor_parallel_size}
    step = 1 + 4 * (8 // 4 if tensor_parallel_size == 1 else 4)  # the fifth; the call in it
    for message in process_group(2).run(scaled_run, settings, tmp_path, step, float("nan")):
        assert message.startswith("step 5: the gradient is not finite on rank(s) ")
        # Rank 1 has the second half of each part of 4 samples; tensor-parallel peers have all.
        own = "32 to 39" if tensor_parallel_size == 2 else "34 to 35, 38 to 39"
        assert f"the update is skipped (samples {own}), and training.on_spike is stop" in message
    assert steps(tmp_path / "checkpoints") == []


def rollback(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return settings | {"training.on_spike": "rollback", "model.dropout": 0.1} | changes


@pytest.mark.row(33, case="`rollback`, ZeRO {zero_stage}, {precision}")
@pytest.mark.parametrize(
    ("zero_stage", "tensor_parallel_size", "precision", "factor"),
    [
        (0, 1, "fp32", 5.0),
        (0, 2, "bf16", float("nan")),
        (1, 1, "bf16", 5.0),
        (2, 1, "fp32", float("nan")),
        (3, 1, "fp32", 5.0),
    ],
)
def test_a_run_that_went_back_is_the_run_without_the_samples(
    process_group, settings, tmp_path, zero_stage, tensor_parallel_size, precision, factor
):
    settings = rollback(settings, parallel__zero_stage=zero_stage, training__precision=precision)
    settings |= {"parallel.tensor_parallel_size": tensor_parallel_size}
    settings |= {"training.micro_batch_size": 4 * tensor_parallel_size}
    group, went_back = process_group(2), tmp_path / "went back"
    assert group.run(scaled_run, settings, went_back, 75, factor) == ["", ""]
    (row,) = [json.loads(line) for line in (went_back / LEDGER_NAME).read_text().splitlines()]
    assert (row["batch"], row["samples"], row["step"]) == (74, [592, 599], 75)
    assert row["checkpoint"] == 70
    # Anew with the ledger, and gone on from before and behind the samples.
    anew, before = tmp_path / "anew", tmp_path / "before"
    anew.mkdir()
    shutil.copy(went_back / LEDGER_NAME, anew)
    shutil.copytree(went_back, before)
    shutil.rmtree(before / "checkpoints/step-00000080")
    expected = saved_tensors(went_back / "checkpoints/step-00000080")
    for directory in (anew, before):
        assert group.run(scaled_run, settings, directory, 75, 1.0) == ["", ""]
        assert_same(read_rows(directory), read_rows(went_back), 0.0)
        found = saved_tensors(directory / "checkpoints/step-00000080")
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    manifest = Checkpoint(went_back / "checkpoints/step-00000080").manifest
    assert manifest.consumed_samples == 81 * 8


def test_a_run_without_its_ledger_does_not_go_on(process_group, settings, tmp_path):
    settings = rollback(settings)
    assert process_group(2).run(scaled_run, settings, tmp_path, 75, 5.0) == ["", ""]
    ledger = (tmp_path / LEDGER_NAME).read_text()
    for content, named in (("", "leaves out other samples"), ("{}", "cannot be read (batch: ")):
        (tmp_path / LEDGER_NAME).write_text(content)
        for message in process_group(2).run(
            scaled_run, settings | {"training.max_steps": 82}, tmp_path, 75, 1.0
        ):
            assert LEDGER_NAME in message
            assert named in message
    (tmp_path / LEDGER_NAME).write_text(ledger)
    settings |= {"training.max_steps": 82}
    assert process_group(2).run(scaled_run, settings, tmp_path, 75, 1.0) == ["", ""]


def test_a_run_does_not_go_back_for_ever(process_group, settings, tmp_path):
    arguments = rollback(settings), tmp_path, 75, float("nan"), 1000
    for message in process_group(2).run(scaled_run, *arguments):
        assert "the run went back to step 70 5 times; lower optimizer.learning_rate" in message
    batches = [json.loads(line)["batch"] for line in (tmp_path / LEDGER_NAME).open()]
    assert batches == [74, 70, 71, 72, 73]


def test_a_run_without_a_checkpoint_cannot_go_back(process_group, settings, tmp_path):
    for message in process_group(2).run(scaled_run, rollback(settings), tmp_path, 5, float("nan")):
        assert "there is no checkpoint to go back to yet" in message
