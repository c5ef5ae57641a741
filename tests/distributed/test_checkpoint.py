"""Checkpoints: a resumed run is the undisturbed one; any layout opens any other's."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
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

from gpt_dist.checkpoint.folder import first_valid, open_whole, paths
from gpt_dist.checkpoint.format import Checkpoint, Manifest
from gpt_dist.checkpoint.weights import SavedWeights
from gpt_dist.data.tokens import FileEntry
from gpt_dist.errors import CheckpointError, GptDistError
from gpt_dist.inference.model import open_model
from gpt_dist.rendezvous import Launch
from tests.distributed.test_layouts import SMALL
from tests.rows import Rows, assert_same, read_rows
from tests.runs import train

STEPS = 8
RUN = SMALL | {
    "training.max_steps": STEPS,
    "schedule.decay_steps": STEPS,
    "validation.interval": STEPS // 2,
    "checkpoint.interval": STEPS // 2,
}
SHORT = RUN | {"training.max_steps": 4, "training.micro_batch_size": 4}
# Stage, data-parallel and tensor-parallel size.
LAYOUTS = list(product(range(4), (1, 2), (1, 2)))


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
    assert Checkpoint.open(again).manifest.optimizer_steps == 2
    assert_same(read_rows(tmp_path), [row for row in single if row["step"] > 2], 1e-5)


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
        checkpoint = first_valid(paths(checkpoints), said.append, open_whole)
        assert checkpoint is not None
        if checkpoint.manifest.step == 4:
            # JSON has bits that carry no meaning: white space, and the case of an escape.
            assert file.name == "manifest.json"
            assert json.loads(bytes(damaged)) == json.loads(content)
        else:
            assert str(newest) in said[0]
        file.write_bytes(content)


def refusal(
    launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path
) -> str:
    try:
        train(launch, device, overrides, directory)
    except CheckpointError as error:
        return str(error)
    return ""


FILES = ["manifest.json", "rank-00000.safetensors", "rank-00001.safetensors", "tokenizer.model"]


@pytest.fixture(scope="module")
def undisturbed(process_group, token_folder, finished, tmp_path_factory) -> Path:
    """The directory of `finished`, gone on from to step 6."""
    directory = shutil.copytree(finished, tmp_path_factory.mktemp("undisturbed") / "run")
    process_group(2).run(
        train, RUN | {"data.path": token_folder, "training.max_steps": 6}, directory
    )
    return directory


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(
    process_group, token_folder, finished, undisturbed, tmp_path, name
):
    directory = shutil.copytree(finished, tmp_path / "run")
    file = directory / "checkpoints/step-00000004" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    settings = RUN | {"data.path": token_folder, "training.max_steps": 6}
    process_group(2).run(train, settings, directory)
    assert_same(read_rows(directory), read_rows(undisturbed), 0.0)
    found, expected = (
        Checkpoint.open(path / "checkpoints/step-00000006").manifest.files
        for path in (directory, undisturbed)
    )
    assert found == expected


def test_what_is_saved_after_falling_back_is_kept(process_group, token_folder, finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "run")
    (directory / "checkpoints/step-00000004/rank-00000.safetensors").write_bytes(b"")
    settings = RUN | {"data.path": token_folder, "training.max_steps": 3, "checkpoint.keep": 1}
    process_group(2).run(train, settings, directory)
    saved_tensors(directory / "checkpoints/step-00000003")
    assert (directory / "checkpoints/step-00000004.damaged").is_dir()


def test_no_fresh_start_where_every_checkpoint_is_damaged(
    process_group, token_folder, finished, tmp_path
):
    directory = shutil.copytree(finished, tmp_path / "run")
    for path in directory.glob("checkpoints/*/rank-00001.safetensors"):
        path.write_bytes(b"")
    for message in process_group(2).run(refusal, RUN | {"data.path": token_folder}, directory):
        assert "none of 2 checkpoints is whole" in message
    assert read_rows(directory) == read_rows(finished)


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (Path.touch, (self.trace,))


def vouch_for(checkpoint: Path, name: str) -> None:
    """Have the manifest state a file as it is now, as whoever planted it would."""
    manifest = Manifest.model_validate_json((checkpoint / "manifest.json").read_bytes())
    content = (checkpoint / name).read_bytes()
    entry = FileEntry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    manifest = manifest.model_copy(update={"files": {**manifest.files, name: entry}})
    (checkpoint / "manifest.json").write_text(manifest.sealed().model_dump_json())


def forge(checkpoint: Path, keys: list[Any], value: Any) -> None:
    """Change one value in the manifest, and its digest with it."""
    file = checkpoint / "manifest.json"
    content = json.loads(file.read_bytes())
    place = content
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    content.pop("digest", None)
    canonical = json.dumps(content, sort_keys=True).encode()
    content["digest"] = hashlib.sha256(canonical).hexdigest()
    file.write_text(json.dumps(content))


def read_all(directory: Path) -> str:
    """Open the model of a run, its tensors and its tokenizer; the refusal, if it is refused."""
    try:
        opened = open_model(directory)
        assert all(tensor.isfinite().all() for tensor in opened.tensors.values())
        assert opened.tokenizer.vocab_size == 500
    except GptDistError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", FILES)
def test_a_planted_pickle_is_passed_over(process_group, token_folder, finished, tmp_path, name):
    directory, trace = shutil.copytree(finished, tmp_path / "run"), tmp_path / "ran"
    (directory / "checkpoints/step-00000004" / name).write_bytes(pickle.dumps(Bomb(trace)))
    assert read_all(directory) == ""
    settings = RUN | {"data.path": token_folder, "training.max_steps": 3}
    assert process_group(2).run(refusal, settings, directory) == ["", ""]
    assert (directory / "checkpoints/step-00000003").is_dir()
    assert not trace.exists()


@pytest.mark.parametrize("name", FILES[1:])
def test_a_pickle_that_the_manifest_vouches_for_is_refused(
    process_group, token_folder, finished, tmp_path, name
):
    directory, trace = shutil.copytree(finished, tmp_path / "run"), tmp_path / "ran"
    newest = directory / "checkpoints/step-00000004"
    size = (newest / name).stat().st_size
    (newest / name).write_bytes(pickle.dumps(Bomb(trace)).ljust(size, b"\0"))
    vouch_for(newest, name)
    assert str(newest / name) in read_all(directory)
    settings = RUN | {"data.path": token_folder, "training.max_steps": 5}
    (message,) = process_group(1).run(refusal, settings, directory)
    if name != "tokenizer.model":  # training takes that of its data
        assert str(newest / name) in message
    assert not trace.exists()


EMBEDDING = ["parameters", "model.token_embedding.weight"]


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ([*EMBEDDING, "shape"], [10**15]),
        ([*EMBEDDING, "shape"], []),
        ([*EMBEDDING, "tensor_parallel_dimension"], 7),
        ([*EMBEDDING, "fragments", 0, "length"], 10**15),
        ([*EMBEDDING, "fragments"], []),
        (EMBEDDING, None),
        (["parameters", "model.blocks.1.attention.projection.bias"], None),
        (["config", "model", "vocab_size"], None),
        (["config", "model", "vocab_size"], 300),
        (["config", "model", "num_heads"], 5),
        (["config", "model", "num_layers"], 1),
        (["config", "model", "hidden_size"], "wide"),
        (["config", "model"], None),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(finished, tmp_path, keys, value):
    newest = shutil.copytree(finished / "checkpoints/step-00000004", tmp_path / "checkpoint")
    forge(newest, keys, value)
    assert str(newest / "manifest.json") in read_all(newest)


@pytest.mark.parametrize(
    "header", [b"[]", b"null", b'"x"', b"[" * 10_000, b'{"weight/x": {}}', b"{}"]
)
def test_a_rank_file_that_names_no_tensors_is_refused(finished, tmp_path, header):
    newest = shutil.copytree(finished / "checkpoints/step-00000004", tmp_path / "checkpoint")
    file = newest / "rank-00000.safetensors"
    size = file.stat().st_size
    file.write_bytes((len(header).to_bytes(8, "little") + header).ljust(size, b"\0"))
    vouch_for(newest, file.name)
    assert str(file) in read_all(newest)


@pytest.mark.parametrize("value", [[0.0, 4.0], [0, 2**64], [-4, 0], [True, 5], ["0", "4"], 4])
def test_a_rank_file_with_impossible_places_is_refused(finished, tmp_path, value):
    newest = shutil.copytree(finished / "checkpoints/step-00000004", tmp_path / "checkpoint")
    file = newest / "rank-00000.safetensors"
    size, name = file.stat().st_size, "weight/model.token_embedding.weight"
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": value}}
    content = json.dumps(header).encode()
    file.write_bytes((len(content).to_bytes(8, "little") + content).ljust(size, b"\0"))
    vouch_for(newest, file.name)
    assert str(file) in read_all(newest)


def test_a_tokenizer_planted_beside_the_listed_one_is_refused(finished, tmp_path):
    newest = shutil.copytree(finished / "checkpoints/step-00000004", tmp_path / "checkpoint")
    (newest / "tokenizer.json").write_text("{}")
    assert f"{newest / 'tokenizer.json'}: not of this checkpoint" in read_all(newest)


def test_what_was_removed_while_it_was_listed_is_listed_again(finished, tmp_path, monkeypatch):
    """As a run does that goes on, with checkpoint.keep=1."""
    folder = shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    opened: list[Path] = []

    def go_on_and_open(path: Path) -> Checkpoint:
        if not opened:
            (folder / "step-00000004").rename(folder / "step-00000006")
            shutil.rmtree(folder / "step-00000002")
        opened.append(path)
        return open_whole(path)

    monkeypatch.setattr("gpt_dist.checkpoint.weights.open_whole", go_on_and_open)
    assert SavedWeights.open(tmp_path).path == folder / "step-00000006"


def test_warnings_do_not_mix_with_a_command_s_output(checkpoints, capsys):
    (checkpoints / "step-00000004/rank-00000.safetensors").write_bytes(b"")
    assert SavedWeights.open(checkpoints.parent).step == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "falling back to step-00000002" in shown.err


def restore_on_a_gpu(launch: Launch, device: torch.device, path: Path) -> list[int]:
    """What is drawn after the random state of a checkpoint was restored where there is a GPU."""
    from gpt_dist.checkpoint.state import restore_rng
    from gpt_dist.topology import form_groups

    topology = form_groups(launch, device, 1)
    torch.manual_seed(launch.rank)
    with mock.patch("torch.cuda.is_available", return_value=True):
        restore_rng(Checkpoint.open(path), topology)
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
        found = Checkpoint.open(checkpoint).manifest.topology.precision
        assert found == precision


def test_rows_that_a_crash_has_garbled_are_dropped(process_group, token_folder, finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "run")
    with (directory / "metrics.jsonl").open("ab") as file:
        file.write(b'\0\0\0\n{}\n[]\n{"step": "4"}\n\xff\n{"step": 4, "lo')
    settings = RUN | {"data.path": token_folder, "training.max_steps": 5}
    process_group(2).run(train, settings, directory)
    rows = read_rows(directory)
    assert rows[: len(read_rows(finished))] == read_rows(finished)
    assert rows[-1]["step"] == 5


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
