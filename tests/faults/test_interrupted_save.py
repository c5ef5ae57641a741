"""A process that ends, or is told to, at one exact place of a save: the run goes on the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_dist.checkpoint.folder import partial_path, step_path, steps
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.command import RESUMABLE
from gpt_dist.errors import CheckpointError
from tests.faults.ranks import (
    Fault,
    Ranks,
    die_in_the_next_file,
    kill,
    run_to_its_end,
    terminate,
)
from tests.rows import assert_same, read_rows

pytestmark = pytest.mark.faults

SETTINGS = [
    "training.global_batch_size=4",
    "model.hidden_size=64",
    "model.sequence_length=32",
    "model.dropout=0.1",
    "validation.max_samples=1",
    "checkpoint.keep=2",
    "logging.interval=1",
    "parallel.zero_stage=2",
    "schedule.decay_steps=100",
]
STEPS = 10
HIT, OLDEST = 6, 2
"""The step whose save is hit, and the checkpoint that it removes in the end."""


@pytest.fixture(scope="module")
def settings(token_folder: Path) -> list[str]:
    return [*SETTINGS, f"data.path={token_folder}", *up_to(STEPS)]


@pytest.fixture(scope="module")
def whole(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the run that nothing disturbs."""
    directory = tmp_path_factory.mktemp("whole")
    run_to_its_end(directory, settings)
    return directory


def up_to(max_steps: int, interval: int = 2) -> list[str]:
    return [f"training.max_steps={max_steps}", f"checkpoint.interval={interval}"]


def assert_ends_as(directory: Path, whole: Path, step: int) -> None:
    """Two runs came to the same: every row, and the last checkpoint bit for bit."""
    assert_same(read_rows(directory), read_rows(whole), 0.0)
    paths = [step_path(d / "checkpoints", step) for d in (directory, whole)]
    for path in paths:
        Checkpoint(path).files.verify()
    assert Checkpoint(paths[0]).manifest.files == Checkpoint(paths[1]).manifest.files
    found, expected = ({file.name for file in path.iterdir()} for path in paths)
    assert found == expected


def is_whole(folder: Path, step: int) -> bool:
    try:
        Checkpoint(step_path(folder, step)).files.verify()
    except CheckpointError:
        return False
    return True


def cut_short(file: Path, folder: Path) -> bool:
    """Whether a file is there, but not to the length that it has in an earlier checkpoint."""
    earlier = step_path(folder, OLDEST) / file.name
    return file.is_file() and file.stat().st_size < earlier.stat().st_size


def left_over(*names: str) -> Callable[[Path], bool]:
    """The hit save is not published, and its partial folder holds these files."""

    def holds(folder: Path) -> bool:
        partial = partial_path(folder, HIT)
        found = {path.name for path in partial.iterdir()} if partial.is_dir() else None
        return steps(folder) == [4, OLDEST] and found == set(names)

    return holds


RANK_0, RANK_1, TOKENIZER = "rank-00000.safetensors", "rank-00001.safetensors", "tokenizer.model"
PARTIAL, OLD = rf"/\.step-0*{HIT}\.partial", rf"/step-0*{OLDEST}"
# By place: the rank that ends, and how; the checkpoint gone on from; what the folder then holds.
PLACES: dict[str, tuple[int, Fault, int, Callable[[Path], bool]]] = {
    "amid a rank's file": (
        1,
        Fault("os.mkdir", f"{PARTIAL}$", die_in_the_next_file),
        4,
        lambda folder: cut_short(partial_path(folder, HIT) / RANK_1, folder),
    ),
    "before a rank's file": (
        0,
        Fault("open", f"{PARTIAL}/{RANK_0}", kill),
        4,
        lambda folder: not (partial_path(folder, HIT) / RANK_0).exists(),
    ),
    "between the files and the manifest": (
        0,
        Fault("open", f"{PARTIAL}/manifest.json", kill),
        4,
        left_over(RANK_0, RANK_1, TOKENIZER),
    ),
    "between the manifest and the rename": (
        0,
        Fault("os.rename", f"{PARTIAL}$", kill),
        4,
        left_over(RANK_0, RANK_1, TOKENIZER, "manifest.json"),
    ),
    "between the rename and the pruning": (
        0,
        Fault("os.rename", f"{OLD}$", kill),
        HIT,
        lambda folder: steps(folder) == [HIT, 4, OLDEST] and is_whole(folder, OLDEST),
    ),
    "amid the pruning": (
        0,
        Fault("os.remove", r"\.safetensors$|^manifest.json$|^tokenizer.model$", kill, count=2),
        HIT,
        lambda folder: steps(folder) == [HIT, 4] and len(list(folder.glob(".*"))) == 1,
    ),
}


@pytest.mark.row(3, case="{place}")
@pytest.mark.parametrize("asynchronous", ["true", "false"])
@pytest.mark.parametrize("place", PLACES)
def test_a_kill_at_any_place_of_a_save(settings, whole, tmp_path, place, asynchronous):
    rank, fault, last, evidence = PLACES[place]
    folder = tmp_path / "checkpoints"
    settings = [*settings, f"checkpoint.asynchronous={asynchronous}"]
    statuses = (ranks := Ranks(tmp_path, settings, {rank: fault})).wait(35)
    assert 0 not in statuses, ranks.console
    assert statuses[rank] in (-signal.SIGKILL, -signal.SIGXFSZ), ranks.console
    assert evidence(folder), sorted(folder.rglob("*"))
    # From here on saved at the end alone: nothing takes the place of what is left over.
    console = run_to_its_end(tmp_path, [*settings, *up_to(STEPS, interval=100)])
    assert f"resumed from {step_path(folder, last)}" in console
    assert_ends_as(tmp_path, whole, STEPS)
    assert set(folder.iterdir()) == {step_path(folder, step) for step in (last, STEPS)}


@pytest.mark.row(3, case="in the last save")
@pytest.mark.parametrize("asynchronous", ["true", "false"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_kill_in_the_last_save_is_a_failure_of_every_rank(
    settings, whole, tmp_path, rank, asynchronous
):
    """All steps are trained, but what they gave is not on the disk: no rank may be content."""
    settings = [*settings, f"checkpoint.asynchronous={asynchronous}"]
    fault = Fault("open", rf"/\.step-0*{STEPS}\.partial/rank-0000{rank}", kill)
    statuses = (ranks := Ranks(tmp_path, settings, {rank: fault})).wait(35)
    assert statuses[rank] == -signal.SIGKILL, ranks.console
    assert statuses[1 - rank] != 0, ranks.console
    assert "trained on" not in ranks.console
    assert steps(tmp_path / "checkpoints") == [8, HIT]
    run_to_its_end(tmp_path, settings)
    assert_ends_as(tmp_path, whole, STEPS)


@pytest.mark.row(5, case="{number.name} to rank {rank}")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_saves_on_all(settings, tmp_path, measured, rank, number):
    ranks = Ranks(tmp_path, [*settings, *up_to(100_000, interval=100_000)])
    metrics = tmp_path / "metrics.jsonl"
    ranks.wait_until(lambda: metrics.exists() and '"step": 3,' in metrics.read_text())
    begin = time.monotonic()
    os.kill(ranks.processes[rank].pid or 0, number)
    assert ranks.wait(20) == [RESUMABLE] * 2, ranks.console
    measured("until all had saved and ended", time.monotonic() - begin)
    (path,) = (tmp_path / "checkpoints").iterdir()
    Checkpoint(path).files.verify()
    assert f"interrupted and saved at step {Checkpoint(path).manifest.step}" in ranks.console


@pytest.mark.row(6, case="checkpoint.asynchronous={asynchronous}")
@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_second_signal_during_the_save_of_the_first(settings, tmp_path, asynchronous):
    """To every rank, as launchers pass it on."""
    directory, whole = tmp_path / "interrupted", tmp_path / "whole"
    settings = [*settings, f"checkpoint.asynchronous={asynchronous}"]
    places = [r"\.partial/manifest\.json", rf"\.partial/{RANK_1}"]
    second = {rank: Fault("open", place, terminate) for rank, place in enumerate(places)}
    ranks = Ranks(directory, [*settings, *up_to(100_000, interval=100_000)], second)
    metrics = directory / "metrics.jsonl"
    ranks.wait_until(lambda: metrics.exists() and '"step": 3,' in metrics.read_text())
    for process in ranks.processes:
        process.terminate()
    assert ranks.wait() == [RESUMABLE] * 2, ranks.console
    (path,) = (directory / "checkpoints").iterdir()
    checkpoint = Checkpoint(path)
    checkpoint.files.verify()
    end = checkpoint.manifest.step + 2
    assert f"resumed from {path}" in run_to_its_end(directory, [*settings, *up_to(end)])
    run_to_its_end(whole, [*settings, *up_to(end)])
    assert_ends_as(directory, whole, end)
