"""Test that a build of a token folder survives kills at random moments and a full disk."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = sorted((ROOT / "data_prep/sample_books").glob("*.txt"))
KILLS = {signal.SIGKILL: 30, signal.SIGTERM: 8}

pytestmark = pytest.mark.faults


def command(inputs: Path, output: Path, workers: int) -> list[str]:
    arguments = ["build", inputs, "--output", output, "--vocab-size", 600, "--shard-mb", 1]
    arguments += ["--workers", workers]
    return [sys.executable, "-m", "data_prep", *map(str, arguments)]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def descendants(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    children = [int(line) for line in found.stdout.split()]
    return children + [below for child in children for below in descendants(child)]


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
            deadline = time.monotonic() + 5
            while any(Path(f"/proc/{pid}").exists() for pid in workers):
                assert time.monotonic() < deadline, "a worker outlives its leader"
                time.sleep(0.05)
        assert contents(output) == expected
        assert not list(tmp_path.glob(".*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a part of a build."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    mount = tmp_path / "disk"
    mount.mkdir()
    tmpfs = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(mount)]
    if subprocess.run(tmpfs, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow mounts")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


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
