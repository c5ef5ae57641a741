"""A run over two hosts, made of network namespaces, whose own names resolve to 127.0.1.1."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.rows import read_rows

HOSTS = ("node1", "node2")
"""Names of the hosts; `ip netns exec` gives each its own /etc/hosts."""


def ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, text=True)


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Two connected network namespaces; in each its own name resolves to 127.0.1.1."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root, and the command ip of iproute2")
    names = [f"{host}-{os.getpid()}" for host in HOSTS]
    with ExitStack() as undo:
        try:
            for name in names:
                ip(f"netns add {name}")
                undo.callback(ip, f"netns delete {name}")
            ip(f"link add eth7 netns {names[0]} type veth peer name eth8 netns {names[1]}")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr}")
        for number, (name, device) in enumerate(zip(names, ("eth7", "eth8"), strict=True)):
            ip(f"-n {name} address add 10.77.0.{number + 1}/24 dev {device}")
            ip(f"-n {name} link set {device} up")
            ip(f"-n {name} link set lo up")
            folder = Path("/etc/netns") / name
            folder.mkdir(parents=True)
            undo.callback(shutil.rmtree, folder)
            (folder / "hosts").write_text(
                "127.0.0.1 localhost\n"
                f"127.0.1.1 {HOSTS[number]}\n"
                f"10.77.0.{2 - number} {HOSTS[1 - number]}\n"
            )
        yield names


def test_hosts_whose_own_names_resolve_to_a_loopback_address(namespaces, token_folder, tmp_path):
    arguments = [
        f"data.path={token_folder}",
        f"run.directory={tmp_path}",
        "parallel.tensor_parallel_size=2",
        "training.max_steps=3",
        "validation.max_samples=1",
        "logging.interval=1",
    ]
    processes = []
    for rank, (namespace, host) in enumerate(zip(namespaces, HOSTS, strict=True)):
        # As the deepspeed launcher of each host does.
        environment = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}
        environment |= {"MASTER_ADDR": HOSTS[0], "MASTER_PORT": "29500", "CUDA_VISIBLE_DEVICES": ""}
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host]
        command = [sys.executable, "launch/pretrain.py", "configs/pretrain/tiny.yaml", *arguments]
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", namespace, *named, *command],
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        consoles = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], consoles
    assert [row["step"] for row in read_rows(tmp_path) if "loss" in row] == [1, 2, 3]
