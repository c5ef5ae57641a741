"""Hundreds of flipped bits and cut files: nothing damaged is used, and each refusal is clear."""

from __future__ import annotations

import pickle
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.checkpoint.opened import open_model, save_model
from gpt_dist.errors import CheckpointError, DataError, GptDistError, ModelError
from tests.checkpoints import RUN, Bomb, damages, means_the_same
from tests.rows import Rows, assert_same, read_rows
from tests.runs import train

pytestmark = pytest.mark.faults

DAMAGES = 300
"""Of a checkpoint, and again of a model folder."""

RESUMED = 5
"""Of every so many damaged checkpoints, one is resumed from: it takes longer."""

OLDER, NEWER, END = 2, 4, 6

Content = tuple[dict[str, torch.Tensor], list[int]]


@pytest.fixture(scope="module")
def settings(token_folder: Path) -> dict[str, object]:
    changes = {"checkpoint.interval": 2, "validation.max_samples": 1, "model.dropout": 0.1}
    return RUN | changes | {"data.path": token_folder}


@pytest.fixture(scope="module")
def run(process_group, settings, tmp_path_factory) -> Path:
    """The directory of a run with two checkpoints."""
    directory = tmp_path_factory.mktemp("damaged") / "run"
    process_group(2).run(train, settings | {"training.max_steps": NEWER}, directory)
    return directory


@pytest.fixture(scope="module")
def undisturbed(process_group, settings, run) -> Rows:
    """The rows of the same run, gone on from its newer checkpoint."""
    directory = shutil.copytree(run, run.parent / "whole")
    process_group(2).run(train, settings | {"training.max_steps": END}, directory)
    return read_rows(directory)


def read_model(path: Path) -> Content:
    """All that a model holds, through the door that every command takes; and what a text is to it.

    Raises what users are shown.
    """
    opened = open_model(path)
    tensors = {name: tensor.clone() for name, tensor in opened.tensors.items()}
    return tensors, opened.tokenizer.encode("he looked at the fire").tolist()


def same(found: Content, expected: Content) -> bool:
    tensors, ids = expected
    return (
        found[0].keys() == tensors.keys()
        and all(torch.equal(found[0][name], tensors[name]) for name in tensors)
        and found[1] == ids
    )


@pytest.mark.row(13, case="300 random damages of a checkpoint")
def test_no_damaged_checkpoint_is_used(process_group, settings, run, undisturbed, tmp_path):
    newest = run / f"checkpoints/step-{NEWER:08d}"
    newer = read_model(newest)
    older = read_model(run / f"checkpoints/step-{OLDER:08d}")
    assert not same(newer, older)
    refused = 0
    for number, (file, content) in enumerate(damages(newest, random.Random(1), DAMAGES)):
        if means_the_same(file, content):
            assert same(read_model(run), newer)
            continue
        refused += 1
        with pytest.raises(CheckpointError, match=str(newest)):
            Checkpoint(newest).files.verify()
        with pytest.raises(CheckpointError, match=str(newest)):
            read_model(newest)
        assert same(read_model(run), older), file
        if number % RESUMED == 0:
            directory = shutil.copytree(run, tmp_path / str(number))
            process_group(2).run(train, settings | {"training.max_steps": END}, directory)
            assert_same(read_rows(directory), undisturbed, 0.0)
    assert refused > DAMAGES - 5
    assert same(read_model(run), newer)


def test_no_damaged_model_folder_is_used(run, tmp_path):
    folder = tmp_path / "model"
    save_model(open_model(run), folder)
    expected = read_model(folder)
    refused = 0
    for file, content in damages(folder, random.Random(2), DAMAGES):
        if means_the_same(file, content):
            assert same(read_model(folder), expected)
            continue
        refused += 1
        with pytest.raises((ModelError, DataError), match=str(folder)):
            read_model(folder)
    assert refused > DAMAGES - 5
    assert same(read_model(folder), expected)


@pytest.mark.row(22, case="a pickle in a model folder")
@pytest.mark.parametrize("vouched", [True, False])
def test_no_pickle_in_a_model_folder_runs(run, tmp_path, vouched):
    """As each of its files in turn, and under names that others give their pickles."""
    good, trace = tmp_path / "good", tmp_path / "ran"
    save_model(open_model(run), good)
    names = {path.name for path in good.iterdir()} | {"pytorch_model.bin", "training_args.bin"}
    for name in names:
        folder = shutil.copytree(good, tmp_path / f"with {name}")
        (folder / name).write_bytes(pickle.dumps(Bomb(trace)))
        if vouched:
            (folder / "checksums.json").unlink(missing_ok=True)
        with suppress(GptDistError):
            read_model(folder)
            save_model(open_model(folder), tmp_path / f"from {name}")
        assert not trace.exists(), name
