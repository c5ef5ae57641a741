"""Shards that change and disks that fill while a run trains."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from gpt_dist.checkpoint.folder import open_whole, paths, steps
from gpt_dist.command import USER_ERROR
from tests.checkpoints import refusal, saved_tensors
from tests.distributed.test_layouts import SMALL
from tests.faults.ranks import Ranks, run_to_its_end
from tests.rows import read_rows

pytestmark = pytest.mark.faults


def overrides(token_folder: Path, **changes: object) -> list[str]:
    settings = SMALL | {"data.path": token_folder, "validation.interval": 100_000}
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={value}" for key, value in settings.items()]


def flip(shard: Path) -> None:
    with shard.open("r+b") as stream:
        stream.seek(shard.stat().st_size // 2)
        (byte,) = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte ^ 4]))


def truncate(shard: Path) -> None:
    with shard.open("r+b") as stream:
        stream.truncate(shard.stat().st_size // 2)


@pytest.mark.row(30, case="{damage.__name__}")
@pytest.mark.parametrize(
    ("damage", "said"),
    [(flip, "changed since its checksums were taken"), (truncate, "it ends at byte")],
)
def test_a_shard_that_changes_while_training_ends_the_run(token_folder, tmp_path, damage, said):
    tokens = shutil.copytree(token_folder, tmp_path / "tokens")
    shard = tokens / "train/shard-00000.bin"
    settings = overrides(tokens, training__max_steps=100_000, checkpoint__interval=20)
    ranks = Ranks(tmp_path / "run", settings)
    checkpoints = tmp_path / "run/checkpoints"
    ranks.wait_until(lambda: steps(checkpoints)[:1] >= [40])
    damage(shard)
    statuses = ranks.wait()
    assert USER_ERROR in statuses, ranks.console
    assert 0 not in statuses
    assert "SIGBUS" not in ranks.console
    lines = [line for line in ranks.console.splitlines() if f"{shard}: {said}" in line]
    assert lines, ranks.console
    assert all(line.startswith("error: rank ") for line in lines)
    # A restart refuses the shard before a step.
    ranks = Ranks(tmp_path / "run", settings)
    assert ranks.wait() == [USER_ERROR] * 2, ranks.console
    assert str(shard) in ranks.console


@pytest.mark.row(30, case="a folder above 1 GB, at the start")
def test_a_flipped_bit_in_a_folder_above_a_gigabyte_is_found(process_group, token_folder, tmp_path):
    """The folder has one more shard, of zeros that take no room on the disk."""
    tokens = shutil.copytree(token_folder, tmp_path / "tokens")
    manifest = json.loads((tokens / "manifest.json").read_bytes())
    split = manifest["splits"]["train"]
    documents, length = 11, 10**8
    shard = tokens / "train/shard-00001.bin"
    with shard.open("wb") as stream:
        stream.truncate(size := 2 * documents * length)
    index = bytearray((tokens / "train/shard-00000.idx").read_bytes()[:18])
    index += documents.to_bytes(8, "little") + (documents + 1).to_bytes(8, "little")
    index += bytes(4 * documents + 8 * documents + 8 * (documents + 1))
    shard.with_suffix(".idx").write_bytes(index)
    with shard.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    described = {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()}
    split["shards"].append(
        {
            "name": "train/shard-00001",
            "tokens": size // 2,
            "documents": documents,
            "bin": {"bytes": size, "sha256": digest},
            "idx": described,
        }
    )
    split["tokens"] += size // 2
    (tokens / "manifest.json").write_text(json.dumps(manifest))
    settings = SMALL | {"data.path": tokens, "training.max_steps": 1}
    assert process_group(2).run(refusal, settings, tmp_path / "whole") == ["", ""]
    with shard.open("r+b") as stream:
        stream.seek(size // 3)
        stream.write(b"\x01")
    for message in process_group(2).run(refusal, settings, tmp_path / "flipped"):
        assert message.startswith(f"{shard}: damaged: its SHA-256 is not the stated one")
    assert not (tmp_path / "flipped/metrics.jsonl").exists()


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as stream:
        for size in (2**16, 1):
            with suppress(OSError):
                while True:
                    stream.write(bytes(size))


@pytest.mark.row(29, case="full, the log on it: {log_is_there}")
@pytest.mark.parametrize("small_disk", ["2m"], indirect=True)
@pytest.mark.parametrize("log_is_there", [False, True])
def test_a_full_disk_under_metrics_costs_rows_and_not_the_run(
    token_folder, tmp_path, small_disk, log_is_there
):
    """The checkpoints are on another disk, by a link, and the log may be."""
    settings = overrides(token_folder, training__max_steps=240, checkpoint__interval=120)
    directory, other = small_disk / "run", tmp_path / "checkpoints"
    directory.mkdir()
    other.mkdir()
    (directory / "checkpoints").symlink_to(other)
    if not log_is_there:
        (directory / "console.txt").symlink_to(tmp_path / "console.txt")
    ranks = Ranks(directory, settings)
    ranks.wait_until(lambda: '"step": 20,' in _text(directory / "metrics.jsonl"))
    fill(small_disk / "other")
    ranks.wait_until(lambda: steps(other) == [120])
    (small_disk / "other").unlink()
    assert ranks.wait(120) == [0, 0], ranks.console
    assert "Traceback" not in ranks.console
    for name in ("metrics.jsonl", "tfevents"):
        warnings = rf"WARNING: \S+{name}\S*: No space left on device; its rows are dropped"
        again = rf"\S+{name}\S*: written again; \d+ rows were dropped"
        counts = [len(re.findall(line, ranks.console)) for line in (warnings, again)]
        assert log_is_there or counts == [1, 1]
    assert (directory / "checkpoints").is_symlink()
    assert steps(other) == [240, 120]
    rows = [row["step"] for row in read_rows(directory)]
    assert rows == sorted(rows)
    gaps = [(before, after) for before, after in pairwise(rows) if after > before + 1]
    assert len(gaps) == 1, "the rows of a full disk are left out, and no other"
    assert gaps[0][0] < 120 < gaps[0][1] <= rows[-1] == 240
    whole = tmp_path / "whole"
    run_to_its_end(whole, settings)
    expected, found = (saved_tensors(paths(at)[0]) for at in (whole / "checkpoints", other))
    assert all((expected[name] == found[name]).all() for name in expected)
    assert open_whole(paths(other)[0]).manifest.step == 240


@pytest.mark.row(29, case="no more writable, in mid-run")
def test_rows_that_may_no_more_be_written_cost_no_step(token_folder, tmp_path):
    """What is written to an immutable file fails, though it was opened before."""
    settings = overrides(token_folder, training__max_steps=240, checkpoint__interval=60)
    ranks = Ranks(tmp_path, settings)
    ranks.wait_until(lambda: '"step": 20,' in _text(tmp_path / "metrics.jsonl"))
    files = [tmp_path / "metrics.jsonl", *(tmp_path / "tensorboard").iterdir()]
    try:
        if subprocess.run(["chattr", "+i", *files], capture_output=True, check=False).returncode:
            pytest.skip("this file system has no immutable files, or only for root")
        ranks.wait_until(lambda: steps(tmp_path / "checkpoints")[:1] >= [120])
    finally:
        subprocess.run(["chattr", "-i", *files], capture_output=True, check=False)
    assert ranks.wait() == [0, 0], ranks.console
    assert "Traceback" not in ranks.console
    for file in files:
        said = re.findall(rf"{re.escape(str(file))}: (.*)", ranks.console)
        assert said[0] == "Operation not permitted; its rows are dropped meanwhile"
        assert re.fullmatch(r"written again; \d+ rows were dropped", said[1])
    assert steps(tmp_path / "checkpoints")[0] == 240


@pytest.mark.row(29, case="a read-only disk under TensorBoard at the start, refused")
@pytest.mark.parametrize("small_disk", ["2m"], indirect=True)
def test_a_read_only_disk_under_tensorboard_is_refused(token_folder, tmp_path, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    (tmp_path / "tensorboard").symlink_to(small_disk)
    ranks = Ranks(tmp_path, overrides(token_folder))
    assert ranks.wait() == [USER_ERROR] * 2, ranks.console
    (line,) = re.findall(r"error: .*", ranks.console)
    assert re.fullmatch(r"error: rank 0: \S+/tensorboard/\S+: Read-only file system", line)
    assert "Traceback" not in ranks.console


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
