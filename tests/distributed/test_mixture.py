"""Runs on several token folders: weights change on the way, and every layout draws the same."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.data.tokens.folder import TokenFolder
from tests.checkpoints import RUN, refusal
from tests.rows import assert_same, read_rows
from tests.runs import train

FIRST, LATER = (0.7, 0.3), (0.1, 0.9)
HALF = {"training.max_steps": 4}


@pytest.fixture(scope="module")
def folders(token_folder, tmp_path_factory) -> tuple[Path, Path]:
    """Two token folders of one tokenizer."""
    book, *_ = sorted(Path("data_prep/sample_books").iterdir())
    other = tmp_path_factory.mktemp("data") / "one-book"
    subprocess.run(
        [
            *(sys.executable, "-m", "data_prep", "build", str(book), "--output", str(other)),
            *("--tokenizer", str(token_folder), "--workers", "1"),
        ],
        check=True,
        timeout=120,
    )
    return token_folder, other


def mixed(folders: tuple[Path, ...], weights: tuple[float, ...], **changes: Any) -> dict[str, Any]:
    pairs = zip(map(str, folders), weights, strict=True)
    path = [{"path": path, "weight": weight} for path, weight in pairs]
    return RUN | {"data.path": json.dumps(path)} | changes


def later(step: int, weights: tuple[float, ...] = LATER) -> dict[str, str]:
    return {"data.changes": json.dumps([{"step": step, "weights": weights}])}


@pytest.fixture(scope="module")
def changed(process_group, folders, tmp_path_factory) -> Path:
    """The directory of an undisturbed run whose weights change after step 4."""
    directory = tmp_path_factory.mktemp("changed")
    process_group(1).run(train, mixed(folders, FIRST) | later(4), directory)
    return directory


def phases_of(directory: Path) -> list[tuple[int, dict[str, float]]]:
    manifest = Checkpoint(directory / "checkpoints/step-00000008").manifest
    return [(phase.from_sample, phase.weights) for phase in manifest.phases]


@pytest.mark.parametrize(("size", "zero_stage"), [(1, 0), (2, 1)])
def test_other_weights_at_a_resume_are_a_change_at_that_step(
    process_group, folders, changed, tmp_path, size, zero_stage
):
    stage = {"parallel.zero_stage": zero_stage}
    group = process_group(size)
    group.run(train, mixed(folders, FIRST) | HALF | stage, tmp_path)
    group.run(train, mixed(folders, LATER) | {"training.micro_batch_size": 1} | stage, tmp_path)
    assert_same(read_rows(tmp_path), read_rows(changed), 1e-5)
    a, b = (TokenFolder(folder).digest for folder in folders)
    expected = [
        (0, {a: FIRST[0], b: FIRST[1]}),
        (4 * RUN["training.global_batch_size"], {a: LATER[0], b: LATER[1]}),
    ]
    assert phases_of(tmp_path) == phases_of(changed) == expected


def test_validation_has_a_figure_for_each_folder(folders, changed):
    *_, row = read_rows(changed)
    each = [row[f"validation_loss/{folder}"] for folder in folders]
    assert min(each) < row["validation_loss"] < max(each)


def test_a_mixture_of_one_folder_is_that_folder(process_group, folders, tmp_path):
    process_group(1).run(train, RUN | {"data.path": folders[0]}, tmp_path / "alone")
    process_group(1).run(train, mixed(folders[:1], (0.2,)), tmp_path / "mixture")
    assert_same(read_rows(tmp_path / "mixture"), read_rows(tmp_path / "alone"), 0.0)


def test_a_folder_joins_a_run_and_one_leaves_it(process_group, folders, tmp_path):
    alone, other = RUN | {"data.path": folders[0]} | HALF, folders[1]
    group = process_group(1)
    group.run(train, alone | {"training.max_steps": 2, "checkpoint.interval": 2}, tmp_path)
    (message,) = group.run(refusal, mixed((other,), (1,)), tmp_path)
    assert f"data.path: other tokens or another tokenizer in {other}" in message
    group.run(train, mixed((other, folders[0]), (1, 0)) | HALF, tmp_path)
    group.run(train, mixed((other,), (1,)), tmp_path)
    a, b = (TokenFolder(folder).digest for folder in folders)
    assert phases_of(tmp_path) == [(0, {a: 1}), (2 * RUN["training.global_batch_size"], {b: 1})]


def test_a_folder_that_is_still_drawn_from_cannot_be_missing(process_group, folders, changed):
    settings = mixed(folders[:1], (1,))
    (message,) = process_group(1).run(refusal, settings, changed)
    assert f"tokenizer in {folders[0]}, or a folder is missing (list it with weight 0);" in message


def test_the_same_tokens_under_another_name_go_on(process_group, folders, changed, tmp_path):
    """Their manifests tell of other sources, as those of a renamed folder of books do."""
    renamed = []
    for folder in folders:
        copy = shutil.copytree(folder, tmp_path / "tokens" / folder.name)
        manifest = json.loads((copy / "manifest.json").read_text())
        for source in manifest["sources"]:
            source["name"] = f"renamed/{source['name']}"
        manifest["totals"]["documents_read"] += 1
        (copy / "manifest.json").write_text(json.dumps(manifest))
        renamed.append(copy)
    directory = shutil.copytree(changed, tmp_path / "run")
    shutil.rmtree(directory / "checkpoints/step-00000008")
    process_group(1).run(train, mixed(tuple(renamed), FIRST) | later(4), directory)
    found = [row["loss"] for row in read_rows(directory) if "loss" in row]
    assert found == [row["loss"] for row in read_rows(changed) if "loss" in row]


def test_folders_that_do_not_fit_are_refused(process_group, folders, tmp_path):
    def refuse(settings: dict[str, Any], expected: str) -> None:
        (message,) = process_group(1).run(refusal, settings, tmp_path / "run")
        assert re.search(expected, message), message

    same = shutil.copytree(folders[0], tmp_path / "same")
    refuse(mixed((folders[0], same), FIRST), "same hold the same tokens")
    (same / "tokenizer.model").write_bytes(b"")
    manifest = json.loads((same / "manifest.json").read_text())
    manifest["tokenizer"] |= {"bytes": 0, "sha256": "0" * 64}
    (same / "manifest.json").write_text(json.dumps(manifest))
    refuse(mixed((folders[0], same), FIRST), "same has another tokenizer than .*; prepare it")
    long = mixed(folders, FIRST) | {"model.sequence_length": 150_000}
    refuse(long, "one-book: the training split is shorter than one window")
