"""kill -9 at random moments of a run that is always saving: it goes on as if undisturbed."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path

import psutil
import pytest

from gpt_dist.checkpoint.folder import newest_valid, steps
from tests.launching import find_rank, launch, start
from tests.rows import assert_same, read_rows

pytestmark = pytest.mark.faults

STEPS = 120
KILLS = 25
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


@pytest.mark.parametrize("layout", [["parallel.zero_stage=2"], ["parallel.tensor_parallel_size=2"]])
def test_a_run_killed_many_times_is_the_undisturbed_one(token_folder, tmp_path, layout):
    settings = [*SETTINGS, *layout, f"data.path={token_folder}"]
    undisturbed = launch("torchrun", *settings, f"run.directory={tmp_path / 'whole'}")
    assert undisturbed.returncode == 0, undisturbed.stderr
    directory = tmp_path / "killed"
    rng = random.Random(0)
    for _ in range(KILLS):
        process = start("torchrun", *settings, f"run.directory={directory}")
        kill_within_a_few_steps(process, directory, rng)
        _, console = process.communicate(timeout=40)
        assert process.returncode != 0
        assert "Traceback" not in console or "Error" in console
        newest_valid(directory / "checkpoints", pytest.fail)
    finished = launch("torchrun", *settings, f"run.directory={directory}")
    assert finished.returncode == 0, finished.stderr
    assert_same(read_rows(directory), read_rows(tmp_path / "whole"), 0.0)


def kill_within_a_few_steps(process, directory: Path, rng: random.Random) -> None:
    """Wait until the run has gone on by a step or two, then kill one of its ranks at once."""
    before = max(steps(directory / "checkpoints"), default=0)
    deadline = time.monotonic() + 60
    while max(steps(directory / "checkpoints"), default=0) <= before:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no step within a minute"
        time.sleep(0.005)
    time.sleep(rng.random() * 0.15)
    with contextlib.suppress(psutil.NoSuchProcess, LookupError):
        find_rank(process, rng.randrange(2)).kill()
