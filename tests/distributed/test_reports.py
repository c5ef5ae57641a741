"""Rows of a run: in TensorBoard too, and missing ones said on a resume; so are other threads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt_dist.rendezvous import Launch
from tests.checkpoints import RUN
from tests.rows import read_rows
from tests.runs import prepare, train


def said_by(
    launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path
) -> list[str]:
    """Train; return the lines of the report."""
    from gpt_dist.train.metrics import Reporter

    said: list[str] = []
    with mock.patch.object(Reporter, "say", lambda _, text: said.append(text)):
        train(launch, device, overrides, directory)
    return said


def test_tensorboard_shows_the_rows_of_metrics_jsonl(finished):
    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    for group, figures in (("train", ["loss", "grad_norm"]), ("validation", ["validation_loss"])):
        for figure in figures:
            rows = [row for row in read_rows(finished) if figure in row]
            found = [(one.step, one.value) for one in events.Scalars(f"{group}/{figure}")]
            assert found == [(row["step"], pytest.approx(row[figure])) for row in rows]


def test_tensorboard_hides_what_an_interrupted_run_had_after_its_checkpoint(
    process_group, token_folder, finished, tmp_path
):
    directory = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(directory / "checkpoints/step-00000004")
    settings = RUN | {"data.path": token_folder, "training.max_steps": 3}
    process_group(2).run(train, settings, directory)
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    assert [one.step for one in events.Scalars("train/loss")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("left", "missing"), [(None, "1 to 4"), (0, "1 to 4"), (3, "3 to 4"), (99, "")]
)
def test_rows_that_are_gone_are_said_on_a_resume(
    process_group, token_folder, finished, tmp_path, left, missing
):
    directory = shutil.copytree(finished, tmp_path / "run")
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").unlink()
    if left is not None:
        (directory / "metrics.jsonl").write_text("".join(lines[:left]))
    settings = RUN | {"data.path": token_folder, "training.max_steps": 5}
    said = process_group(2).run(said_by, settings, directory)[0]
    warnings = [line for line in said if "metrics.jsonl: cut or gone" in line]
    assert len(warnings) == bool(missing)
    assert all(line.endswith(f"no row of steps {missing}") for line in warnings)
    assert read_rows(directory)[-1]["step"] == 5


def warnings_with_other_threads(
    launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path, change: int
) -> list[str]:
    """Find the checkpoint of a run with a changed number of threads."""
    from gpt_dist.checkpoint.resume import find_checkpoint

    inputs, topology = prepare(launch, device, overrides, directory)
    said: list[str] = []
    threads = torch.get_num_threads()
    with mock.patch.object(torch, "get_num_threads", return_value=threads + change):
        find_checkpoint(inputs.config, topology, inputs.data, said.append)
    return said


@pytest.mark.parametrize("change", [0, 3])
def test_another_number_of_threads_is_said(process_group, token_folder, finished, tmp_path, change):
    directory = shutil.copytree(finished, tmp_path / "run")
    arguments = RUN | {"data.path": token_folder}, directory, change
    for said in process_group(2).run(warnings_with_other_threads, *arguments):
        assert len(said) == bool(change)
        assert all("threads a process until now" in line for line in said)


def said_with_free_bytes(launch: Launch, device: torch.device, free: int, *run: Any) -> list[str]:
    with mock.patch("gpt_dist.train.opening.shutil.disk_usage") as usage:
        usage.return_value.free = free
        return said_by(launch, device, *run)


@pytest.mark.parametrize("missing", [0, 1])
def test_too_little_room_for_the_checkpoints_is_said(
    process_group, token_folder, tmp_path, missing
):
    settings = RUN | {"data.path": token_folder, "training.max_steps": 1, "checkpoint.keep": 2}
    size = 12 * 42_816
    run = 3 * size - missing, settings, tmp_path
    (head, *_) = process_group(2).run(said_with_free_bytes, *run)[0]
    warning = f"up to 3 more checkpoints of {size:,} bytes are to be there at once"
    assert (warning in head) == bool(missing)
