"""A flipped bit in one copy of weights or moments: found, the rank named, nothing saved."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch

from gpt_dist.checkpoint.folder import steps
from gpt_dist.errors import TrainingError
from gpt_dist.rendezvous import Launch
from tests.checkpoints import SHORT, layout, refusal
from tests.distributed.test_layouts import SMALL
from tests.runs import start, train

if TYPE_CHECKING:
    from gpt_dist.train.engine import Engine

SPLIT, WHOLE = (
    "model.blocks.0.attention.query_key_value.weight",
    "model.blocks.1.feed_forward_norm.weight",
)
KINDS = ("layers", "weight", "exp_avg", "exp_avg_sq")


def flip(engine: Engine, kind: str, name: str) -> bool:
    """Flip a bit of a tensor of this process; return whether it holds it."""
    tensor = dict(engine._engine.module.named_parameters())[name].detach()
    if kind != "layers":
        fragment = engine.state()._fragments.get(name)
        tensor = fragment.tensors()[kind] if fragment else tensor.new_empty(0)
    bits = tensor.view(-1).view(torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32)
    bits[-1:] ^= 1 << 3
    return len(bits) > 0


def flip_one_by_one(
    launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path
) -> dict[tuple[str, str, int], str]:
    """Make two steps; flip a bit of each kind on each rank and back; return what a check says.

    Those that the rank does not hold are left out.
    """
    from gpt_dist.data.batches import TokenBatch

    engine = start(launch, device, overrides, directory).engine
    draws = torch.Generator().manual_seed(launch.rank // overrides["parallel.tensor_parallel_size"])
    for _ in range(2):
        batches = []
        for _ in range(engine._engine.gradient_accumulation_steps()):
            tokens = torch.randint(0, 400, (2, 33), generator=draws)
            batches.append(TokenBatch(tokens[:, :-1], tokens[:, 1:]))
        engine.train_batch(batches, 1e-3)
    engine.state().check_copies()
    said = {}
    for kind, name, rank in product(KINDS, (SPLIT, WHOLE), range(launch.world_size)):
        held = launch.rank == rank and flip(engine, kind, name)
        try:
            engine.state().check_copies()
            said[kind, name, rank] = ""
        except TrainingError as error:
            said[kind, name, rank] = str(error)
        if launch.rank == rank:
            flip(engine, kind, name)
            said[kind, name, rank] += "" if held else "not held"
    engine.state().check_copies()
    return said


LAYOUTS = [
    *((0, 1, "bf16"), (0, 2, "fp32"), (0, 2, "bf16"), (1, 1, "fp32"), (1, 2, "bf16")),
    *((2, 1, "bf16"), (2, 2, "fp32")),
]


@pytest.mark.row(31, case="ZeRO {zero_stage}, tensor parallel {tensor_parallel_size}, {precision}")
@pytest.mark.parametrize(("zero_stage", "tensor_parallel_size", "precision"), LAYOUTS)
def test_the_copy_that_differs_is_named(
    process_group, token_folder, tmp_path, zero_stage, tensor_parallel_size, precision
):
    settings = SMALL | layout(zero_stage, tensor_parallel_size)
    settings |= {"data.path": token_folder, "training.precision": precision}
    results = process_group(4).run(flip_one_by_one, settings, tmp_path)
    tested = 0
    for (kind, name, rank), own in ((key, results[key[2]][key]) for key in results[0]):
        if own == "not held":
            continue
        peers = {rank - rank % 2, rank - rank % 2 + 1}
        replicas = {one for one in range(4) if one % tensor_parallel_size == rank % 2}
        if zero_stage == 0 or kind == "layers":
            # Three or more copies outvote one; of two, either may be wrong.
            alone = tensor_parallel_size == 1 or name == WHOLE
            named = {rank} if alone else replicas
        else:
            named = peers if tensor_parallel_size == 2 and name == WHOLE else set()
        tested += bool(named)
        for result in results:
            found = result[kind, name, rank].removesuffix("not held")
            if named:
                ranks = ", ".join(map(str, sorted(named)))
                assert f"{name} on rank(s) {ranks} is not what other" in found, (kind, rank)
            else:
                assert found == "", (kind, name, rank)
    assert tested >= 8


@pytest.mark.parametrize(
    ("zero_stage", "tensor_parallel_size", "precision"),
    [(0, 2, "bf16"), (1, 2, "fp32"), (2, 1, "fp32"), (2, 2, "bf16"), (3, 2, "fp32")],
)
def test_copies_that_nothing_disturbed_are_the_same(
    process_group, token_folder, tmp_path, zero_stage, tensor_parallel_size, precision
):
    settings = SMALL | layout(zero_stage, tensor_parallel_size) | {"data.path": token_folder}
    settings |= {"training.check_replicas": 1, "model.dropout": 0.1, "training.max_steps": 3}
    settings |= {"training.precision": precision}
    settings |= {"parallel.sequence_parallel": tensor_parallel_size == 2}
    assert process_group(4).run(refusal, settings, tmp_path) == [""] * 4


def train_with_a_flip(
    launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path
) -> str:
    """Train with a bit of a weight flipped on rank 1 after step 3; return the refusal."""
    from gpt_dist.train.loop import Trainer

    make_step = Trainer._train

    def step_and_flip(trainer: Trainer, step: int, batch: Any) -> None:
        make_step(trainer, step, batch)
        if step == 3 and launch.rank == 1:
            flip(trainer.engine, "layers", SPLIT)

    with mock.patch.object(Trainer, "_train", step_and_flip):
        return refusal(launch, device, overrides, directory)


@pytest.mark.row(31, case="every {every} steps, before a save")
@pytest.mark.parametrize(("every", "noticed"), [(3, 3), (100, 4)])
def test_the_run_ends_before_it_saves_the_flipped_bit(
    process_group, token_folder, tmp_path, every, noticed
):
    settings = SHORT | layout(0, 1) | {"training.max_steps": 8, "checkpoint.interval": 2}
    settings |= {"data.path": token_folder, "training.check_replicas": every}
    for message in process_group(2).run(train_with_a_flip, settings, tmp_path):
        assert f"{SPLIT} on rank(s) 0, 1 is not what other processes hold" in message
    assert steps(tmp_path / "checkpoints") == [2]
    settings |= {"training.max_steps": noticed}
    process_group(2).run(train, settings, tmp_path)
    assert steps(tmp_path / "checkpoints")[0] == noticed
