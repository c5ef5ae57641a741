"""README's srun line and the template for sbatch, by SLURM's own daemons."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from gpt_dist.checkpoint.folder import step_path, steps
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.train.status import read_status
from tests.faults.ranks import run_to_its_end
from tests.readme import cluster_command
from tests.rows import assert_same, read_rows
from tests.slurm import Slurm

pytestmark = pytest.mark.faults

STEPS, INTERVAL = 240, 40
SCRIPT = ("launch/pretrain.py", "configs/pretrain/tiny.yaml")
SETTINGS = [
    f"training.max_steps={STEPS}",
    "training.global_batch_size=4",
    "training.compile=false",
    "model.hidden_size=64",
    "model.sequence_length=32",
    "model.dropout=0.1",
    "parallel.zero_stage=1",
    "validation.max_samples=1",
    f"checkpoint.interval={INTERVAL}",
    "logging.interval=20",
]


@pytest.fixture(scope="module")
def settings(token_folder: Path) -> list[str]:
    return [*SETTINGS, f"data.path={token_folder}"]


@pytest.fixture(scope="module")
def whole(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the run that nothing disturbs, without SLURM."""
    directory = tmp_path_factory.mktemp("whole")
    run_to_its_end(directory, settings)
    return directory


@dataclass(frozen=True)
class Job:
    """The template in the queue, submitted in a folder that stands for the project's."""

    slurm: Slurm
    folder: Path
    number: str

    @property
    def directory(self) -> Path:
        """The directory of the run."""
        return self.folder / "run"

    @property
    def log(self) -> str:
        """All that the supervisor has said."""
        path = self.directory / "supervisor.log"
        return path.read_text() if path.exists() else ""

    @property
    def output(self) -> str:
        """All that the job has printed in all its starts."""
        path = self.folder / f"slurm-{self.number}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def show(self, field: str) -> str:
        """Return a field of the job as `scontrol` shows it."""
        shown = self.slurm.ask("scontrol", "show", "job", self.number)
        return re.findall(rf"\b{field}=(\S+)", shown)[0]

    def tasks(self) -> dict[str, psutil.Process]:
        """Return the training processes by rank."""
        return {
            process.environ()["SLURM_PROCID"]: process
            for process in self.slurm.processes()
            if process.cmdline()[1:2] == [SCRIPT[0]]
        }

    def wait_until(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Return when a condition holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"too late\n{self.output}\n{self.log}")
            time.sleep(0.02)

    def wait(self) -> str:
        """Return the state of the job once it and all its processes have ended."""
        self.wait_until(lambda: self.show("JobState") not in ("PENDING", "RUNNING", "COMPLETING"))
        self.wait_until(lambda: not self.slurm.processes(), 40)
        return self.show("JobState")

    def wait_for_checkpoint(self, after: int = 0) -> int:
        """Return the newest step, once it is later than `after`."""
        checkpoints = self.directory / "checkpoints"
        self.wait_until(lambda: steps(checkpoints)[:1] > [after])
        return steps(checkpoints)[0]


@pytest.fixture
def submit(slurm: Slurm, tmp_path: Path) -> Callable[[list[str]], Job]:
    """Return a function that submits the template with its lines to change changed."""

    def submit(settings: list[str]) -> Job:
        for name in ("launch", "configs"):
            (tmp_path / name).symlink_to(Path(name).resolve())
        command = " ".join([*SCRIPT, *settings, "run.directory=run"])
        script = Path("launch/cluster/slurm.sbatch").read_text()
        for pattern, line in (
            (r"#SBATCH --nodes=.*", "#SBATCH --nodes=1 --ntasks-per-node=2 --time=1:00:00"),
            (r"COMMAND=\(.*", f"COMMAND=({command})"),
        ):
            script, count = re.subn(pattern, line, script)
            assert count == 1
        (tmp_path / "slurm.sbatch").write_text(script)
        return Job(
            slurm, tmp_path, slurm.ask("sbatch", "--parsable", "slurm.sbatch", folder=tmp_path)
        )

    return submit


def assert_undisturbed(directory: Path, whole: Path) -> None:
    """Check that a run ended with the rows and the checkpoint of the undisturbed one."""
    assert_same(read_rows(directory), read_rows(whole), 0.0)
    found, expected = (
        Checkpoint(step_path(path / "checkpoints", STEPS)).manifest.files
        for path in (directory, whole)
    )
    assert found == expected


def test_the_srun_line_trains_as_any_launcher_does(slurm, settings, whole, tmp_path):
    finished = slurm.run(*cluster_command("srun"), *settings, f"run.directory={tmp_path}")
    assert finished.returncode == 0, finished.stderr
    assert_undisturbed(tmp_path, whole)


def test_srun_ends_with_the_status_of_a_refused_run(slurm, settings, tmp_path):
    """With --kill-on-bad-exit=1 it is that, or 143 of a task that srun ends meanwhile."""
    words = [word for word in cluster_command("srun") if "--kill" not in word]
    finished = slurm.run(*words, *settings, "data.path=absent", f"run.directory={tmp_path}")
    assert finished.returncode == 2, finished.stderr
    assert len(re.findall("error: data.path: absent: no such folder", finished.stderr)) == 1


def test_a_refused_job_ends_with_its_status_and_is_not_started_again(submit, settings):
    job = submit([*settings, "data.path=absent"])
    assert job.wait() == "FAILED", job.output
    assert (job.show("ExitCode"), job.show("Restarts")) == ("2:0", "0")
    assert job.output.count("error: data.path: absent: no such folder") == 1
    assert len(re.findall("supervisor: start ", job.log)) == 2


@pytest.mark.row(34, case="srun, SIGUSR1 to the batch script")
def test_a_job_that_is_told_of_its_end_is_put_back_and_goes_on(submit, settings, whole):
    """SLURM sends USR1 to the script before the time limit, as scancel does here."""
    job = submit(settings)
    job.wait_for_checkpoint()
    job.slurm.ask("scancel", "--signal=USR1", "--batch", job.number)
    job.wait_until(lambda: job.show("Restarts") == "1")
    (saved,) = re.findall(r"start 1 interrupted: .*saved at step (\d+) ", job.log)
    assert job.wait() == "COMPLETED", job.output
    assert f"start 1 from step-{int(saved):08d}: srun" in job.log
    assert job.log.endswith(f"start 1 complete: {STEPS} steps\n")
    assert job.output.count("supervisor: start 1 ") == 4, "one log over all starts"
    assert_undisturbed(job.directory, whole)


def test_a_killed_task_is_started_again_in_the_same_job(submit, settings, whole):
    job = submit(settings)
    job.wait_for_checkpoint()
    job.tasks()["1"].kill()
    assert job.wait() == "COMPLETED", job.output
    assert job.show("Restarts") == "0"
    assert re.search(r"start 1 failed: rank \d on ", job.log)
    assert re.search(r"start 2 from step-\d+: srun", job.log)
    assert_undisturbed(job.directory, whole)


@pytest.mark.row(34, case="srun, scancel")
def test_a_cancelled_job_has_saved_and_is_not_put_back(submit, settings):
    job = submit([*settings, "training.max_steps=100000"])
    newest = job.wait_for_checkpoint()
    job.slurm.ask("scancel", job.number)
    assert job.wait() == "CANCELLED", job.output
    assert job.show("Restarts") == "0"
    status = read_status(job.directory)
    assert status.state == "interrupted", job.output
    assert steps(job.directory / "checkpoints")[0] == status.step >= newest
    Checkpoint(step_path(job.directory / "checkpoints", status.step)).files.verify()
