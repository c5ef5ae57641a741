"""The time that the watchdog allows for the work of a process."""

from __future__ import annotations

import math
import time

import pytest

from gpt_dist.rendezvous import Launch
from gpt_dist.watchdog import MULTIPLE, UNTIMED, Progress, Watchdog


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list whose one element is the time."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def make_steps(progress: Progress, clock: list[float], durations: list[float]) -> None:
    for number, seconds in enumerate(durations, 1):
        progress.begin("step", number)
        clock[0] += seconds
        progress.begin("other")


def test_first_steps_may_take_any_time_and_do_not_count(clock):
    progress = Progress()
    make_steps(progress, clock, [300.0] * UNTIMED)
    progress.begin("step", UNTIMED + 1)
    assert progress.state()["allowed"] == math.inf
    clock[0] += 2
    make_steps(progress, clock, [1, 3, 1])
    progress.begin("step", 99)
    clock[0] += 7
    state = progress.state()
    assert (state["step"], state["seconds"], state["allowed"]) == (99, 7, 3 * MULTIPLE)


def test_only_steps_and_validations_are_timed(clock):
    progress = Progress()
    make_steps(progress, clock, [1.0] * 20)
    for work in ("other", "save", "validation"):
        progress.begin(work)
        assert progress.state()["allowed"] == math.inf
    assert progress.state()["step"] == 20


def test_the_line_of_code_tells_who_waits():
    state = Progress().state()
    assert state["place"].startswith("state, watchdog.py:")
    assert not state["waits"]


def test_a_peer_of_whom_no_message_ever_came_is_warned_of_and_not_taken_for_dead(clock, capsys):
    launch = Launch("torchrun", 0, 3, 0, 1)
    watchdog = Watchdog(launch, None, 60, None, Progress())
    peer = {"heard": clock[0], "host": "node2", "step": 0, "seconds": 0, "allowed": math.inf}
    watchdog._peers = {1: peer | {"rank": 1}, 2: peer}
    assert watchdog._judge(clock[0] + 59) is None
    watchdog._peers[1]["heard"] = clock[0] + 60
    for _ in range(2):
        assert watchdog._judge(clock[0] + 61) is None
    assert capsys.readouterr().err == "WARNING: no UDP, so not watched: rank 2\n"
    end = watchdog._judge(clock[0] + 121)
    assert end
    assert end.reason.startswith("rank 1 on node2: no answer for 61 s")
