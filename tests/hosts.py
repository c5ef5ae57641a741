"""Two hosts on one machine: network namespaces whose own names resolve to 127.0.1.1."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

HOSTS = ("node1", "node2")
"""Names of the hosts; `ip netns exec` gives each its own /etc/hosts."""

DEVICES = ("eth7", "eth8")
CLONE_NEWUTS, CLONE_NEWNET = 0x04000000, 0x40000000


def ip(arguments: str) -> str:
    command = ["ip", *arguments.split()]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Host:
    """A network namespace, and a name that its processes get."""

    name: str
    namespace: str
    device: str
    address: str

    def enter(self) -> None:
        """Move this process to the host, but for its /etc/hosts."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path(f"/run/netns/{self.namespace}").open() as namespace:
            libc.setns(namespace.fileno(), CLONE_NEWNET)
        libc.unshare(CLONE_NEWUTS)
        socket.sethostname(self.name)

    def start(self, command: list[str], console: Path, **environment: str) -> subprocess.Popen[str]:
        """Start a command, whose output goes to the end of a file."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        with console.open("a") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *named, *command],
                env=os.environ | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def pretrain(self, rank: int, arguments: list[str], console: Path) -> subprocess.Popen[str]:
        """Start the one process of this host, as the deepspeed launcher of each host does."""
        return self.start(
            [sys.executable, "launch/pretrain.py", "configs/pretrain/tiny.yaml", *arguments],
            console,
            RANK=str(rank),
            WORLD_SIZE=str(len(HOSTS)),
            LOCAL_RANK="0",
            LOCAL_SIZE="1",
            MASTER_ADDR=HOSTS[0],
            MASTER_PORT="29500",
            CUDA_VISIBLE_DEVICES="",
        )

    def kill_all(self) -> None:
        """End all processes of the host at once, as a loss of power does."""
        for pid in ip(f"netns pids {self.namespace}").split():
            with suppress(ProcessLookupError):  # which ended with another
                os.kill(int(pid), signal.SIGKILL)

    def set_link(self, state: str) -> None:
        """Take the cable out ("down") or put it back ("up")."""
        ip(f"-n {self.namespace} link set {self.device} {state}")


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Two connected network namespaces; in each its own name resolves to 127.0.1.1."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root, and the command ip of iproute2")
    found = [
        Host(name, f"{name}-{os.getpid()}", device, f"10.77.0.{number}")
        for number, (name, device) in enumerate(zip(HOSTS, DEVICES, strict=True), 1)
    ]
    with ExitStack() as undo:
        try:
            for host in found:
                ip(f"netns add {host.namespace}")
                undo.callback(ip, f"netns delete {host.namespace}")
                undo.callback(host.kill_all)
            first, second = found
            ip(
                f"link add {first.device} netns {first.namespace} type veth "
                f"peer name {second.device} netns {second.namespace}"
            )
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr}")
        for number, host in enumerate(found):
            ip(f"-n {host.namespace} address add {host.address}/24 dev {host.device}")
            ip(f"-n {host.namespace} link set lo up")
            host.set_link("up")
            folder = Path("/etc/netns") / host.namespace
            folder.mkdir(parents=True)
            undo.callback(shutil.rmtree, folder)
            (folder / "hosts").write_text(
                "127.0.0.1 localhost\n"
                f"127.0.1.1 {host.name}\n"
                f"{found[1 - number].address} {HOSTS[1 - number]}\n"
            )
        yield found
