"""Check what is said at the signal that ends a run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from gpt_dist.rendezvous import Launch
from gpt_dist.train.interruption import LONG_STEP, SIGNALS, Interruption
from gpt_dist.watchdog import UNTIMED, Progress


@pytest.fixture(autouse=True)
def _handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupt(monkeypatch, capfd, seconds: float, folder: Path, rank: int = 0) -> str:
    """Return what is said at two signals in a run whose steps take so many seconds."""
    progress, now = Progress(), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for number in range(UNTIMED + 2):
        progress.begin("step", number)
        now[0] += seconds
    interruption = Interruption(Launch("test", rank, 2, rank, 2), progress)
    interruption.folder = folder
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    assert interruption.noted
    return capfd.readouterr().err


def test_the_newest_checkpoint_is_named_with_its_age(monkeypatch, capfd, tmp_path):
    for step, minutes in ((100, 50), (200, 14)):
        (tmp_path / f"step-{step:08d}").mkdir()
        made = time.time() - 60 * minutes
        os.utime(tmp_path / f"step-{step:08d}", (made, made))
    said = interrupt(monkeypatch, capfd, 2 * LONG_STEP, tmp_path)
    assert said == (
        "a signal ends the run after this step, which may take 10 s; until it is saved, the newest "
        "checkpoint is of step 200, 14 minutes old\n"
    )


def test_a_run_without_checkpoints(monkeypatch, capfd, tmp_path):
    said = interrupt(monkeypatch, capfd, 2 * LONG_STEP, tmp_path / "absent")
    assert said.endswith("until it is saved, there is no checkpoint\n")


@pytest.mark.parametrize(("seconds", "rank"), [(LONG_STEP / 2, 0), (2 * LONG_STEP, 1)])
def test_nothing_is_said_of_short_steps_or_by_other_ranks(
    monkeypatch, capfd, tmp_path, seconds, rank
):
    assert interrupt(monkeypatch, capfd, seconds, tmp_path, rank) == ""
