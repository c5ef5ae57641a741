"""A supervised run on two hosts that random faults meet: it ends as if undisturbed."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from gpt_dist.checkpoint.folder import step_path, steps
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.train.status import read_status
from tests.cluster import SshHost, hostfile
from tests.launching import BIN, launch
from tests.rows import assert_same, read_rows

STEPS, EVERY = 200, 20
"""Steps of a run, and after how many there is a fault."""

SETTINGS = [
    f"training.max_steps={STEPS}",
    "training.compile=false",
    "training.global_batch_size=4",
    "training.watchdog=6",
    "parallel.zero_stage=2",
    "model.hidden_size=64",
    "model.sequence_length=32",
    "model.dropout=0.1",
    "validation.max_samples=1",
    "checkpoint.interval=10",
    "logging.interval=1",
]


class Disturbed:
    """A supervised run, and the faults that can meet it."""

    def __init__(
        self,
        launcher: str,
        cluster: list[SshHost],
        directory: Path,
        settings: list[str],
        rng: random.Random,
    ) -> None:
        """Start the supervisor on the first host."""
        self.cluster, self.directory, self.rng = cluster, directory, rng
        self._console = directory.parent / "console.txt"
        hosts = str(hostfile(directory.parent / "hosts"))
        self.launcher = {
            "deepspeed": [sys.executable, f"{BIN}/deepspeed", "--hostfile", hosts],
            "mpirun": ["mpirun", "-n", "2", "--hostfile", hosts],
        }[launcher]
        words = [sys.executable, "launch/supervise.py", "--back-off", "0.5", "--grace", "60", "--"]
        words += [*self.launcher, *(["python"] if launcher == "mpirun" else [])]
        words += ["launch/pretrain.py", "configs/pretrain/tiny.yaml", *settings]
        self.supervisor = cluster[0].start([*words, f"run.directory={directory}"], self._console)

    @property
    def log(self) -> str:
        """All that the supervisor has said in its log."""
        path = self.directory / "supervisor.log"
        return path.read_text() if path.exists() else ""

    @property
    def console(self) -> str:
        """All that came to the console."""
        return self._console.read_text(errors="replace")

    def wait_until(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Return when a condition holds; the supervisor must not end before."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or not self.supervisor.is_running():
                pytest.fail(f"{self.log}\n{self.console[-5000:]}")
            time.sleep(0.01)

    def wait_for_step(self, step: int) -> None:
        """Return when a step of the present start has been made."""

        def is_made() -> bool:
            status = read_status(self.directory)
            return bool(status and status.state == "running" and (status.step or 0) >= step)

        self.wait_until(is_made)

    def disturb(self, fault: Fault) -> None:
        """Have a fault meet the run; return once the supervisor starts again."""
        starts = self.log.count(" from step-")
        fault(self)
        self.wait_until(lambda: self.log.count(" from step-") > starts)

    def kill_rank(self) -> None:
        """End one process of the run."""
        self.rng.choice(self.cluster).rank().kill()

    def kill_launcher(self) -> None:
        """End the launcher, and nothing else."""
        (launcher,) = self.supervisor.children()
        launcher.kill()

    def stop_rank(self) -> None:
        """Have one process of the run stand still."""
        self.rng.choice(self.cluster).rank().send_signal(signal.SIGSTOP)

    def cut_network(self) -> None:
        """Take the cable out until the processes of both sides have ended."""
        ranks = [host.rank() for host in self.cluster]
        self.cluster[1].host.set_link("down")
        self.wait_until(lambda: not any(map(psutil.Process.is_running, ranks)))
        self.cluster[1].host.set_link("up")

    def fill_disk(self) -> None:
        """Leave no room on the disk until the run has failed."""
        failed = self.log.count("failed: ")
        ballast = self.directory.parent / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        self.wait_until(lambda: self.log.count("failed: ") > failed)
        ballast.unlink()

    def flip_bit(self) -> None:
        """Damage a file of the newest checkpoint, and end the processes of the run."""
        ranks = [host.rank() for host in self.cluster]
        self.wait_until(lambda: len(steps(self.directory / "checkpoints")) > 1)
        for rank in ranks:
            rank.send_signal(signal.SIGSTOP)  # so that no newer checkpoint comes
        folder = step_path(self.directory / "checkpoints", steps(self.directory / "checkpoints")[0])
        path = self.rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        content = bytearray(path.read_bytes())
        content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
        path.write_bytes(content)
        fallbacks = self.console.count("falling back")
        for rank in ranks:
            rank.kill()
        self.wait_until(lambda: self.console.count("falling back") > fallbacks)


Fault = Callable[[Disturbed], None]
FAULTS: tuple[Fault, ...] = (
    Disturbed.kill_rank,
    Disturbed.kill_launcher,
    Disturbed.stop_rank,
    Disturbed.cut_network,
    Disturbed.fill_disk,
    Disturbed.flip_bit,
)


@pytest.mark.soak
@pytest.mark.row(36, case="seed {seed}, under {launcher}")
@pytest.mark.parametrize(
    ("launcher", "seed"),
    [
        ("mpirun", 0),
        ("mpirun", 1),
        ("mpirun", 2),
        ("deepspeed", 3),
        ("deepspeed", 4),
    ],
)
@pytest.mark.parametrize("small_disk", ["60m"], indirect=True)
def test_random_faults_leave_no_trace(
    launcher, seed, token_folder, small_disk, cluster, tmp_path, capsys
):
    settings = [*SETTINGS, f"data.path={token_folder}"]
    whole = tmp_path / "whole"
    undisturbed = launch("torchrun", *settings, f"run.directory={whole}")
    assert undisturbed.returncode == 0, undisturbed.stderr
    rng = random.Random(seed)
    run = Disturbed(launcher, cluster, small_disk / "run", settings, rng)
    at = range(EVERY, STEPS, EVERY)
    faults = [*FAULTS, *rng.choices(FAULTS, k=len(at) - len(FAULTS))]
    rng.shuffle(faults)
    begin = time.monotonic()
    for step, fault in zip(at, faults, strict=True):
        run.wait_for_step(step)
        run.disturb(fault)
        with capsys.disabled():
            print(f"\n{time.monotonic() - begin:.0f} s: {fault.__name__}, step {step}", end=" ")
    run.wait_until(lambda: "complete: " in run.log)
    assert psutil.wait_procs([run.supervisor], timeout=30)[0]
    assert f"complete: {STEPS} steps" in run.log, run.log
    assert_same(read_rows(run.directory), read_rows(whole), 0.0)
    found, expected = (
        Checkpoint(step_path(path / "checkpoints", STEPS)).manifest.files
        for path in (run.directory, whole)
    )
    assert found == expected
