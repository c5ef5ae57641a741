"""SLURM on this machine: one node, daemons of its own, and no file outside a temporary folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.launching import BIN, free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "sinfo", "scontrol", "scancel")
DAEMONS = ("munged", "slurmctld", "slurmscriptd", "slurmd")
CPUS = 2

# A job that is put back waits for cred_expire seconds, 5 at the least and 120 by default, so that
# no task may start with the credentials of its former start.
CONFIGURATION = """\
ClusterName=tests
SlurmUser=root
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus}
PartitionName=all Nodes=ALL Default=YES
"""


@dataclass(frozen=True)
class Slurm:
    """The commands of a running cluster."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment by which the commands find this cluster, and no other one."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return own | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "SLURM_CONF": f"{self.folder}/slurm.conf",
            "CUDA_VISIBLE_DEVICES": "",
        }

    def run(self, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            words,
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    def ask(self, *words: str, folder: Path | None = None) -> str:
        """Return the output of a command, which must succeed."""
        finished = self.run(*words, folder=folder)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout.strip()

    def processes(self) -> list[psutil.Process]:
        """Return everything that runs by this cluster, but for its daemons."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                of_cluster = process.environ().get("SLURM_CONF") == f"{self.folder}/slurm.conf"
                if of_cluster and process.name() not in DAEMONS:
                    found.append(process)
        return found

    def stop(self) -> None:
        """End all jobs, and kill what is left of them."""
        self.run("scancel", "--user=root")
        gone = time.monotonic() + 20
        while self.processes() and time.monotonic() < gone:
            time.sleep(0.1)
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A cluster of this machine as a node of two processors."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if os.geteuid() or missing:
        pytest.skip("SLURM's daemons need root, and: apt-get install slurm-wlm munge")
    with ExitStack() as undo:
        # Not pytest's: the path of a socket must be short.
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        cluster = Slurm(folder)
        _configure(folder)
        _start(undo, cluster, "munged", "--foreground", "--force", *_munge_files(folder))
        _wait(cluster, (folder / "munge.socket").exists)
        _start(undo, cluster, "slurmctld", "-D")
        _start(undo, cluster, "slurmd", "-D")
        _wait(cluster, lambda: cluster.run("sinfo", "--noheader", "-o", "%T").stdout == "idle\n")
        undo.callback(cluster.stop)
        yield cluster


def _configure(folder: Path) -> None:
    text = CONFIGURATION.format(
        host=socket.gethostname().partition(".")[0],
        folder=folder,
        controller_port=free_port(),
        node_port=free_port(),
        cpus=CPUS,
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)


def _munge_files(folder: Path) -> list[str]:
    files = {f"--{kind}-file": folder / f"munge.{kind}" for kind in ("key", "pid", "seed", "log")}
    files["--socket"] = folder / "munge.socket"
    return [f"{option}={path}" for option, path in files.items()]


def _start(undo: ExitStack, cluster: Slurm, *words: str) -> None:
    """Start a daemon in the foreground, to be ended with all others in the reverse order."""
    with (cluster.folder / f"{words[0]}.console").open("w") as console:
        daemon = subprocess.Popen(
            words, env=cluster.environment, stdout=console, stderr=subprocess.STDOUT
        )
    undo.callback(_end, daemon)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _wait(cluster: Slurm, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            consoles = sorted(cluster.folder.glob("*.console"))
            pytest.fail("SLURM did not start\n" + "\n".join(one.read_text() for one in consoles))
        time.sleep(0.05)
