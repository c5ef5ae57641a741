"""A disk that is full: what was whole stays whole, nothing half-written stays, all say why."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from gpt_dist.checkpoint.folder import open_whole, paths, steps
from gpt_dist.command import USER_ERROR
from tests.checkpoints import refusal
from tests.distributed.test_layouts import SMALL
from tests.faults.ranks import Fault, Ranks, run_to_its_end
from tests.rows import assert_same, read_rows
from tests.runs import train

pytestmark = pytest.mark.faults


on_small_disk = pytest.mark.parametrize("small_disk", ["900k"], indirect=True)  # 1.5 checkpoints


@pytest.mark.row(9, case="the disk is full amid the ranks' files")
@on_small_disk
@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_full_disk(process_group, token_folder, small_disk, asynchronous):
    settings = SMALL | {
        "data.path": token_folder,
        "training.max_steps": 8,
        "checkpoint.interval": 2,
        "checkpoint.asynchronous": asynchronous,
    }
    for rank, message in enumerate(process_group(2).run(refusal, settings, small_disk)):
        assert "not written" in message, f"rank {rank}"
        assert "No space left" in message, f"rank {rank}"
    folder = small_disk / "checkpoints"
    assert steps(folder) == [2]
    assert open_whole(paths(folder)[0]).manifest.step == 2
    assert not list(folder.glob(".*"))


def fill_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.row(9, case="full once the ranks' files are written")
@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_disk_that_is_full_once_the_ranks_files_are_written(token_folder, tmp_path, asynchronous):
    """Only the first rank meets it; all must give up at once, and a restart with room goes on the
    same."""
    settings = [f"{key}={value}" for key, value in SMALL.items()]
    settings += [f"data.path={token_folder}", "training.max_steps=150", "checkpoint.interval=50"]
    settings += [f"checkpoint.asynchronous={asynchronous}"]
    fault = Fault("open", r"/\.step-00000100\.partial/manifest\.json$", fill_disk)
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    ranks = Ranks(stopped, settings, {0: fault})
    assert ranks.wait() == [USER_ERROR] * 2, ranks.console
    (line,) = (line for line in ranks.console.splitlines() if line.startswith("error: rank "))
    assert "step-00000100: not written (rank 0: [Errno 28] No space left" in line
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["step-00000050"]
    assert read_rows(stopped)[-1]["step"] < 150, "reported by the next save only"
    run_to_its_end(stopped, settings)
    run_to_its_end(whole, settings)
    assert_same(read_rows(stopped), read_rows(whole), 0.0)


@on_small_disk
def test_a_disk_too_full_for_a_model_folder(process_group, token_folder, tmp_path, small_disk):
    run = tmp_path / "run"
    settings = SMALL | {"data.path": token_folder, "training.max_steps": 1}
    process_group(1).run(train, settings, run)
    room = os.statvfs(small_disk)
    (small_disk / "other").write_bytes(bytes(room.f_bavail * room.f_frsize - 100_000))
    command = [sys.executable, "launch/consolidate.py", str(run), "--output"]
    output = small_disk / "model"
    refused = subprocess.run([*command, str(output)], capture_output=True, text=True, timeout=120)
    assert refused.returncode == USER_ERROR
    (line,) = (line for line in refused.stderr.splitlines() if line.startswith("error: "))
    assert f"{output}: the disk is full, and nothing was published" in line
    assert [path.name for path in small_disk.iterdir()] == ["other"]
    (small_disk / "other").unlink()
    subprocess.run([*command, str(output)], capture_output=True, timeout=120, check=True)
    assert {"config.json", "model.safetensors"} <= {path.name for path in output.iterdir()}
