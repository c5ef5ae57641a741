"""Ports, directories, locks, clocks and hash seeds that are not as a run would like them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from gpt_dist.checkpoint.folder import step_path, steps
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.command import RESUMABLE, USER_ERROR
from gpt_dist.train.status import read_status
from tests.faults.ranks import Ranks, run_to_its_end
from tests.launching import BIN, LAUNCHERS, free_port, launch
from tests.rows import assert_same, read_rows

pytestmark = pytest.mark.faults

STEPS, HALF = 40, 20
SETTINGS = [
    f"training.max_steps={STEPS}",
    "training.compile=false",
    "training.global_batch_size=4",
    "model.hidden_size=64",
    "model.sequence_length=32",
    "model.dropout=0.1",
    "validation.max_samples=1",
    "logging.interval=1",
    f"checkpoint.interval={HALF}",
]


@pytest.fixture(scope="module")
def settings(token_folder: Path) -> list[str]:
    return [*SETTINGS, f"data.path={token_folder}"]


@pytest.fixture(scope="module")
def whole(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the run that nothing disturbs."""
    directory = tmp_path_factory.mktemp("whole")
    run_to_its_end(directory, settings)
    return directory


def run(launcher: str, port: int, *words: str, **environment: str) -> tuple[int, str]:
    """Start words under a launcher; return its exit status and all that came to the console."""
    done = subprocess.run(
        [*LAUNCHERS[launcher], str(port), *words],
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.row(23, case="a busy port under deepspeed")
@pytest.mark.row(28, case="rank 0 finds its port busy, under deepspeed")
def test_a_busy_port_is_said_and_all_end(settings, tmp_path, measured):
    words = ["launch/pretrain.py", "configs/pretrain/tiny.yaml", *settings]
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        begin = time.monotonic()
        status, console = run("deepspeed", port, *words, f"run.directory={tmp_path}")
    measured("until all ended", time.monotonic() - begin)
    assert time.monotonic() - begin < 30
    assert status != 0
    (line,) = re.findall(r"^error: .*", console, re.MULTILINE)
    assert line.startswith(f"error: rank 0 cannot listen on port {port} of 127.0.0.1: Address alr")


@pytest.mark.row(25, case="left over for plain python: `RANK` {rank} of 2")
@pytest.mark.parametrize("rank", [0, 1])
def test_variables_that_are_left_over_are_said(settings, tmp_path, measured, rank):
    left_over = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    left_over |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = ["launch/pretrain.py", "configs/pretrain/tiny.yaml", *settings]
    words.append(f"run.directory={tmp_path}")
    begin = time.monotonic()
    with subprocess.Popen(
        [sys.executable, *words], env=os.environ | left_over, stderr=subprocess.PIPE, text=True
    ) as process:
        said = next((line for line in process.stderr or () if line.startswith("waiting for ")), "")
        seconds = time.monotonic() - begin
        process.kill()
    measured("until the line", seconds)
    assert seconds < 30
    assert "if no launcher started this process, unset RANK and WORLD_SIZE" in said


@pytest.mark.row(23, case="stale locks of DeepSpeed's builds, offload {offload}")
@pytest.mark.parametrize("offload", ["false", "true"])
def test_stale_locks_of_builds_hold_no_run(settings, tmp_path, measured, offload):
    """Whoever builds an extension waits without end while there is a file `lock` in its folder."""
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    names = [builder.name for builder in ALL_OPS.values()]
    for name in names:
        (tmp_path / "extensions" / name).mkdir(parents=True)
        (tmp_path / "extensions" / name / "lock").touch()
    begin = time.monotonic()
    ranks = Ranks(
        tmp_path / "run",
        [*settings, "parallel.zero_stage=2", f"parallel.offload_optimizer={offload}"],
        TORCH_EXTENSIONS_DIR=f"{tmp_path}/extensions",
    )
    assert ranks.wait() == [0, 0], ranks.console
    measured("until the run was complete", time.monotonic() - begin)
    left = [path for path in (tmp_path / "extensions").glob("*/*") if path.name != "lock"]
    assert not left, "something is built"


@pytest.mark.row(11, case="a disk that is read-only")
@pytest.mark.row(28, case="the disk is read-only")
@pytest.mark.parametrize("small_disk", ["2m"], indirect=True)
def test_a_read_only_disk_is_refused(settings, small_disk, measured):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    words = ["launch/pretrain.py", "configs/pretrain/tiny.yaml", *settings]
    directory = small_disk / "run"
    begin = time.monotonic()
    status, console = run("torchrun", free_port(), *words, f"run.directory={directory}")
    measured("until all ended", time.monotonic() - begin)
    assert status != 0
    (line,) = re.findall(r"^error: .*", console, re.MULTILINE)
    assert line.startswith(f"error: run.directory: cannot write to {directory} (Read-only file sys")


@pytest.mark.row(19)
def test_a_second_run_in_the_directory_of_the_first_is_refused(settings, tmp_path):
    first = Ranks(tmp_path, [*settings, "training.max_steps=100000"])
    first.wait_until(lambda: f"step {HALF}/" in first.console)
    second = launch("python", *settings, f"run.directory={tmp_path}")
    assert second.returncode == USER_ERROR
    assert f"error: run.directory: another run is using {tmp_path}" in second.stderr
    printed = len(first.console)
    first.wait_until(lambda: first.console.count("step ", printed) > HALF)
    os.kill(first.processes[0].pid or 0, signal.SIGTERM)
    assert first.wait() == [RESUMABLE] * 2, first.console
    rows = [row["step"] for row in read_rows(tmp_path) if "loss" in row]
    assert rows == list(range(1, steps(tmp_path / "checkpoints")[0] + 1))


# Each rank has a hash seed of its own, and a clock that jumps once the first checkpoint is there.
WRAPPER = """
import os, sys
rank = int(os.environ["RANK"])
own = {"PYTHONHASHSEED": str(rank + 7), "LD_PRELOAD": sys.argv[1], "JUMP": sys.argv[2 + rank]}
os.environ.update(own)
os.execv(sys.executable, [sys.executable, "launch/pretrain.py", *sys.argv[4:]])
"""
CLOCK = r"""
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
extern "C" int clock_gettime(clockid_t clock, struct timespec *now) noexcept {
    static auto real = (int (*)(clockid_t, timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (clock == CLOCK_REALTIME && !access(getenv("JUMPED"), F_OK))
        now->tv_sec += atoi(getenv("JUMP"));
    return status;
}
"""


@pytest.mark.row(24, case="seeds 7 and 8; the clocks jump by {jumps} s")
@pytest.mark.parametrize("jumps", [(0, 0), (86_400, 86_400), (-86_400, 3600)])
def test_hash_seeds_and_clocks_change_nothing(settings, whole, tmp_path, jumps):
    (tmp_path / "wrapper.py").write_text(WRAPPER)
    (tmp_path / "clock.cc").write_text(CLOCK)
    library = f"{tmp_path}/clock.so"
    compiler = ["c++", "-shared", "-fPIC", "-o", library, f"{tmp_path}/clock.cc", "-ldl"]
    subprocess.run(compiler, check=True)
    words = [f"{tmp_path}/wrapper.py", library, *map(str, jumps), "configs/pretrain/tiny.yaml"]
    directory = tmp_path / "run"
    words += [*settings, f"run.directory={directory}"]
    trigger = step_path(directory / "checkpoints", HALF)
    status, console = run("torchrun", free_port(), *words, JUMPED=str(trigger))
    assert status == 0, console
    recorded = read_status(directory)
    assert recorded
    jumped = datetime.fromisoformat(recorded.time).timestamp() - time.time()
    assert abs(jumped - jumps[0]) < 600, "the clock of rank 0 did not jump"
    assert_same(read_rows(directory), read_rows(whole), 0.0)
    found, expected = (
        Checkpoint(step_path(path / "checkpoints", STEPS)).manifest.files
        for path in (directory, whole)
    )
    assert found == expected
