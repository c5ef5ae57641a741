"""Test that a build of a token folder survives kills at random moments and a full disk."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from data_prep.manifest import BuiltFolder
from tests.folders import contents

ROOT = Path(__file__).parents[2]
SAMPLES = sorted((ROOT / "data_prep/sample_books").iterdir())
MPIRUN = Path(sys.executable).parent / "mpirun"
KILLS = {signal.SIGKILL: 30, signal.SIGTERM: 8}

pytestmark = pytest.mark.faults


def command(inputs: Path, output: Path, workers: int, launcher: Sequence[str] = ()) -> list[str]:
    arguments = ["build", inputs, "--output", output, "--vocab-size", 600, "--shard-mb", 1]
    arguments += ["--workers", workers]
    return [*launcher, sys.executable, "-m", "data_prep", *map(str, arguments)]


def descendants(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    children = [int(line) for line in found.stdout.split()]
    return children + [below for child in children for below in descendants(child)]


def with_code(pids: list[int], *code: str) -> list[int]:
    """Return the processes whose command line has one of the words."""
    lines = {pid: command_line(pid) for pid in pids}
    return [pid for pid, line in lines.items() if any(word in line for word in code)]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def wait_for_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a process outlives the build"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write books, an archive that is unpacked in parts, and a file that is read in ranges."""
    folder = tmp_path_factory.mktemp("kills") / "books"
    folder.mkdir()
    for file in SAMPLES[:3]:
        shutil.copy(file, folder)
    with tarfile.open(folder / "more.tar", "w") as archive:
        for copy in range(3):
            for file in SAMPLES[3:]:
                text = file.read_text(errors="replace").replace(" the ", f" the{copy} ")
                path = folder.parent / f"{copy}-{file.name}"
                path.write_text(text)
                archive.add(path, path.name)
    return folder


@pytest.fixture(scope="module")
def expected(inputs: Path) -> dict[str, bytes]:
    output = inputs.parent / "undisturbed"
    subprocess.run(command(inputs, output, 2), cwd=ROOT, check=True, capture_output=True)
    return contents(output)


@pytest.mark.row(21, case="{killer.name} at random moments")
@pytest.mark.parametrize("killer", [signal.SIGKILL, signal.SIGTERM])
def test_kills_at_random_moments(
    inputs: Path, expected: dict[str, bytes], tmp_path: Path, killer: signal.Signals
) -> None:
    moments = random.Random(int(killer))
    killed = 0
    while killed < KILLS[killer]:
        output = tmp_path / f"tokens-{killed}"
        while not output.exists():
            moment = moments.uniform(0.2, 3.0)
            with subprocess.Popen(
                command(inputs, output, moments.choice([1, 2, 3])),
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            ) as build:
                time.sleep(moment if killed < KILLS[killer] else 0)
                workers = descendants(build.pid)
                if killed < KILLS[killer]:
                    build.send_signal(killer)
                    killed += 1
                status = build.wait(timeout=120)
            others = {path.name for path in tmp_path.iterdir()} - {f"tokens-{killed}"}
            assert all(name.endswith(".building") or name.startswith("tokens-") for name in others)
            assert status in ({0, -9} if killer == signal.SIGKILL else {0, 130, -15})
            wait_for_end(workers)
        assert contents(output) == expected
        assert not list(tmp_path.glob(".*"))


def kill_one(
    build: subprocess.Popen[str], draws: random.Random, code: tuple[str, ...], after: float
) -> tuple[int, str]:
    """Kill one process of a build that runs such code, and return the exit status and errors."""
    deadline = time.monotonic() + after
    found: list[int] = []
    while build.poll() is None and (time.monotonic() < deadline or not found):
        found = with_code(descendants(build.pid), *code)
        time.sleep(0.02)
    below = descendants(build.pid)
    if build.poll() is None:
        with suppress(ProcessLookupError):
            os.kill(draws.choice(found), signal.SIGKILL)
    _, errors = build.communicate(timeout=120)
    wait_for_end(below)
    return build.returncode, errors


@pytest.mark.row(21, case="kill -9 of a worker")
def test_a_killed_worker(inputs: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    """The build ends at once and says so, and goes on when it is started again."""
    draws, output, refused = random.Random(1), tmp_path / "tokens", 0
    while not output.exists():
        with subprocess.Popen(
            command(inputs, output, 2), cwd=ROOT, stderr=subprocess.PIPE, text=True
        ) as build:
            after = draws.uniform(0, 2) if refused < 4 else 1000
            status, errors = kill_one(build, draws, ("spawn_main",), after)
        assert status in {0, 2}
        if status:
            assert "error: a worker process was killed" in errors.splitlines()[-1]
            refused += 1
    assert refused >= 2
    assert contents(output) == expected
    assert not list(tmp_path.glob(".*"))


@pytest.mark.row(21, case="kill -9 under mpirun")
@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this Python")
def test_ranks_killed_under_mpirun(
    inputs: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill of any rank ends all of them, and the rerun gives the same bytes."""
    pytest.importorskip("mpi4py")
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
    draws, output, killed = random.Random(2), tmp_path / "tokens", 0
    launcher = (str(MPIRUN), "--oversubscribe", "-n", "3")
    begin = time.monotonic()
    subprocess.run(
        command(inputs, tmp_path / "whole", 1, launcher), cwd=ROOT, check=True, capture_output=True
    )
    seconds = time.monotonic() - begin
    while not output.exists():
        with subprocess.Popen(
            command(inputs, output, 1, launcher),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as build:
            after = draws.uniform(0.2, 0.5) * seconds if killed < 4 else 1000
            status, _ = kill_one(build, draws, (f"{sys.executable} -m data_prep",), after)
        killed += status != 0
    assert killed >= 2
    assert contents(output) == expected
    assert not list(tmp_path.glob(".*"))


@pytest.mark.row(10)
@pytest.mark.parametrize("small_disk", ["6m"], indirect=True)
def test_a_full_disk(inputs: Path, expected: dict[str, bytes], small_disk: Path) -> None:
    arguments = command(inputs, small_disk / "tokens", 2)
    refused = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "the disk is full, and nothing was published; free about" in refused.stderr
    assert "run the command again to continue" in refused.stderr
    assert [path.name for path in small_disk.iterdir()] == [".tokens.building"]
    done = {file.name for file in small_disk.glob(".tokens.building/text/*/*.json")}
    assert done
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True)
    assert contents(small_disk / "tokens") == expected
    assert [path.name for path in small_disk.iterdir()] == ["tokens"]


@pytest.mark.soak
@pytest.mark.row(20, case="1 GB in one line")
def test_a_book_of_one_line_and_a_gigabyte_takes_little_memory(tmp_path: Path) -> None:
    words = SAMPLES[0].read_text(errors="replace").split()
    draws, size = random.Random(0), 0
    with (tmp_path / "book.txt").open("w") as book:
        while size < 10**9:
            size += book.write(f"{' '.join(draws.choices(words, k=20_000))} " * 8)
    arguments = command(tmp_path / "book.txt", tmp_path / "tokens", 2)
    arguments[arguments.index("--shard-mb") + 1] = "1000"
    build = subprocess.Popen([*arguments, "--recipe", "plain"], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(build.pid, 0)
    assert status == 0
    assert usage.ru_maxrss < 600 * 1024, "KiB, of the largest of its processes"
    manifest = BuiltFolder(tmp_path / "tokens").manifest
    assert manifest.totals.cleaned_bytes == (tmp_path / "book.txt").stat().st_size
