"""A supervised run whose processes are killed, stopped and moved: it ends as if undisturbed."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from gpt_dist.checkpoint.folder import step_path, steps
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.train.status import read_status
from tests.faults.ranks import run_to_its_end
from tests.launching import BIN, launcher_words
from tests.rows import assert_same, read_rows
from tests.supervising import Supervised

pytestmark = pytest.mark.faults

STEPS, INTERVAL = 240, 40
SETTINGS = [
    f"training.max_steps={STEPS}",
    "training.global_batch_size=4",
    "training.compile=false",
    "model.hidden_size=64",
    "model.sequence_length=32",
    "validation.max_samples=1",
    f"checkpoint.interval={INTERVAL}",
    "logging.interval=20",
]


@pytest.fixture(scope="module")
def settings(token_folder: Path) -> list[str]:
    return [*SETTINGS, f"data.path={token_folder}", "parallel.zero_stage=1"]


@pytest.fixture(scope="module")
def whole(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the run that nothing disturbs, with two processes."""
    directory = tmp_path_factory.mktemp("whole")
    run_to_its_end(directory, [*settings, "model.dropout=0.1"])
    return directory


def supervise(
    directory: Path, settings: list[str], *options: str, launcher: str = "deepspeed"
) -> Supervised:
    words = [
        *launcher_words(launcher),
        "launch/pretrain.py",
        "configs/pretrain/tiny.yaml",
        *settings,
    ]
    words.append(f"run.directory={directory}")
    return Supervised(directory, ["--back-off", "0.1", *options], words)


def wait_for_checkpoint(supervised: Supervised, after: int) -> int:
    """Return the newest step, once it is later than `after`."""
    folder = supervised.directory / "checkpoints"
    supervised.wait_until(lambda: steps(folder)[:1] > [after])
    return steps(folder)[0]


def ranks(supervised: Supervised) -> list[psutil.Process]:
    """The training processes, in the order of their ranks."""
    found = {}
    for process in supervised.below:
        if process.cmdline()[2:3] == ["launch/pretrain.py"]:
            found[process.environ()["RANK"]] = process
    return [found[rank] for rank in sorted(found)]


def launcher(supervised: Supervised) -> psutil.Process:
    return next(one for one in supervised.below if f"{BIN}/deepspeed" in one.cmdline())


@pytest.mark.row(4, case="deepspeed under the supervisor")
def test_a_run_killed_in_all_its_parts_is_the_undisturbed_one(settings, whole, tmp_path):
    """kill -9 of rank 1, of rank 0, and of the launcher, each after a new checkpoint."""
    supervised = supervise(tmp_path / "run", [*settings, "model.dropout=0.1"])
    step = wait_for_checkpoint(supervised, 0)
    ranks(supervised)[1].kill()
    supervised.wait_until(lambda: supervised.said("start 2 from"))
    step = wait_for_checkpoint(supervised, step)
    ranks(supervised)[0].kill()
    supervised.wait_until(lambda: supervised.said("start 3 from"))
    step = wait_for_checkpoint(supervised, step)
    started = supervised.below
    launcher(supervised).kill()
    assert not psutil.wait_procs(started, timeout=10)[1]
    assert supervised.wait() == 0, supervised.console
    assert len(supervised.said(r"start \d failed: ")) == 3
    assert supervised.said("the launcher ended")
    assert supervised.said(rf"start 4 complete: {STEPS} steps")
    assert_same(read_rows(supervised.directory), read_rows(whole), 0.0)
    found, expected = (
        Checkpoint(step_path(path / "checkpoints", STEPS)).manifest.files
        for path in (supervised.directory, whole)
    )
    assert found == expected


@pytest.mark.row(34, case="SIGTERM to the supervisor of {launcher}")
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun", "mpirun"])
def test_a_signal_to_the_supervisor_saves(settings, tmp_path, launcher, monkeypatch):
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
    endless = [*settings, "training.max_steps=100000", "checkpoint.interval=100000"]
    supervised = supervise(tmp_path / "run", endless, launcher=launcher)
    status = tmp_path / "run/status.json"
    supervised.wait_until(lambda: '"step": 40' in (status.read_text() if status.exists() else ""))
    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.wait(40) == 75, supervised.console
    (step,) = steps(tmp_path / "run/checkpoints")
    Checkpoint(step_path(tmp_path / "run/checkpoints", step)).files.verify()
    assert supervised.said(rf"start 1 interrupted: .*saved at step {step} ")
    status = read_status(tmp_path / "run")
    assert (status.state, status.step, status.rank) == ("interrupted", step, 0)


@pytest.mark.row(26, case="restarted with one slot less")
def test_a_lost_host_leaves_a_smaller_run(settings, tmp_path):
    """One of two slots goes while the run is killed; it ends the same within 1e-5."""
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=2\n")
    whole = tmp_path / "whole"
    settings = [*settings, "model.dropout=0", "parallel.zero_stage=2", "training.max_steps=120"]
    run_to_its_end(whole, settings)
    supervised = supervise(tmp_path / "run", settings, "--hostfile", str(hosts))
    wait_for_checkpoint(supervised, 0)
    hosts.write_text("localhost slots=1\n")
    ranks(supervised)[1].kill()
    assert supervised.wait() == 0, supervised.console
    assert supervised.said(r"2 processes on localhost")
    assert supervised.said(r"1 processes on localhost")
    assert_same(read_rows(supervised.directory), read_rows(whole), 1e-5)


def test_a_refused_run_is_not_started_again(settings, tmp_path):
    supervised = supervise(tmp_path / "run", [*settings, "data.path=absent"])
    assert supervised.wait() == 2, supervised.console
    assert supervised.said("start 1 refused: ConfigError: data.path: absent: no such folder")
    assert len(supervised.said("start ")) == 2
