"""kill -9 at some moment of a run, whatever its layout: it goes on as if undisturbed."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt_dist.checkpoint.folder import step_path, steps
from gpt_dist.checkpoint.format import Checkpoint
from tests.faults.ranks import InStep, Ranks, kill, run_to_its_end
from tests.launching import launch
from tests.rows import assert_same, read_rows

pytestmark = pytest.mark.faults

STEPS = 300
KILLS = 20
SAVE_SECONDS = 0.06
"""A little more than a save takes, from its first file on."""

PARTIAL = ".step-????????.partial"  # while it is written, not while it is removed
SETTINGS = [
    f"training.max_steps={STEPS}",
    "training.global_batch_size=4",
    "model.hidden_size=64",
    "model.sequence_length=32",
    "model.dropout=0.1",
    "validation.max_samples=1",
    "checkpoint.interval=1",
    "logging.interval=1",
]


@pytest.mark.row(3, case=f"{KILLS} times at random moments of a save")
@pytest.mark.parametrize("layout", [["parallel.zero_stage=2"], ["parallel.tensor_parallel_size=2"]])
def test_a_run_killed_many_times_is_the_undisturbed_one(token_folder, tmp_path, layout):
    settings = [*SETTINGS, *layout, f"data.path={token_folder}"]
    whole, directory = tmp_path / "whole", tmp_path / "killed"
    undisturbed = launch("torchrun", *settings, f"run.directory={whole}")
    assert undisturbed.returncode == 0, undisturbed.stderr
    folder = directory / "checkpoints"
    rng = random.Random(0)
    amid_a_save = 0
    for _ in range(KILLS):
        before = steps(folder)[:1]
        ranks = Ranks(directory, settings)
        ranks.wait_until(lambda before=before: steps(folder)[:1] > before)
        ranks.wait_until(lambda: any(folder.glob(PARTIAL)))
        time.sleep(rng.random() * SAVE_SECONDS)
        for rank in rng.choice([[0], [1], [0, 1]]):
            ranks.processes[rank].kill()
        assert 0 not in ranks.wait(), ranks.console
        if before:
            assert f"resumed from {step_path(folder, *before)}" in ranks.console
        newest = Checkpoint(step_path(folder, steps(folder)[0]))
        newest.files.verify()
        amid_a_save += any(folder.glob(PARTIAL))
    assert amid_a_save > KILLS / 5, "too few kills hit a save"
    run_to_its_end(directory, settings)
    assert_same(read_rows(directory), read_rows(whole), 0.0)
    found, expected = (last_files(path / "checkpoints", STEPS) for path in (directory, whole))
    assert found == expected
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_run_killed_half_way_is_the_undisturbed_one(
    token_folder, tmp_path, zero_stage, tensor_parallel_size
):
    steps_made, half = 40, 20
    settings = [*SETTINGS, f"data.path={token_folder}"]
    settings += [f"training.max_steps={steps_made}", f"checkpoint.interval={half}"]
    settings += [f"parallel.zero_stage={zero_stage}"]
    settings += [f"parallel.tensor_parallel_size={tensor_parallel_size}"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_to_its_end(whole, settings)
    ranks = Ranks(killed, settings)
    ranks.wait_until(lambda: steps(killed / "checkpoints") == [half])
    for process in ranks.processes:
        process.kill()
    assert 0 not in ranks.wait(), ranks.console
    console = run_to_its_end(killed, settings)
    assert f"resumed from {step_path(killed / 'checkpoints', half)}" in console
    rows = read_rows(killed)
    assert rows[-1]["step"] == steps_made
    assert_same(rows, read_rows(whole), 0.0)
    found, expected = (last_files(path / "checkpoints", steps_made) for path in (killed, whole))
    assert found == expected


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the directory of a run of 20 steps that nothing disturbs, by its settings."""
    cache: dict[tuple[str, ...], Path] = {}

    def whole(settings: list[str]) -> Path:
        if (key := tuple(settings)) not in cache:
            cache[key] = tmp_path_factory.mktemp("whole")
            run_to_its_end(cache[key], settings)
        return cache[key]

    return whole


@pytest.mark.parametrize("within", ["forward", "reduction"])
@pytest.mark.parametrize(
    ("rank", "layout"),
    [
        pytest.param(1, "zero_stage=2", marks=pytest.mark.row(1, case="in a {within}")),
        pytest.param(0, "zero_stage=0", marks=pytest.mark.row(2, case="rank 0 in a {within}")),
        pytest.param(
            *(1, "tensor_parallel_size=2"),
            marks=pytest.mark.row(2, case="a tensor-parallel peer in a {within}"),
        ),
    ],
)
def test_a_kill_within_a_step_ends_all_and_the_restart_is_the_undisturbed_run(
    token_folder, tmp_path, whole, measured, rank, layout, within
):
    settings = [*SETTINGS, f"parallel.{layout}", f"data.path={token_folder}"]
    settings += ["training.max_steps=20", "checkpoint.interval=5", "training.compile=false"]
    fault = InStep(8, kill, within)
    ranks = Ranks(tmp_path, [*settings, "training.watchdog=60"], {rank: fault})
    measured("until the others ended", ranks.wait_for_others(rank, 35))
    statuses = ranks.wait()
    assert (statuses[rank], statuses[1 - rank]) == (-signal.SIGKILL, 1), ranks.console
    console = run_to_its_end(tmp_path, settings)
    assert f"resumed from {step_path(tmp_path / 'checkpoints', 5)}" in console
    assert_same(read_rows(tmp_path), read_rows(whole(settings)), 0.0)
    directories = tmp_path, whole(settings)
    found, expected = (last_files(path / "checkpoints", 20) for path in directories)
    assert found == expected


def last_files(folder: Path, step: int) -> object:
    """The hashes of all that the last checkpoint holds: weights, moments, random states."""
    return Checkpoint(step_path(folder, step)).manifest.files
