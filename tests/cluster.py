"""Two hosts on one machine that reach each other by ssh, as those of a cluster do.

Each has its own network, name, processes and /etc; the file systems are shared.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.hosts import HOSTS, Host
from tests.launching import BIN

PROGRAMS = ("sshd", "ssh", "ssh-keygen", "pdsh", "nsenter")
"""Programs that the hosts need beside `ip`."""

SSHD = """HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/user_key.pub
PidFile none
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
SetEnv PATH={path} TMPDIR={scratch} CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
"""
SSH = """Host *
    IdentityFile /etc/ssh/user_key
    GlobalKnownHostsFile /etc/ssh/known_hosts
    StrictHostKeyChecking yes
"""
PATH = f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class SshHost:
    """A host with a server of ssh, which is the first of its processes."""

    host: Host
    first: psutil.Process
    scratch: Path
    """Folder of temporary files, which Open MPI names after processes' numbers on their hosts."""

    @property
    def name(self) -> str:
        """Name of the host."""
        return self.host.name

    def start(self, command: list[str], console: Path) -> psutil.Process:
        """Start a command in this directory; its output goes to the end of a file.

        Returns the command's own process.
        """
        enter = ["nsenter", "--target", str(self.first.pid), "--mount", "--uts", "--net", "--pid"]
        environment = os.environ | {
            "PATH": PATH,
            "TMPDIR": str(self.scratch),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }
        with console.open("a") as output:
            outer = subprocess.Popen(
                [*enter, f"--wd={Path.cwd()}", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 10
        while not (inner := psutil.Process(outer.pid).children()):
            if time.monotonic() > deadline:
                pytest.fail(f"{command[0]} does not start on {self.name}\n{console.read_text()}")
            time.sleep(0.01)
        return inner[0]

    @property
    def processes(self) -> list[psutil.Process]:
        """All processes of the host, but for its server of ssh."""
        own = os.readlink(f"/proc/{self.first.pid}/ns/pid")
        found = []
        for process in psutil.process_iter():
            try:
                if os.readlink(f"/proc/{process.pid}/ns/pid") == own and process != self.first:
                    found.append(process)
            except (OSError, psutil.NoSuchProcess):
                continue
        return found

    def find(self, *words: str) -> psutil.Process:
        """Return the first process of the host whose command has all these words."""
        for process in self.processes:
            try:
                if {*words} <= {*process.cmdline()}:
                    return process
            except psutil.Error:
                continue
        raise LookupError(f"no process of {words} on {self.name}")

    def rank(self) -> psutil.Process:
        """Return the training process of the host."""
        for process in self.processes:
            try:
                if process.cmdline()[1:].index("launch/pretrain.py") < 2:
                    return process
            except (psutil.Error, ValueError):
                continue
        raise LookupError(f"no training process on {self.name}")

    def hide(self, folder: Path) -> None:
        """Put an empty file system of the host's own in the place of a folder."""
        enter = ["nsenter", "--target", str(self.first.pid), "--mount"]
        mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder)]
        subprocess.run([*enter, *mount], check=True)

    def lose_power(self) -> None:
        """End all processes of the host at once."""
        self.first.send_signal(signal.SIGKILL)


@pytest.fixture
def cluster(hosts: list[Host], tmp_path: Path) -> Iterator[list[SshHost]]:
    """Two hosts that reach each other by ssh, for this user, without a password."""
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=PATH)]:
        pytest.skip(f"no {', '.join(missing)}: apt-get install openssh-server pdsh util-linux")
    keys = tmp_path / "ssh"
    keys.mkdir()
    for name in ("host_key", "user_key"):
        generate = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)]
        subprocess.run(generate, check=True)
    public = (keys / "host_key.pub").read_text()
    known = [name for host in hosts for name in (host.name, host.address)]
    (keys / "known_hosts").write_text(f"{','.join(known)} {public}")
    (keys / "ssh_config").write_text(SSH)
    Path("/run/sshd").mkdir(exist_ok=True)
    with ExitStack() as undo:
        found = []
        for host in hosts:
            console, scratch = tmp_path / f"sshd-{host.name}.txt", tmp_path / f"tmp-{host.name}"
            scratch.mkdir()
            folder = Path("/etc/netns") / host.namespace
            shutil.copytree(keys, folder / "ssh")
            (folder / "ssh/sshd_config").write_text(SSHD.format(path=PATH, scratch=scratch))
            (folder / "passwd").write_text(_users(tmp_path))
            server = ["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/sshd_config"]
            own_processes = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
            started = host.start([*own_processes, *server], console)
            undo.callback(started.wait)
            undo.callback(started.kill)
            found.append(SshHost(host, _first_process(started.pid, console), scratch))
        yield found


def _users(home: Path) -> str:
    """Return /etc/passwd with another home and a plain shell for root."""
    lines = Path("/etc/passwd").read_text().splitlines(keepends=True)
    return f"root:x:0:0:root:{home}:/bin/sh\n" + "".join(x for x in lines if x[:5] != "root:")


def _first_process(pid: int, console: Path) -> psutil.Process:
    """Return the process below one that is the first of a PID namespace, once it serves."""
    deadline = time.monotonic() + 10
    while "Server listening" not in console.read_text():
        if time.monotonic() > deadline:
            pytest.fail(f"sshd does not start\n{console.read_text()}")
        time.sleep(0.01)
    (first,) = psutil.Process(pid).children()
    return first


def hostfile(path: Path, slots: int = 1) -> Path:
    """Write DeepSpeed's form of the hosts, which Open MPI reads too."""
    path.write_text("".join(f"{name} slots={slots}\n" for name in HOSTS))
    return path
