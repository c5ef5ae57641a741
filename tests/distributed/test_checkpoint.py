"""Checkpoints: a resumed run is the undisturbed one; any layout opens any other's."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_dist.checkpoint.folder import newest_valid
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.errors import CheckpointError
from gpt_dist.rendezvous import Launch
from tests.distributed.test_layouts import SMALL
from tests.rows import assert_same, read_rows
from tests.runs import start, train

STEPS = 8
RUN = SMALL | {
    "training.max_steps": STEPS,
    "schedule.decay_steps": STEPS,
    "validation.interval": STEPS // 2,
    "checkpoint.interval": STEPS // 2,
}
# Stage, data-parallel and tensor-parallel size.
LAYOUTS = [(stage, data, tensor) for stage, data, tensor in product(range(4), (1, 2), (1, 2))]


def layout(zero_stage: int, tensor_parallel_size: int) -> dict[str, Any]:
    return {
        "parallel.zero_stage": zero_stage,
        "parallel.tensor_parallel_size": tensor_parallel_size,
    }


def saved_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint that training depends on, whole."""
    checkpoint = Checkpoint.open(path)
    checkpoint.verify()
    return {
        f"{kind}/{name}": checkpoint.read(kind, name)
        for name in checkpoint.manifest.parameters
        for kind in ("weight", "exp_avg", "exp_avg_sq")
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_resumed_run_ends_with_the_same_bits(
    process_group, token_folder, tmp_path, zero_stage, tensor_parallel_size, precision
):
    settings = RUN | {"data.path": token_folder, "model.dropout": 0.1}
    settings |= layout(zero_stage, tensor_parallel_size) | {"training.precision": precision}
    group = process_group(2)
    group.run(train, settings, tmp_path / "whole")
    group.run(train, settings | {"training.max_steps": STEPS // 2}, tmp_path / "halves")
    group.run(train, settings, tmp_path / "halves")
    assert_same(read_rows(tmp_path / "halves"), read_rows(tmp_path / "whole"), 0.0)
    whole, halves = (
        saved_tensors(tmp_path / name / f"checkpoints/step-{STEPS:08d}")
        for name in ("whole", "halves")
    )
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def load_and_save_again(
    launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path
) -> None:
    """Resume at the last step: nothing is trained, and the state is written as it was loaded."""
    run = start(launch, device, overrides, directory)
    run.saver.save(99)
    run.saver.wait()


# Each layout once as source and once as target, in an order that mixes all three sizes.
PAIRS = list(zip(LAYOUTS, random.Random(3).sample(LAYOUTS, len(LAYOUTS)), strict=True))


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_any_layout_opens_any_other_exactly(process_group, token_folder, tmp_path, source, target):
    settings = RUN | {"data.path": token_folder, "training.max_steps": 2}
    stage, data, tensor = source
    process_group(data * tensor).run(train, settings | layout(stage, tensor), tmp_path)
    stage, data, tensor = target
    process_group(data * tensor).run(
        load_and_save_again, settings | layout(stage, tensor), tmp_path
    )
    before, after = (saved_tensors(tmp_path / f"checkpoints/step-{step:08d}") for step in (2, 99))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    manifests = [Checkpoint.open(path).manifest for path in (tmp_path / "checkpoints").iterdir()]
    assert {manifest.optimizer_steps for manifest in manifests} == {2}


def test_losses_go_on_in_another_layout(process_group, token_folder, tmp_path):
    settings = RUN | {"data.path": token_folder}
    process_group(1).run(train, settings, tmp_path / "whole")
    halves = tmp_path / "halves"
    process_group(2).run(train, settings | layout(3, 2) | {"training.max_steps": 4}, halves)
    process_group(2).run(train, settings | layout(1, 1), halves)
    assert_same(read_rows(halves), read_rows(tmp_path / "whole"), 1e-5)


@pytest.fixture(scope="module")
def finished(process_group, token_folder, tmp_path_factory) -> Path:
    """The directory of a run with checkpoints at steps 2 and 4."""
    directory = tmp_path_factory.mktemp("finished")
    settings = RUN | {"training.max_steps": 4, "checkpoint.interval": 2}
    process_group(2).run(train, settings | {"data.path": token_folder}, directory)
    return directory


@pytest.fixture
def checkpoints(finished, tmp_path) -> Path:
    """A copy of its checkpoints, to be damaged."""
    return shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")


def test_random_damage_is_found_and_the_one_before_is_used(checkpoints):
    rng = random.Random(0)
    newest = checkpoints / "step-00000004"
    files = sorted(newest.iterdir())
    for _ in range(100):
        file = rng.choice(files)
        content = file.read_bytes()
        damaged = bytearray(content)
        if rng.random() < 0.5:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        else:
            del damaged[rng.randrange(len(damaged)) :]
        file.write_bytes(damaged)
        said: list[str] = []
        checkpoint = newest_valid(checkpoints, said.append)
        assert checkpoint is not None
        if checkpoint.manifest.step == 4:
            # JSON has bits that carry no meaning: white space, and the case of an escape.
            assert file.name == "manifest.json"
            assert json.loads(bytes(damaged)) == json.loads(content)
        else:
            assert str(newest) in said[0]
        file.write_bytes(content)


def test_no_fresh_start_where_every_checkpoint_is_damaged(checkpoints):
    for path in checkpoints.glob("*/rank-00000.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of 2 checkpoints is whole"):
        newest_valid(checkpoints, print)


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("name", ["manifest.json", "rank-00000.safetensors"])
def test_a_planted_pickle_never_runs(checkpoints, name, monkeypatch):
    monkeypatch.chdir(checkpoints)
    (checkpoints / "step-00000004" / name).write_bytes(pickle.dumps(Bomb()))
    checkpoint = newest_valid(checkpoints, print)
    assert checkpoint is not None
    assert checkpoint.manifest.step == 2
    assert not (checkpoints / "exploded").exists()


def refusal(
    launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path
) -> str:
    try:
        train(launch, device, overrides, directory)
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"run.seed": 1}, "run.seed: 42 there, 1 here"),
        ({"model.num_layers": 3}, "model.num_layers: 2 there, 3 here"),
        ({"training.global_batch_size": 16}, "training.global_batch_size: 8 there, 16 here"),
        ({"training.resume": "absent"}, "absent/manifest.json: No such file"),
    ],
)
def test_another_run_is_refused_on_every_rank(
    process_group, token_folder, finished, tmp_path, change, expected
):
    directory = shutil.copytree(finished, tmp_path / "run")
    settings = RUN | {"data.path": token_folder} | change
    for message in process_group(2).run(refusal, settings, directory):
        assert expected in message
    assert read_rows(directory) == read_rows(finished)


def test_keeping_the_newest_and_every_nth(process_group, token_folder, tmp_path):
    settings = RUN | {"data.path": token_folder, "checkpoint.interval": 1}
    settings |= {"checkpoint.keep": 2, "checkpoint.keep_every": 3}
    process_group(1).run(train, settings, tmp_path)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}" for step in (3, 6, 7, 8)]


def test_going_back_leaves_the_other_branch_behind(process_group, token_folder, finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "run")
    back = {"training.resume": directory / "checkpoints/step-00000002", "training.max_steps": 3}
    process_group(2).run(train, RUN | {"data.path": token_folder} | back, directory)
    names = {path.name for path in (directory / "checkpoints").iterdir()}
    assert names == {"step-00000002", "step-00000003", "step-00000004.superseded"}
    fresh = {"training.resume": "never", "training.max_steps": 1}
    process_group(2).run(train, RUN | {"data.path": token_folder} | fresh, directory)
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["step-00000001"]
    assert (directory / "earlier-1/checkpoints/step-00000003").is_dir()
