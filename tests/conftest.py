"""Fixtures that several tests share, and the rows of the table of faults in their results."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.cluster import cluster
from tests.fault_table import mark_rows, record
from tests.hosts import hosts
from tests.process_group import ProcessGroup

__all__ = ["cluster", "hosts"]

# As for the commands, which have their parts there; last, so that nothing installed is hidden.
sys.path.append(str(Path("launch").resolve()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note the rows of the table of faults; refuse marks that it cannot take."""
    for item in items:
        mark_rows(item)


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str, float], None]:
    """Return a function that takes a time for the table of faults: of what, and its seconds."""
    return partial(record, request)


@pytest.fixture(scope="session")
def process_group() -> Iterator[Callable[[int], ProcessGroup]]:
    """Return a function that gives connected processes by number; each group starts once."""
    groups: dict[int, ProcessGroup] = {}

    def get(size: int) -> ProcessGroup:
        if size not in groups or not groups[size].alive:
            groups[size] = ProcessGroup(size)
        return groups[size]

    yield get
    for group in groups.values():
        group.close()


@pytest.fixture(scope="session")
def token_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a token folder of the bundled books with a small vocabulary, as users do."""
    folder = tmp_path_factory.mktemp("data") / "tokens"
    subprocess.run(
        [
            *(sys.executable, "-m", "data_prep", "build", "data_prep/sample_books"),
            *("--output", str(folder), "--vocab-size", "500", "--workers", "2"),
        ],
        check=True,
        timeout=120,
    )
    return folder
