"""Test the supervisor around a script that only records, so that each start takes no time."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from gpt_dist.train.status import lock
from tests.supervising import Supervised

SCRIPT = """
import os, signal, subprocess, sys, time
from pathlib import Path
from gpt_dist.train.status import Status

run = Path(next(word for word in sys.argv if word.startswith("run.directory=")).split("=")[1])
number = len(list(run.glob("start-*"))) + 1
(run / f"start-{number}").write_text(" ".join(sys.argv))

def say(state, step=None, why=""):
    Status(state, step, why).write(run)

def save(step):
    (run / f"checkpoints/step-{step:08d}").mkdir(parents=True)

def stop(*_):
    say("interrupted", 7, "by a signal")
    sys.exit(75)
"""

Start = Callable[..., Supervised]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Return a function that supervises a script whose behaviour is Python code."""

    def start(behaviour: str, *options: str, overrides: tuple[str, ...] = ()) -> Supervised:
        script = tmp_path / "pretrain.py"
        script.write_text(SCRIPT + behaviour)
        directory = tmp_path / "run"
        words = [sys.executable, str(script), "configs/pretrain/tiny.yaml"]
        words += [f"run.directory={directory}", *overrides]
        return Supervised(directory, ["--back-off", "0.1", *options], words)

    return start


def starts(supervised: Supervised) -> int:
    return len(list(supervised.directory.glob("start-*")))


def test_a_complete_run(start):
    supervised = start('say("running"); say("complete", 9); sys.exit(1)')
    assert supervised.wait() == 0
    assert supervised.said(r"start 1 complete: 9 steps")
    for line in supervised.log.splitlines():
        assert line in supervised.console


@pytest.mark.parametrize("restarts", [0, 2])
def test_a_run_that_fails_at_once_is_given_up(start, restarts):
    supervised = start("sys.exit(0)", "--max-restarts", str(restarts))
    assert supervised.wait() == 1
    assert starts(supervised) == restarts + 1
    assert supervised.said(f"given up after {restarts} restart")
    assert supervised.said("it recorded nothing; its launcher ended with status 0")


def test_new_checkpoints_are_progress(start):
    """The third and the fifth start make one; three in a row without one are given up."""
    behaviour = 'if number in (3, 5): save(number)\nsay("failed", 1, "RuntimeError: lost")'
    supervised = start(behaviour, "--max-restarts", "2")
    assert supervised.wait() == 1
    assert starts(supervised) == 7
    assert supervised.said(r"start 6 from step-00000005: ")
    assert len(supervised.said(r"failed: rank 0 on \S+: RuntimeError: lost")) == 7


def test_a_refused_run_is_not_started_again(start):
    supervised = start('say("refused", None, "DataError: tokens: no such folder"); sys.exit(1)')
    assert supervised.wait() == 2
    assert starts(supervised) == 1
    assert supervised.said("start 1 refused: DataError: tokens: no such folder")


def test_a_preempted_run_is_not_started_again(start):
    """The scheduler told the processes, and not the supervisor."""
    supervised = start("stop()")
    assert supervised.wait() == 75
    assert starts(supervised) == 1


WAITING = """
signal.signal(signal.SIGTERM, stop)
say("running", 0)
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_save_is_waited_for(start, number):
    slow = WAITING.replace(
        "while", "write = say\nsay = lambda *a: (time.sleep(1), write(*a))\nwhile"
    )
    supervised = start(slow)
    supervised.wait_until((supervised.directory / "status.json").exists)
    supervised.process.send_signal(number)
    assert supervised.wait() == 75
    assert supervised.said(f"{number.name}: the run is told to save and end")
    assert supervised.said("start 1 interrupted: by a signal")


def test_a_signal_between_two_starts(start):
    supervised = start("sys.exit(1)", "--back-off", "60")
    supervised.wait_until(lambda: supervised.said("starting again in 60 s"))
    supervised.process.terminate()
    assert supervised.wait() == 75
    assert starts(supervised) == 1


def test_a_run_that_does_not_end_is_killed(start):
    deaf = 'signal.signal(signal.SIGTERM, signal.SIG_IGN); say("running", 0); time.sleep(999)'
    supervised = start(deaf, "--grace", "1")
    supervised.wait_until((supervised.directory / "status.json").exists)
    supervised.process.terminate()
    assert supervised.wait() == 1
    assert supervised.said("it has not ended within 1 s: killed")
    assert supervised.said("ended without a word after step 0")


def test_no_process_of_a_dead_start_is_left_at_the_next(start):
    """The first start leaves a child that hears no signal, in a session of its own."""
    behaviour = """
if number > 1:
    say("complete", 1)
    sys.exit()
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(999)"
child = subprocess.Popen([sys.executable, "-c", deaf], stdout=-1, start_new_session=True)
child.stdout.read(1)
(run / "child").write_text(str(child.pid))
os.kill(os.getpid(), signal.SIGKILL)
"""
    supervised = start(behaviour, "--grace", "0.5")
    supervised.wait_until(lambda: starts(supervised) == 2)
    child = int((supervised.directory / "child").read_text())
    assert not psutil.pid_exists(child)
    assert supervised.wait() == 0
    assert supervised.said(f"process {child}: still there after 0 s, killed")
    assert supervised.said("its launcher was ended by SIGKILL")


def test_a_killed_supervisor_leaves_no_process(start):
    supervised = start(WAITING)
    supervised.wait_until((supervised.directory / "status.json").exists)
    below = supervised.below
    assert below
    supervised.process.kill()
    assert not psutil.wait_procs(below, timeout=10)[1]
    assert '"interrupted"' in (supervised.directory / "status.json").read_text()


def test_a_restart_goes_on_where_resume_is_never(start):
    behaviour = 'save(number)\nsay("complete" if number == 2 else "failed", number)'
    supervised = start(behaviour, overrides=("training.resume=never",))
    assert supervised.wait() == 0
    first, second = ((supervised.directory / f"start-{n}").read_text().split() for n in (1, 2))
    assert second == [*first, "training.resume=auto"]


def test_a_directory_in_use_is_refused(start, tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    with lock(directory):
        supervised = start("stop()", "--grace", "1")
        assert supervised.wait() == 2
    assert "another run is using" in supervised.log
    assert starts(supervised) == 0


def test_a_directory_that_becomes_free_is_used(start, tmp_path):
    """The processes of a supervisor that was killed save, and hold the lock meanwhile."""
    directory = tmp_path / "run"
    directory.mkdir()
    with lock(directory):
        supervised = start('say("complete", 1)')
        supervised.wait_until(lambda: supervised.said("waiting up to 300 s"))
    assert supervised.wait() == 0


def test_a_checkpoint_that_is_made_again_is_progress(start):
    behaviour = """
folder = run / "checkpoints/step-00000001"
if folder.exists():
    folder.rename(run / f"earlier-{number}")
save(1)
say("complete" if number == 3 else "failed", number)
"""
    supervised = start(behaviour, "--max-restarts", "1")
    assert supervised.wait() == 0


def test_a_second_supervisor_is_refused(start):
    first = start(WAITING)
    first.wait_until((first.directory / "status.json").exists)
    second = Supervised(first.directory.with_name("run"), [], list(first.process.args)[3:])
    assert second.process.wait(30) == 2
    first.process.terminate()
    assert first.wait() == 75


def test_a_command_that_is_not_there(tmp_path):
    words = ["no-such-launcher", "launch/pretrain.py", "configs/pretrain/tiny.yaml"]
    supervised = Supervised(tmp_path / "run", [], [*words, f"run.directory={tmp_path}/run"])
    assert supervised.wait() == 2
    assert supervised.said("no-such-launcher: cannot be started")
