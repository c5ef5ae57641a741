"""A run over two hosts, made of network namespaces, whose own names resolve to 127.0.1.1."""

from __future__ import annotations

import pytest

from tests.rows import read_rows


@pytest.mark.row(25, case="own name is 127.0.1.1, two hosts")
def test_hosts_whose_own_names_resolve_to_a_loopback_address(hosts, token_folder, tmp_path):
    arguments = [
        f"data.path={token_folder}",
        f"run.directory={tmp_path}",
        "parallel.tensor_parallel_size=2",
        "training.max_steps=3",
        "validation.max_samples=1",
        "logging.interval=1",
    ]
    console = tmp_path / "console.txt"
    processes = [host.pretrain(rank, arguments, console) for rank, host in enumerate(hosts)]
    assert [process.wait(120) for process in processes] == [0, 0], console.read_text()
    assert [row["step"] for row in read_rows(tmp_path) if "loss" in row] == [1, 2, 3]
