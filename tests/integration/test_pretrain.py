"""Test `launch/pretrain.py` as users start it: with every launcher, and with bad input."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from gpt_dist.config.file import load_config
from gpt_dist.data.tokens.folder import TokenFolder
from gpt_dist.data.tokens.windows import ShuffledWindows, Windows
from gpt_dist.errors import ConfigError, DataError
from gpt_dist.rendezvous import Launch
from gpt_dist.train.pretrain import check
from gpt_dist.train.status import read_status
from tests.launching import find_rank, launch, start, wait_for_step
from tests.rows import assert_same, read_rows

STEPS = 20


def short_run(launcher: str, token_folder: Path, directory: Path) -> list[str]:
    """Return the overrides of a short run; under a launcher two processes share the layers."""
    return [
        f"data.path={token_folder}",
        f"run.directory={directory}",
        f"parallel.tensor_parallel_size={1 if launcher == 'python' else 2}",
        f"training.max_steps={STEPS}",
        "schedule.warmup_steps=5",
        "logging.interval=1",
    ]


@pytest.fixture(scope="module")
def run(token_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Return directory and console output of a run under a launcher; each is started once."""
    cache: dict[str, tuple[Path, str]] = {}

    def run(launcher: str) -> tuple[Path, str]:
        if launcher not in cache:
            directory = tmp_path_factory.mktemp(launcher)
            finished = launch(launcher, *short_run(launcher, token_folder, directory))
            assert finished.returncode == 0, finished.stderr
            cache[launcher] = directory, finished.stdout + finished.stderr
        return cache[launcher]

    return run


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun", "mpirun"])
def test_every_launcher_gives_the_losses_of_plain_python(run, launcher):
    expected, found = (read_rows(run(name)[0]) for name in ("python", launcher))
    assert len(found) == STEPS + 2
    assert_same(found, expected, 1e-5)


def test_a_run_leaves_what_was_promised(run):
    directory, console = run("python")
    rows = read_rows(directory)
    assert set(rows[1]) == {
        *("step", "samples", "tokens", "loss", "learning_rate", "grad_norm"),
        *("step_seconds", "tokens_per_second", "memory_bytes"),
    }
    assert set(rows[0]) == {"step", "validation_loss", "validation_perplexity"}
    training = [row for row in rows if "loss" in row]
    assert [row["step"] for row in training] == list(range(1, STEPS + 1))
    assert training[-1]["samples"] == STEPS * 16
    assert training[-1]["tokens"] == STEPS * 16 * 128
    assert training[-1]["loss"] < training[0]["loss"] - 0.5
    assert list((directory / "tensorboard").iterdir())
    assert load_config(directory / "config.yaml", []).model.vocab_size == 500
    assert "validation perplexity" in console
    assert str(directory) in console


def test_a_run_from_scratch_sets_an_earlier_one_aside(token_folder, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    finished = launch(
        "python",
        f"data.path={token_folder}",
        f"run.directory={tmp_path}",
        "training.max_steps=1",
        "validation.max_samples=1",
    )
    assert finished.returncode == 0, finished.stderr
    assert "holds an earlier run" in finished.stderr
    assert (tmp_path / "earlier-1/metrics.jsonl").read_text() == '{"step": 1}\n'
    assert "loss" in json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])


@pytest.mark.row(5, case="SIGTERM to rank 1 under {launcher}")
@pytest.mark.parametrize("launcher", ["torchrun", "mpirun"])
def test_a_preempted_run_saves_and_goes_on(launcher, token_folder, tmp_path):
    """Check that all save the same step after SIGTERM to one rank, and that the run goes on."""
    settings = [f"data.path={token_folder}", f"run.directory={tmp_path}", "logging.interval=1"]
    settings += ["validation.max_samples=1", "parallel.zero_stage=2"]
    settings += ["training.compile=false"]
    process = start(launcher, *settings, "training.max_steps=100000")
    wait_for_step(tmp_path, 5)
    find_rank(process, 1).send_signal(signal.SIGTERM)
    _, console = process.communicate(timeout=60)
    assert process.returncode != 0
    (line,) = re.findall(r"interrupted and saved at step (\d+)", console)
    assert (tmp_path / f"checkpoints/step-{int(line):08d}/manifest.json").exists()
    finished = launch(launcher, *settings, f"training.max_steps={int(line) + 2}")
    assert finished.returncode == 0, finished.stderr
    assert "resumed from" in finished.stderr
    steps = [row["step"] for row in read_rows(tmp_path) if "loss" in row]
    assert steps == list(range(1, int(line) + 3))


def test_torchrun_restarts_a_run_to_the_same_end(run, token_folder, tmp_path):
    """Check a second attempt, whose store still holds the addresses of the first."""
    launcher = "torchrun --max-restarts"
    process = start(launcher, *short_run(launcher, token_folder, tmp_path), "checkpoint.interval=5")
    wait_for_step(tmp_path, 6)
    find_rank(process, 1).kill()
    _, console = process.communicate(timeout=60)
    assert process.returncode == 0, console
    assert "resumed from" in console
    undisturbed, _ = run("torchrun")
    assert_same(read_rows(tmp_path), read_rows(undisturbed), 0.0)
    for rank in range(2):
        name = f"checkpoints/step-{STEPS:08d}/rank-0000{rank}.safetensors"
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()


def told(row: int, launcher: str, number: signal.Signals) -> Any:
    mark = pytest.mark.row(row, case=f"{number.name} to {launcher}")
    return pytest.param(launcher, number, marks=mark, id=f"{launcher}-{number.name}")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        *(told(34, launcher, signal.SIGTERM) for launcher in ("deepspeed", "torchrun")),
        told(34, "mpirun", signal.SIGUSR1),  # which kills at once after SIGTERM
        *(told(4, launcher, signal.SIGKILL) for launcher in ("deepspeed", "torchrun", "mpirun")),
    ],
)
def test_a_run_saves_and_ends_when_its_launcher_is_told_to_or_killed(
    launcher, number, token_folder, tmp_path, measured
):
    settings = [f"data.path={token_folder}", f"run.directory={tmp_path}", "logging.interval=1"]
    process = start(launcher, *settings, "validation.max_samples=1", "training.max_steps=3000")
    wait_for_step(tmp_path, 5)
    started = psutil.Process(process.pid).children(recursive=True)
    begin = time.monotonic()
    process.send_signal(number)
    assert not psutil.wait_procs(started, timeout=10 if number == signal.SIGKILL else 20)[1]
    measured("until no process was left", time.monotonic() - begin)
    process.communicate(timeout=60)
    status = read_status(tmp_path)
    assert status
    assert status.state == "interrupted"
    assert (tmp_path / f"checkpoints/step-{status.step:08d}/manifest.json").exists()


def test_a_run_outlives_the_shell_that_started_it(token_folder, tmp_path):
    arguments = [f"data.path={token_folder}", f"run.directory={tmp_path}", "logging.interval=1"]
    arguments += ["validation.max_samples=1", "training.max_steps=3000"]
    command = ["launch/pretrain.py", "configs/pretrain/tiny.yaml", *arguments]
    script = '"$@" > /dev/null 2>&1 & echo $!; read -r _'
    with subprocess.Popen(
        ["sh", "-c", script, "sh", sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as shell:
        assert shell.stdout is not None
        run = psutil.Process(int(shell.stdout.readline()))
        wait_for_step(tmp_path, 5)
        assert run.ppid() == shell.pid
        shell.communicate()
    left = read_rows(tmp_path)[-1]["step"]
    assert run.ppid() != shell.pid
    wait_for_step(tmp_path, left + 5)
    run.terminate()
    assert not psutil.wait_procs([run], timeout=60)[1]
    assert any((tmp_path / "checkpoints").iterdir())


def test_a_directory_that_cannot_be_locked_is_refused(token_folder, tmp_path):
    (tmp_path / ".lock").mkdir()
    finished = launch("python", f"data.path={token_folder}", f"run.directory={tmp_path}")
    assert finished.returncode == 2
    assert f"error: run.directory: {tmp_path / '.lock'} cannot be locked" in finished.stderr


def test_a_second_run_on_a_directory_in_use_is_refused(token_folder, tmp_path):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        finished = launch("python", f"data.path={token_folder}", f"run.directory={tmp_path}")
    assert finished.returncode == 2
    assert f"error: run.directory: another run is using {tmp_path}" in finished.stderr


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun", "mpirun"])
def test_a_refusal_is_one_line_and_a_failure(launcher, tmp_path):
    finished = launch(launcher, f"run.directory={tmp_path / 'run'}", "modle.num_layers=2")
    assert finished.returncode != 0
    assert finished.stderr.count("error: modle: unknown key; did you mean model?") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_the_rank_that_meets_damage_names_it(launcher, damaged, tmp_path):
    """Check an impossible id that only rank 1 reads and that no hash shows."""
    folder = TokenFolder(damaged)
    samples = ShuffledWindows(Windows(folder.split("train"), 128), seed=42)
    start = int(samples.window_numbers(np.array([9]))[0]) * 128
    shards = folder.manifest.splits["train"].shards
    ends = list(accumulate(shard.tokens for shard in shards))
    number = bisect_right(ends, start + 5)
    shard = damaged / f"{shards[number].name}.bin"
    ids = np.memmap(shard, dtype="<u2", mode="r+")
    ids[start + 5 - ends[number]] = 65_000
    ids.flush()
    manifest = (damaged / "manifest.json").read_text()
    true_hash = hashlib.sha256(shard.read_bytes()).hexdigest()
    (damaged / "manifest.json").write_text(manifest.replace(shards[number].bin.sha256, true_hash))
    finished = launch(launcher, f"data.path={damaged}", f"run.directory={tmp_path}/run")
    assert finished.returncode != 0
    console = finished.stdout + finished.stderr
    assert f"error: rank 1: {shard}: holds ids beyond the vocabulary" in console


def refuse(folder: Path | str, *overrides: str, world_size: int = 1) -> None:
    config = load_config(Path("configs/pretrain/tiny.yaml"), [f"data.path={folder}", *overrides])
    check(config, Launch("test", 0, world_size, 0, world_size))


@pytest.fixture
def damaged(token_folder: Path, tmp_path: Path) -> Path:
    """Copy the token folder, to damage it."""
    return shutil.copytree(token_folder, tmp_path / "tokens")


def test_no_data_path_is_refused():
    with pytest.raises(ConfigError, match=r"data\.path: not given"):
        refuse("null")


def test_what_is_no_token_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a token folder"):
        refuse(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        refuse(tmp_path / "absent")


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_a_missing_shard_is_refused_by_name(damaged, suffix):
    (damaged / f"train/shard-00000.{suffix}").unlink()
    with pytest.raises(DataError, match=rf"train/shard-00000\.{suffix}: missing"):
        refuse(damaged)


@pytest.mark.row(12, case="by a start")
def test_a_truncated_shard_is_refused_by_name(damaged):
    shard = damaged / "train/shard-00000.bin"
    os.truncate(shard, shard.stat().st_size - 2)
    with pytest.raises(DataError, match=r"train/shard-00000\.bin: \d+ bytes instead of \d+"):
        refuse(damaged)


@pytest.mark.row(11, case="`run.directory` cannot be made")
def test_a_run_directory_that_cannot_be_written_is_refused(token_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run\.directory: cannot write to .*file/run"):
        refuse(token_folder, f"run.directory={tmp_path}/file/run")


def test_another_vocabulary_is_refused(token_folder):
    with pytest.raises(ConfigError, match=r"model\.vocab_size: 501 is not the 500"):
        refuse(token_folder, "model.vocab_size=501")


def test_what_its_family_lacks_is_refused_before_a_directory_is_made(token_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.rotary_base: .* has no such choice"):
        refuse(token_folder, "model.rotary_base=1e4", f"run.directory={tmp_path}/run")
    assert not (tmp_path / "run").exists()


def test_a_split_shorter_than_a_window_is_refused(token_folder):
    with pytest.raises(DataError, match="shorter than one window"):
        refuse(token_folder, "model.sequence_length=10000000")


def test_a_world_that_tensor_parallel_does_not_divide_is_refused(token_folder):
    with pytest.raises(ConfigError, match="2 does not divide the 3 launched"):
        refuse(token_folder, "parallel.tensor_parallel_size=2", world_size=3)
