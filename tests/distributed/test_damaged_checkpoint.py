"""Damaged, forged and planted files: never used, always named; what is whole is used instead."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import struct
from pathlib import Path

import pytest

from gpt_dist.checkpoint.fingerprint import Place, fingerprint
from gpt_dist.checkpoint.folder import first_valid, open_whole, paths
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.checkpoint.opened import inspect_model, open_model
from tests.checkpoints import (
    FILES,
    RUN,
    Bomb,
    damages,
    forge,
    means_the_same,
    read_all,
    refusal,
    saved_tensors,
    vouch_for,
)
from tests.rows import assert_same, read_rows
from tests.runs import train


def test_random_damage_is_found_and_the_one_before_is_used(checkpoints):
    newest = checkpoints / "step-00000004"
    for file, content in damages(newest, random.Random(0), 100):
        said: list[str] = []
        checkpoint = first_valid(paths(checkpoints), said.append, open_whole)
        assert checkpoint is not None
        if checkpoint.manifest.step == 4:
            assert means_the_same(file, content)
        else:
            assert str(newest) in said[0]


@pytest.fixture(scope="module")
def undisturbed(process_group, token_folder, finished, tmp_path_factory) -> Path:
    """The directory of `finished`, gone on from to step 6."""
    directory = shutil.copytree(finished, tmp_path_factory.mktemp("undisturbed") / "run")
    process_group(2).run(
        train, RUN | {"data.path": token_folder, "training.max_steps": 6}, directory
    )
    return directory


@pytest.mark.row(13, case="{name} of a checkpoint")
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
        Checkpoint(path / "checkpoints/step-00000006").manifest.files
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


@pytest.mark.row(14)
def test_no_fresh_start_where_every_checkpoint_is_damaged(
    process_group, token_folder, finished, tmp_path
):
    directory = shutil.copytree(finished, tmp_path / "run")
    for path in directory.glob("checkpoints/*/rank-00001.safetensors"):
        path.write_bytes(b"")
    for message in process_group(2).run(refusal, RUN | {"data.path": token_folder}, directory):
        assert "none of 2 checkpoints is whole" in message
    assert read_rows(directory) == read_rows(finished)


@pytest.mark.row(22, case="a pickle in a checkpoint")
@pytest.mark.parametrize("name", FILES)
def test_a_planted_pickle_is_passed_over(process_group, token_folder, finished, tmp_path, name):
    directory, trace = shutil.copytree(finished, tmp_path / "run"), tmp_path / "ran"
    (directory / "checkpoints/step-00000004" / name).write_bytes(pickle.dumps(Bomb(trace)))
    assert read_all(directory) == ""
    settings = RUN | {"data.path": token_folder, "training.max_steps": 3}
    assert process_group(2).run(refusal, settings, directory) == ["", ""]
    assert (directory / "checkpoints/step-00000003").is_dir()
    assert not trace.exists()


@pytest.mark.row(22, case="one that its manifest vouches for")
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


@pytest.mark.row(22, case="a forged manifest")
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


def test_what_was_removed_while_it_was_listed_is_listed_again(finished, tmp_path):
    """As a run does that goes on, with checkpoint.keep=1."""
    folder = shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    opened: list[Path] = []

    def go_on_and_open(path: Path) -> Checkpoint:
        if not opened:
            (folder / "step-00000004").rename(folder / "step-00000006")
            shutil.rmtree(folder / "step-00000002")
        opened.append(path)
        return open_whole(path)

    assert inspect_model(tmp_path, go_on_and_open).tokenizer_folder == folder / "step-00000006"


def test_warnings_do_not_mix_with_a_command_s_output(checkpoints, capsys):
    (checkpoints / "step-00000004/rank-00000.safetensors").write_bytes(b"")
    assert open_model(checkpoints.parent).step == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "falling back to step-00000002" in shown.err


def test_rows_that_a_crash_has_garbled_are_dropped(process_group, token_folder, finished, tmp_path):
    directory = shutil.copytree(finished, tmp_path / "run")
    with (directory / "metrics.jsonl").open("ab") as file:
        file.write(b'\0\0\0\n{}\n[]\n{"step": "4"}\n\xff\n{"step": 4, "lo')
    settings = RUN | {"data.path": token_folder, "training.max_steps": 5}
    process_group(2).run(train, settings, directory)
    rows = read_rows(directory)
    assert rows[: len(read_rows(finished))] == read_rows(finished)
    assert rows[-1]["step"] == 5


@pytest.mark.row(32, case="NaN, infinity, negative second moments")
@pytest.mark.parametrize("kind", ["weight", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1e-30])
def test_numbers_that_no_training_gives_are_refused_though_all_hashes_agree(
    process_group, token_folder, tmp_path, kind, number
):
    settings = RUN | {"data.path": token_folder, "training.max_steps": 2}
    settings |= {"checkpoint.interval": 2, "training.micro_batch_size": 4}
    process_group(1).run(train, settings, tmp_path)
    checkpoint = tmp_path / "checkpoints/step-00000002"
    opened = Checkpoint(checkpoint)
    name = next(one for one in opened.manifest.parameters if one.endswith("norm.bias"))
    file = checkpoint / "rank-00000.safetensors"
    tensors = opened.files.tensors(file.name)
    place = tensors._first + tensors.entries[f"{kind}/{name}"].start
    content = bytearray(file.read_bytes())
    content[place : place + 4] = struct.pack("<f", number)
    file.write_bytes(content)
    (found,) = fingerprint([Checkpoint(checkpoint).read(kind, name)], Place())  # the new one
    forge(checkpoint, ["parameters", name, "fingerprints", kind], f"{found:016x}")
    vouch_for(checkpoint, file.name)
    (message,) = process_group(1).run(refusal, settings | {"training.max_steps": 3}, tmp_path)
    if number == number and kind != "exp_avg_sq" and abs(number) < 1:
        assert message == ""
    else:
        assert f"{kind}/{name} holds values that are n" in message
        assert str(checkpoint) in message
