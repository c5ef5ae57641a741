"""The number of threads that a process takes."""

from __future__ import annotations

import pytest

from gpt_dist import topology
from gpt_dist.rendezvous import Launch


@pytest.mark.parametrize(
    ("launcher", "processes", "wanted", "expected"),
    [
        ("python", 1, None, 8),
        ("deepspeed", 2, None, 4),
        ("mpirun", 16, None, 1),
        ("deepspeed", 2, "3", 3),
        ("python", 1, "1", 1),
        ("torchrun", 2, "1", 4),  # which torchrun sets on its own
        ("torchrun", 2, "2", 2),
        ("python", 1, "", 8),
        ("python", 1, "4,2", 8),
    ],
)
def test_a_process_takes_its_share_of_the_cores_or_what_is_asked_for(
    monkeypatch, launcher, processes, wanted, expected
):
    monkeypatch.setattr(topology.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if wanted is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    launch = Launch(
        rank=0, world_size=processes, local_rank=0, local_world_size=processes, launcher=launcher
    )
    assert topology._threads(launch) == expected
