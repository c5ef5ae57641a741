"""Checkpoints: a resumed run is the undisturbed one; any layout opens any other's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.config.file import load_config
from gpt_dist.data.batches import TokenBatch
from gpt_dist.rendezvous import Launch
from tests.checkpoints import (
    FILES,
    RUN,
    SHORT,
    STEPS,
    forge,
    layout,
    refusal,
    saved_tensors,
)
from tests.rows import Rows, assert_same, read_rows
from tests.runs import start, train

# Stage, data-parallel and tensor-parallel size.
LAYOUTS = list(product(range(4), (1, 2), (1, 2)))


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


def save_again_and_train(launch: Launch, *arguments: Any) -> None:
    """Resume; before the first step, write the state as it was loaded."""
    from gpt_dist.train.loop import Trainer

    go_on = Trainer.run

    def run(trainer: Trainer, done: int) -> None:
        trainer.saver.save(99)
        go_on(trainer, done)

    with mock.patch.object(Trainer, "run", run):
        train(launch, *arguments)


# Each layout as source and as target, and every change of the stage, and of both other sizes.
PAIRS = [
    (LAYOUTS[4 * stage + grid], LAYOUTS[4 * ((grid + shift) % 4) + (stage + shift + 1) % 4])
    for shift, stage, grid in product(range(2), range(4), range(4))
][:24]


def test_the_pairs_cover_every_change():
    assert len({source for source, _ in PAIRS}) == len({target for _, target in PAIRS}) == 16
    assert len({(source[0], target[0]) for source, target in PAIRS}) == 16
    assert len({(source[1:], target[1:]) for source, target in PAIRS}) == 16


@pytest.fixture(scope="module")
def single(process_group, token_folder, tmp_path_factory) -> Rows:
    """The rows of the first steps, by one process that nothing interrupts."""
    directory = tmp_path_factory.mktemp("single")
    process_group(1).run(train, SHORT | {"data.path": token_folder}, directory)
    return read_rows(directory)


@pytest.fixture(scope="module")
def saved(process_group, token_folder, tmp_path_factory) -> Callable[..., Path]:
    """The checkpoint of step 2 that a layout wrote; each is made once."""
    cache: dict[tuple[int, ...], Path] = {}

    def saved(stage: int, data: int, tensor: int) -> Path:
        if (stage, data, tensor) not in cache:
            directory = tmp_path_factory.mktemp("saved")
            settings = SHORT | {"data.path": token_folder} | layout(stage, tensor)
            group = process_group(data * tensor)
            group.run(train, settings | {"training.max_steps": 2}, directory)
            cache[stage, data, tensor] = directory / "checkpoints/step-00000002"
        return cache[stage, data, tensor]

    return saved


@pytest.mark.row(17, case="24 pairs of layouts")
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_any_layout_opens_any_other_exactly_and_goes_on(
    process_group, token_folder, single, saved, tmp_path, source, target
):
    checkpoint = saved(*source)
    stage, data, tensor = target
    settings = SHORT | {"data.path": token_folder, "training.resume": checkpoint}
    settings |= layout(stage, tensor)
    process_group(data * tensor).run(save_again_and_train, settings, tmp_path)
    again = tmp_path / "checkpoints/step-00000099"
    before, after = saved_tensors(checkpoint), saved_tensors(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert Checkpoint(again).manifest.optimizer_steps == 2
    assert_same(read_rows(tmp_path), [row for row in single if row["step"] > 2], 1e-5)


@pytest.mark.row(17, case="data parallel 4, 2, 1")
def test_fewer_and_fewer_data_parallel_processes_go_on(
    process_group, token_folder, single, tmp_path
):
    """Each start has another ZeRO stage too, and makes a step."""
    checkpoint = "never"
    for stage, (processes, step) in enumerate([(4, 1), (2, 2), (1, 3)], 1):
        directory = tmp_path / str(processes)
        settings = SHORT | {"data.path": token_folder, "training.resume": checkpoint}
        settings |= layout(stage, 1) | {"training.max_steps": step, "training.micro_batch_size": 2}
        process_group(processes).run(save_again_and_train, settings, directory)
        if step > 1:
            before = saved_tensors(checkpoint)
            after = saved_tensors(directory / "checkpoints/step-00000099")
            assert all(torch.equal(before[name], after[name]) for name in before)
        rows = [row for row in read_rows(directory) if row.get("loss")]
        assert_same(rows, [row for row in single if row["step"] == step and "loss" in row], 1e-5)
        checkpoint = directory / f"checkpoints/step-{step:08d}"


def restore_on_a_gpu(launch: Launch, device: torch.device, path: Path) -> list[int]:
    """Return the draws after the random state of a checkpoint was restored, as with a GPU."""
    from gpt_dist.checkpoint.state import restore_rng
    from gpt_dist.topology import form_groups

    topology = form_groups(launch, device, 1)
    torch.manual_seed(launch.rank)
    with mock.patch("torch.cuda.is_available", return_value=True):
        restore_rng(Checkpoint(path), topology)
    return torch.randint(2**40, (4,)).tolist()


def test_without_a_state_of_its_kind_of_device_a_run_draws_anew(process_group, finished):
    path = finished / "checkpoints/step-00000004"
    first, second = (process_group(2).run(restore_on_a_gpu, path) for _ in range(2))
    assert first == second
    assert first[0] != first[1]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_weights_and_moments_survive_another_precision(
    process_group, token_folder, saved, tmp_path, zero_stage
):
    checkpoint = saved(3 - zero_stage, 2, 1)
    before, group = saved_tensors(checkpoint), process_group(2)
    for precision, max_steps in (("bf16", 4), ("fp32", 100)):
        settings = SHORT | {"data.path": token_folder, "training.resume": checkpoint}
        settings |= {"training.max_steps": max_steps}
        settings |= layout(zero_stage, 1) | {"training.precision": precision}
        group.run(save_again_and_train, settings, tmp_path / precision)
        checkpoint = tmp_path / precision / "checkpoints/step-00000099"
        after = saved_tensors(checkpoint)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        found = Checkpoint(checkpoint).manifest.topology.precision
        assert found == precision


def go_back(
    launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path
) -> list[float]:
    """The loss when a checkpoint is saved, after more steps, and when it is loaded again."""
    from gpt_dist.checkpoint.folder import open_shared

    run = start(launch, device, overrides, directory)
    batch = TokenBatch(*(torch.arange(64).view(2, 32) % 500).split(1))
    losses = []
    for step in range(1, 3):
        run.engine.train_batch([batch] * (8 // run.topology.data_parallel_size), 1e-2)
        losses.append(float(run.engine.evaluate(batch).mean()))
        run.saver.save(step)
        run.saver.wait()
    checkpoint = open_shared(directory / "checkpoints/step-00000001", run.topology)
    run.engine.state().load(checkpoint)
    checkpoint.files.release()
    return [*losses, float(run.engine.evaluate(batch).mean())]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_trained_model_goes_back_to_a_checkpoint(
    process_group, token_folder, tmp_path, zero_stage, precision
):
    """As fine-tuning does at its end, when forward has last been used for validation."""
    settings = SHORT | {"data.path": token_folder, "training.micro_batch_size": 1}
    settings |= layout(zero_stage, 1) | {"training.precision": precision, "model.dropout": 0}
    for saved, later, loaded in process_group(2).run(go_back, settings, tmp_path):
        assert loaded == saved
        assert later < saved - 0.1


@pytest.mark.row(18, case="other data and tokenizer")
def test_other_data_are_refused(process_group, finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "run")
    other = tmp_path / "tokens"
    subprocess.run(
        [
            *(sys.executable, "-m", "data_prep", "build", "data_prep/sample_books"),
            *("--output", str(other), "--vocab-size", "499", "--workers", "2"),
        ],
        check=True,
        timeout=120,
    )
    for message in process_group(2).run(refusal, RUN | {"data.path": other}, directory):
        assert f"data.path: other tokens or another tokenizer in {other}" in message
    assert read_rows(directory) == read_rows(finished)


@pytest.mark.row(18, case="another configuration")
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


@pytest.mark.row(18, case="keys that may change")
def test_keys_that_may_change_are_taken(process_group, token_folder, finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "run")
    settings = RUN | {"data.path": token_folder, "training.max_steps": 5}
    settings |= {"optimizer.learning_rate": 1e-3, "schedule.decay_steps": 100}
    assert process_group(2).run(refusal, settings, directory) == ["", ""]
    before, last = (read_rows(path)[-1] for path in (finished, directory))
    assert (before["step"], last["step"]) == (4, 5)
    assert load_config(directory / "config.yaml", []).optimizer.learning_rate == 1e-3


def save_twice(launch: Launch, *arguments: Any) -> tuple[int, int]:
    """Save a state as the last one and again, and return how many copies there were each time."""
    run = start(launch, *arguments)
    tokens = torch.arange(32)[None]
    count = run.engine._engine.gradient_accumulation_steps()
    run.engine.train_batch([TokenBatch(tokens, tokens)] * count, 1e-3)
    run.saver.save(1, ends=True)
    copies = len(run.saver._buffers)
    run.saver.save(2)
    run.saver.wait()
    return copies, len(run.saver._buffers)


@pytest.mark.parametrize("zero_stage", [0, 1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_last_checkpoint_is_written_without_a_copy_of_the_state(
    process_group, token_folder, tmp_path, zero_stage, precision
):
    settings = RUN | layout(zero_stage, 1) | {"training.precision": precision}
    settings |= {"data.path": token_folder, "checkpoint.keep": 2}
    for first, second in process_group(2).run(save_twice, settings, tmp_path):
        assert first == 0
        assert second > 0
    for rank in range(2):
        name = f"rank-{rank:05d}.safetensors"
        last, copied = (tmp_path / f"checkpoints/step-{step:08d}" / name for step in (1, 2))
        assert last.read_bytes() == copied.read_bytes()


def train_noting_syncs(launch: Launch, *arguments: Any) -> dict[str, int]:
    """Train; when each file and folder was safe on the disk, and when which got its name."""
    noted: dict[str, int] = {}
    fsync, rename = os.fsync, os.rename

    def noting_fsync(descriptor: int) -> None:
        fsync(descriptor)
        noted[f"synced {os.readlink(f'/proc/self/fd/{descriptor}')}"] = time.monotonic_ns()

    def noting_rename(source: Any, target: Any) -> None:
        noted[f"renamed {source}"] = time.monotonic_ns()
        rename(source, target)

    with mock.patch("os.fsync", noting_fsync), mock.patch("os.rename", noting_rename):
        train(launch, *arguments)
    return noted


def test_all_is_on_the_disk_before_a_checkpoint_has_its_name(process_group, token_folder, tmp_path):
    """A kill cannot show this, but a power cut would."""
    settings = RUN | {"data.path": token_folder, "training.max_steps": 1}
    ranks = process_group(2).run(train_noting_syncs, settings, tmp_path)
    noted = ranks[1] | ranks[0]
    folder = tmp_path / "checkpoints"
    partial = folder / ".step-00000001.partial"
    renamed = noted[f"renamed {partial}"]
    names = [path.name for path in (folder / "step-00000001").iterdir()]
    assert sorted(names) == sorted(FILES)
    for path in (*(partial / name for name in names), partial):
        assert noted[f"synced {path}"] < renamed, path
    assert noted[f"synced {folder}"] > renamed


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


def test_a_checkpoint_with_the_keys_of_an_earlier_version_is_resumed(
    process_group, token_folder, checkpoints
):
    newer = ("family", "num_key_value_heads", "feed_forward_size", "rotary_base", "norm_epsilon")
    for path in checkpoints.iterdir():
        model = Checkpoint(path).manifest.config["model"]
        earlier = {key: value for key, value in model.items() if key not in newer}
        forge(path, ["config", "model"], earlier | {"norm_position": "post"})
    settings = RUN | {"data.path": token_folder, "training.max_steps": 5}
    for message in process_group(2).run(
        refusal, settings | {"model.family": "gpt2"}, checkpoints.parent
    ):
        assert 'model.family: "openai_gpt" there, "gpt2" here' in message
    assert process_group(2).run(refusal, settings, checkpoints.parent) == ["", ""]
    resumed = Checkpoint(checkpoints / "step-00000005")
    assert resumed.manifest.config["model"]["family"] == "openai_gpt"
    assert "norm_position" not in resumed.manifest.config["model"]
