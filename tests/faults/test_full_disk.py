"""A disk that is full while a checkpoint is written: the old one stays, every rank says why."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_dist.checkpoint.folder import newest_valid, steps
from gpt_dist.errors import CheckpointError
from gpt_dist.rendezvous import Launch
from tests.distributed.test_layouts import SMALL
from tests.runs import train

pytestmark = pytest.mark.faults


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one checkpoint and a half."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow mounts")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def failure(launch: Launch, device: torch.device, overrides: dict[str, Any], folder: Path) -> str:
    try:
        train(launch, device, overrides, folder)
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_full_disk(process_group, token_folder, small_disk, asynchronous):
    settings = SMALL | {
        "data.path": token_folder,
        "training.max_steps": 8,
        "checkpoint.interval": 2,
        "checkpoint.asynchronous": asynchronous,
    }
    for rank, message in enumerate(process_group(2).run(failure, settings, small_disk)):
        assert "not written" in message, f"rank {rank}"
        assert "No space left" in message, f"rank {rank}"
    folder = small_disk / "checkpoints"
    assert steps(folder) == [2]
    checkpoint = newest_valid(folder, pytest.fail)
    assert checkpoint is not None
    assert checkpoint.manifest.step == 2
    assert not list(folder.glob(".*"))
