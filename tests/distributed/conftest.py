"""A run that has ended, for all tests of what its checkpoints are good for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.checkpoints import RUN
from tests.runs import train


@pytest.fixture(scope="session")
def finished(process_group, token_folder, tmp_path_factory) -> Path:
    """The directory of a run with checkpoints at steps 2 and 4."""
    directory = tmp_path_factory.mktemp("finished")
    settings = RUN | {"training.max_steps": 4, "checkpoint.interval": 2}
    process_group(2).run(train, settings | {"data.path": token_folder}, directory)
    return directory


@pytest.fixture
def checkpoints(finished, tmp_path) -> Path:
    """A copy of its checkpoints, to be damaged."""
    return shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
