"""Two hosts that reach each other by ssh: every launcher trains there, and no fault is silent."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from gpt_dist.checkpoint.folder import step_path, steps
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.train.status import read_status
from tests.cluster import SshHost, hostfile
from tests.launching import launch
from tests.readme import cluster_command
from tests.rows import assert_same, read_rows

pytestmark = pytest.mark.faults

LAUNCHERS = ["deepspeed", "mpirun", "torchrun"]
STEP = 20
SETTINGS = [
    "training.compile=false",
    "training.global_batch_size=4",
    "training.watchdog=6",
    "model.hidden_size=64",
    "model.sequence_length=32",
    "validation.max_samples=1",
    "logging.interval=1",
]
ENDLESS = ["training.max_steps=100000", "checkpoint.interval=100000"]
PORT = 29500


class Run:
    """A run on two hosts, started as the README says."""

    def __init__(
        self, launcher: str, cluster: list[SshHost], directory: Path, settings: list[str]
    ) -> None:
        """Start the launcher on the first host, or on both as torchrun wants it."""
        self.cluster, self.directory = cluster, directory
        self._console = directory.with_name(f"{directory.name}.console")
        self._console.touch()
        file = None if launcher == "torchrun" else hostfile(directory.with_name("hosts"))
        words = [*cluster_command(launcher, file), *SETTINGS, *settings]
        words.append(f"run.directory={directory}")
        starting = cluster if launcher == "torchrun" else cluster[:1]
        self.launchers = [host.start(words, self._console) for host in starting]

    @property
    def console(self) -> str:
        """All that came to the consoles."""
        return self._console.read_text(errors="replace")

    def wait_for_step(self, step: int = STEP) -> None:
        """Return when a step is reported."""
        rows = self.directory / "metrics.jsonl"
        deadline = time.monotonic() + 90
        while f'"step": {step},' not in (rows.read_text() if rows.exists() else ""):
            if time.monotonic() > deadline:
                pytest.fail(f"too late\n{self.console}")
            time.sleep(0.02)

    def wait(self, seconds: float, hosts: list[SshHost] | None = None) -> float:
        """Return after how many seconds no process is left on the hosts, by default on all."""
        begin = time.monotonic()
        while left := [one for host in hosts or self.cluster for one in host.processes]:
            if time.monotonic() > begin + seconds:
                commands = [one.cmdline() for one in left]
                pytest.fail(f"not ended after {seconds} s: {commands}\n{self.console}")
            time.sleep(0.05)
        return time.monotonic() - begin

    def ranks(self) -> list[psutil.Process]:
        """Return the training processes, by host."""
        return [host.rank() for host in self.cluster]

    @property
    def errors(self) -> list[str]:
        """The lines that begin as errors, without what a launcher puts before them."""
        return re.findall(r"error: .*", self.console)

    @property
    def saved(self) -> int:
        """The newest step that is saved as a whole."""
        newest, *_ = steps(self.directory / "checkpoints")
        Checkpoint(step_path(self.directory / "checkpoints", newest)).files.verify()
        return newest


@pytest.fixture
def settings(token_folder: Path) -> list[str]:
    return [f"data.path={token_folder}"]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_trains_on_two_hosts(launcher, cluster, settings, tmp_path):
    settings = [*settings, "training.max_steps=30", "parallel.zero_stage=2"]
    run = Run(launcher, cluster, tmp_path / "run", settings)
    run.wait(90)
    assert read_status(run.directory).state == "complete", run.console
    here = tmp_path / "here"
    alone = launch("torchrun", *SETTINGS, *settings, f"run.directory={here}")
    assert alone.returncode == 0, alone.stderr
    # torchrun's one process a host has more threads, and so other last bits.
    tolerance = 1e-5 if launcher == "torchrun" else 0.0
    assert_same(read_rows(run.directory), read_rows(here), tolerance)


@pytest.mark.row(4, case="{killed}, two hosts with ssh")
@pytest.mark.parametrize(
    ("launcher", "killed"),
    [
        ("deepspeed", "deepspeed"),
        ("deepspeed", "pdsh"),
        ("mpirun", "mpirun"),
        ("torchrun", "torchrun"),
    ],
)
def test_a_killed_launcher_leaves_no_process(
    launcher, killed, cluster, settings, tmp_path, measured
):
    run = Run(launcher, cluster, tmp_path / "run", [*settings, *ENDLESS])
    run.wait_for_step()
    if killed == "pdsh":
        next(one for one in cluster[0].processes if "pdsh" in one.name()).kill()
    else:
        run.launchers[0].kill()
    measured("until no process was left", run.wait(60))
    assert read_status(run.directory).state != "complete", run.console
    if launcher != "mpirun":  # whose daemons kill at once what they started
        assert run.saved >= STEP


@pytest.mark.row(26, case="power lost, under {launcher}, two hosts with ssh")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_host_that_loses_power_ends_the_others(launcher, cluster, settings, tmp_path, measured):
    """The other host goes on alone, with the losses of a run that nothing disturbs."""
    settings = [*settings, "model.dropout=0", "checkpoint.interval=20"]
    run = Run(launcher, cluster, tmp_path / "run", [*settings, "training.max_steps=100000"])
    run.wait_for_step(50)
    cluster[1].lose_power()
    measured("until the others ended", run.wait(120, cluster[:1]))
    if launcher == "mpirun":  # which notices before our processes, and ends them
        assert re.search(r"(Remote (host|daemon) *:|error: rank 1 on) .*node2", run.console)
    else:
        assert "error: rank 1 on node2: no answer" in run.console
        assert read_status(run.directory).state == "failed"
    last = 20 * (run.saved // 20 + 1)
    settings += [f"training.max_steps={last}", "schedule.decay_steps=100000"]
    for directory in (run.directory, tmp_path / "whole"):
        alone = launch("python", *SETTINGS, *settings, f"run.directory={directory}")
        assert alone.returncode == 0, alone.stderr
    assert_same(read_rows(run.directory), read_rows(tmp_path / "whole"), 1e-5)


@pytest.mark.soak
@pytest.mark.row(26, case="power lost, {script} with its supervisor")
@pytest.mark.parametrize("script", ["deepspeed-hosts.sh", "mpi.sh"])
def test_a_template_goes_on_without_a_lost_host(script, cluster, settings, tmp_path):
    last, whole, directory = 600, tmp_path / "whole", tmp_path / "run"
    settings = [*SETTINGS, *settings, "model.dropout=0", "checkpoint.interval=100"]
    settings += [f"training.max_steps={last}", "logging.interval=100"]
    words = ["launch/pretrain.py", "configs/pretrain/tiny.yaml", *settings]
    text, count = re.subn(
        r"COMMAND=\(.*\)",
        f"COMMAND=({' '.join(words)} run.directory={directory})",
        Path("launch/cluster", script).read_text(),
    )
    assert count == 1
    for name in ("launch", "configs"):
        (tmp_path / name).symlink_to(Path(name).resolve())
    path = tmp_path / "scripts/cluster" / script
    path.parent.mkdir(parents=True)
    path.write_text(text)
    hosts, console = hostfile(tmp_path / "hosts"), tmp_path / "console.txt"
    starter = cluster[0].start(["bash", str(path)], console)
    deadline = time.monotonic() + 240
    while not steps(directory / "checkpoints"):
        assert starter.is_running(), console.read_text()
        time.sleep(0.01)
    hosts.write_text(f"{cluster[0].name} slots=1\n")
    cluster[1].lose_power()
    while starter.is_running():
        assert time.monotonic() < deadline, console.read_text()
        time.sleep(0.1)
    log = (directory / "supervisor.log").read_text()
    assert re.search(r"2 processes on node1, node2(.|\n)*1 processes on node1 ", log), log
    assert read_status(directory).state == "complete", log
    alone = launch("python", *settings, f"run.directory={whole}")
    assert alone.returncode == 0, alone.stderr
    assert_same(read_rows(directory), read_rows(whole), 1e-5)


@pytest.mark.row(28, case="a host without the data, under {launcher}")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_host_without_the_data_is_said_once(
    launcher, cluster, token_folder, settings, tmp_path, measured
):
    cluster[1].hide(token_folder)
    run = Run(launcher, cluster, tmp_path / "run", settings)
    measured("from the start until all ended", run.wait(30))
    (error,) = run.errors
    assert str(token_folder) in error


@pytest.mark.row(35, case="under {launcher}")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_directories_of_the_hosts_own_are_refused(launcher, cluster, settings, tmp_path, measured):
    (tmp_path / "runs").mkdir()
    cluster[1].hide(tmp_path / "runs")
    run = Run(launcher, cluster, tmp_path / "runs/first", settings)
    measured("from the start until all ended", run.wait(40))
    (error,) = run.errors
    assert "node2 does not see what node1 writes to" in error
    assert read_status(run.directory).state == "refused"
    assert not steps(run.directory / "checkpoints")


@pytest.mark.row(23, case="a busy port under deepspeed, two hosts with ssh")
def test_a_busy_port_ends_all(cluster, settings, tmp_path):
    """Another program listens where rank 0 should, and does not answer."""
    server = f"import socket, time; one = socket.create_server(('', {PORT})); time.sleep(1000)"
    busy = cluster[0].start([sys.executable, "-c", server], tmp_path / "server.txt")
    time.sleep(1)
    run = Run("deepspeed", cluster, tmp_path / "run", settings)
    deadline = time.monotonic() + 45
    while [one for host in cluster for one in host.processes if one != busy]:
        assert time.monotonic() < deadline, run.console
        time.sleep(0.1)
    assert any(f"rank 0 cannot listen on port {PORT}" in error for error in run.errors)
    assert any("what listens there is not rank 0" in error for error in run.errors)


@pytest.mark.row(34, case="{number.name} to {launcher}, two hosts with ssh")
@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        ("deepspeed", signal.SIGTERM),
        ("torchrun", signal.SIGTERM),
        # mpirun kills half a second after SIGTERM, whatever its parameters.
        ("mpirun", signal.SIGUSR1),
    ],
)
def test_a_signal_to_the_launcher_saves(launcher, number, cluster, settings, tmp_path, measured):
    run = Run(launcher, cluster, tmp_path / "run", [*settings, *ENDLESS])
    run.wait_for_step()
    for process in run.launchers:
        process.send_signal(number)
    measured("until all had saved and ended", run.wait(60))
    assert run.saved >= STEP, run.console
