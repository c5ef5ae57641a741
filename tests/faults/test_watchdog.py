"""A process or a host that dies, stops, hangs or refuses: the others name it, and end soon."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from gpt_dist.command import RESUMABLE, USER_ERROR
from gpt_dist.train.status import read_status
from tests.faults.ranks import (
    Fault,
    InStep,
    Ranks,
    hang,
    kill,
    leave,
    pause,
    refuse,
    stop,
)
from tests.hosts import Host
from tests.launching import BIN, LAUNCHERS, free_port, start, wait_for_step

pytestmark = pytest.mark.faults

SECONDS = 6
"""Silence that the runs here bear."""

WAITED = f"`training.watchdog` {SECONDS}"

SETTINGS = [
    "training.max_steps=100000",
    "training.compile=false",
    "training.global_batch_size=4",
    "model.hidden_size=64",
    "model.sequence_length=32",
    "validation.max_samples=1",
    "logging.interval=1",
    f"training.watchdog={SECONDS}",
]
STEP = 20
HERE = socket.gethostname()


def logged(directory: Path, rank: int) -> str:
    return (directory / f"logs/rank-{rank}.log").read_text()


def assert_one_error(console: str, expected: str) -> None:
    (line,) = re.findall(r"error: .*", console)
    assert re.fullmatch(expected, line), line
    assert "Traceback" not in console


def assert_recorded(directory: Path, state: str, why: str) -> None:
    status = read_status(directory)
    assert status
    assert (status.state, why in status.why) == (state, True), status


@pytest.mark.row(7, case=f"SIGSTOP of rank {{rank}}, {WAITED}")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_named(token_folder, tmp_path, measured, rank):
    ranks = Ranks(tmp_path, [*SETTINGS, f"data.path={token_folder}"], {rank: InStep(STEP, stop)})
    stopped, other = ranks.processes[rank], ranks.processes[1 - rank]
    is_stopped = psutil.Process(stopped.pid).status
    ranks.wait_until(lambda: is_stopped() == psutil.STATUS_STOPPED)
    begin = time.monotonic()
    other.join(60)
    measured("until the other ended", time.monotonic() - begin)
    try:
        assert other.exitcode == 1, ranks.console
        silent = rf"no answer for [6-9] s at step {STEP}; ending the run"
        assert_one_error(ranks.console, rf"error: rank {rank} on {HERE}: {silent}")
        assert "train_batch" in logged(tmp_path, 1 - rank)
    finally:
        assert stopped.pid
        os.kill(stopped.pid, signal.SIGCONT)
    assert 0 not in ranks.wait(30), "it goes on alone"


@pytest.mark.row(7, case=f"rank {{rank}} hangs, {WAITED}")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_hanging_rank_is_named_and_its_stack_kept(token_folder, tmp_path, rank):
    ranks = Ranks(tmp_path, [*SETTINGS, f"data.path={token_folder}"], {rank: InStep(STEP, hang)})
    assert ranks.wait() == [1, 1], ranks.console
    place = rf"in hang, ranks\.py:\d+, at step {STEP}; ending the run"
    assert_one_error(ranks.console, rf"error: rank {rank} on {HERE}: no progress for \d+ s {place}")
    assert re.search(r"line \d+ in hang", logged(tmp_path, rank))
    assert re.search(r"line \d+ in train_batch", logged(tmp_path, 1 - rank))
    assert_recorded(tmp_path, "failed", f"rank {rank} on {HERE}: no progress")


@pytest.mark.parametrize(
    "act", [kill, pytest.param(leave, marks=pytest.mark.row(8, case="rank {rank} in mid-run"))]
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_or_leaves_in_mid_run_is_named(
    token_folder, tmp_path, measured, rank, act
):
    ranks = Ranks(tmp_path, [*SETTINGS, f"data.path={token_folder}"], {rank: InStep(STEP, act)})
    measured("until the other ended", ranks.wait_for_others(rank))
    assert ranks.wait()[1 - rank] == 1, ranks.console
    assert_one_error(ranks.console, rf"error: rank {rank} on {HERE}: no answer for .*")


def test_nothing_that_takes_its_time_is_ended(token_folder, tmp_path):
    """One of the first steps of a start, which compile, may take longer than the watchdog waits."""
    settings = [*SETTINGS, f"data.path={token_folder}", "training.watchdog=3"]
    settings += ["training.max_steps=30"]
    ranks = Ranks(tmp_path, settings, {1: InStep(3, pause)})
    assert ranks.wait() == [0, 0], ranks.console


def test_a_run_that_is_stopped_whole_goes_on(token_folder, tmp_path):
    settings = [*SETTINGS, f"data.path={token_folder}", "training.watchdog=3"]
    ranks = Ranks(tmp_path, settings)
    ranks.wait_until(lambda: f"step {STEP}/" in ranks.console)
    pids = [process.pid for process in ranks.processes]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(8)
    printed = len(ranks.console)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    ranks.wait_until(lambda: ranks.console.count("step ", printed) > 100)
    os.kill(pids[1], signal.SIGINT)
    assert ranks.wait() == [RESUMABLE] * 2, ranks.console


@pytest.mark.row(28, case="rank {rank} cannot read the manifest")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_refusal_of_one_rank_before_the_processes_meet_ends_all(token_folder, tmp_path, rank):
    settings = [*SETTINGS, f"data.path={token_folder}"]
    manifest = token_folder / "manifest.json"
    ranks = Ranks(tmp_path, settings, {rank: Fault("open", re.escape(str(manifest)), refuse)})
    assert ranks.wait(30) == [USER_ERROR] * 2, ranks.console
    assert_one_error(ranks.console, rf"error: {re.escape(str(token_folder))}: not a token folder.*")


@pytest.mark.row(28, case="rank 0 finds the directory locked")
def test_a_directory_in_use_ends_all(token_folder, tmp_path):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ranks = Ranks(tmp_path, [*SETTINGS, f"data.path={token_folder}"])
        assert ranks.wait(30) == [USER_ERROR] * 2, ranks.console
    assert_one_error(ranks.console, r"error: run\.directory: another run is using .*")


@pytest.mark.row(28, case="one rank finds a damaged shard")
def test_damage_that_one_rank_finds_is_reported_once(token_folder, tmp_path):
    folder = shutil.copytree(token_folder, tmp_path / "tokens")
    shard = folder / "train/shard-00000.bin"
    content = bytearray(shard.read_bytes())
    content[0] ^= 1
    shard.write_bytes(content)
    ranks = Ranks(tmp_path / "run", [*SETTINGS, f"data.path={folder}"])
    assert ranks.wait(30) == [USER_ERROR] * 2, ranks.console
    assert_one_error(ranks.console, rf"error: rank \d: {re.escape(str(shard))}: damaged.*")
    assert_recorded(tmp_path / "run", "refused", f"DataError: {shard}: damaged")


@pytest.mark.row(8, case="rank 1 before the processes meet, under {launcher}")
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_a_peer_that_ends_before_the_processes_meet_is_noticed(launcher, token_folder, tmp_path):
    script = tmp_path / "leave.py"
    script.write_text(
        "import os, runpy, sys\n"
        "if os.environ['RANK'] == '1':\n    sys.exit(0)\n"
        "runpy.run_path('launch/pretrain.py', run_name='__main__')\n"
    )
    command = [*LAUNCHERS[launcher], str(free_port()), str(script), "configs/pretrain/tiny.yaml"]
    command += [*SETTINGS, f"data.path={token_folder}", f"run.directory={tmp_path}/run"]
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert finished.returncode != 0
    assert "one of its 2 processes on" in finished.stderr


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_ctrl_c_saves(launcher, token_folder, tmp_path):
    settings = [*SETTINGS, f"data.path={token_folder}", f"run.directory={tmp_path}"]
    process = start(launcher, *settings, new_session=True)
    wait_for_step(tmp_path, STEP)
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, console = process.communicate(timeout=60)
    (step,) = re.findall(r"interrupted and saved at step (\d+)", console)
    assert (tmp_path / f"checkpoints/step-{int(step):08d}/manifest.json").exists()
    assert "gpt_dist/" not in console, "a traceback of ours"
    assert not psutil.wait_procs(started, timeout=10)[1]


PDSH = """#!{python}
import subprocess, sys, time
hosts, command = sys.argv[5].split(","), " ".join(sys.argv[6:])
for number in range(len(hosts)):
    subprocess.run(["setsid", "-f", "{sshd}", command.replace("%n", str(number))], check=True)
time.sleep(300)
"""
SSHD = """#!{python}
import subprocess, sys
sys.exit(subprocess.call(["sh", "-c", sys.argv[1]]))
"""


@pytest.fixture
def pdsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put stand-ins of pdsh and sshd on the path: all hosts are this one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("pdsh", PDSH), ("sshd", SSHD)):
        path = folder / name
        path.write_text(text.format(python=sys.executable, sshd=folder / "sshd"))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{BIN}:{os.environ['PATH']}")


@pytest.mark.usefixtures("pdsh")
@pytest.mark.parametrize("killed", ["deepspeed", "pdsh", "sshd"])
def test_a_run_over_ssh_saves_when_what_started_it_ends(token_folder, tmp_path, killed):
    (tmp_path / "hosts").write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    command = [sys.executable, f"{BIN}/deepspeed", "--hostfile", f"{tmp_path}/hosts"]
    command += ["--no_ssh_check", "--launcher", "pdsh", "--master_addr", "127.0.0.1"]
    command += ["--master_port", str(free_port()), "launch/pretrain.py"]
    command += ["configs/pretrain/tiny.yaml", *SETTINGS, f"data.path={token_folder}"]
    command += [f"run.directory={tmp_path}/run"]
    with (tmp_path / "console.txt").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    started = []
    try:
        wait_for_step(tmp_path / "run", STEP)
        started = [one for one in psutil.process_iter() if str(tmp_path) in str(one.cmdline())]
        names = {one.name(): one for one in started} | {"deepspeed": psutil.Process(process.pid)}
        ranks = [one for one in started if "launch/pretrain.py" in one.cmdline()[:3]]
        assert len(ranks) == 2
        names[killed].kill()
        assert not psutil.wait_procs(ranks, timeout=60)[1], "the run goes on"
    finally:
        for one in started:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.kill()
        process.wait()
    (step,) = re.findall(
        r"interrupted and saved at step (\d+)", (tmp_path / "console.txt").read_text()
    )
    assert (tmp_path / f"run/checkpoints/step-{int(step):08d}/manifest.json").exists()


def start_on(hosts: list[Host], token_folder: Path, directory: Path, *settings: str) -> Ranks:
    """Start a run of one process on each host, and return when it trains."""
    settings = *SETTINGS, f"data.path={token_folder}", *settings
    ranks = Ranks(directory, [*settings], hosts=hosts)
    ranks.wait_until(lambda: f"step {STEP}/" in ranks.console)
    return ranks


@pytest.mark.parametrize(
    "silently",
    [
        pytest.param(False, marks=pytest.mark.row(26, case="its processes die at once")),
        pytest.param(True, marks=pytest.mark.row(26, case=f"it is cut off and dies, {WAITED}")),
    ],
)
@pytest.mark.parametrize("lost", [0, 1])
def test_a_host_that_is_lost_ends_the_others(
    hosts, token_folder, tmp_path, measured, lost, silently
):
    """Of a host that has lost power not even the ends of its connections reach the other."""
    ranks = start_on(hosts, token_folder, tmp_path)
    if silently:
        hosts[lost].set_link("down")
    hosts[lost].kill_all()
    measured("until the other host ended", ranks.wait_for_others(lost, 30))
    assert ranks.wait()[1 - lost] == 1, ranks.console
    assert_one_error(ranks.console, rf"error: rank {lost} on {hosts[lost].name}: no answer for .*")


@pytest.mark.row(27, case=f"for good, {WAITED}")
def test_a_link_that_stays_cut_ends_the_run_on_both_sides(hosts, token_folder, tmp_path, measured):
    ranks = start_on(hosts, token_folder, tmp_path)
    begin = time.monotonic()
    hosts[1].set_link("down")
    assert ranks.wait(60) == [1, 1], ranks.console
    measured("until both sides ended", time.monotonic() - begin)
    errors = re.findall(r"error: (rank \d on node\d: no answer for [6-9] s at step)", ranks.console)
    assert {error[:15] for error in errors} == {"rank 0 on node1", "rank 1 on node2"}
    for rank in range(2):
        assert re.search(r"line \d+ in train_batch", logged(tmp_path, rank))


@pytest.mark.row(27, case="for {cut} s, `training.watchdog` {watchdog}")
@pytest.mark.parametrize(
    ("cut", "watchdog"), [(2, SECONDS), pytest.param(30, 60, marks=pytest.mark.soak)]
)
def test_a_link_that_comes_back_is_nothing(hosts, token_folder, tmp_path, measured, cut, watchdog):
    """It may take TCP as long as the cut to send again what was lost."""
    ranks = start_on(hosts, token_folder, tmp_path, f"training.watchdog={watchdog}")
    hosts[1].set_link("down")
    time.sleep(cut)
    printed, begin = len(ranks.console), time.monotonic()
    hosts[1].set_link("up")
    ranks.wait_until(lambda: ranks.console.count("step ", printed) > 20)
    measured(f"until it went on after {cut}", time.monotonic() - begin)
    os.kill(ranks.processes[1].pid or 0, signal.SIGTERM)
    assert ranks.wait(60) == [RESUMABLE] * 2, ranks.console
