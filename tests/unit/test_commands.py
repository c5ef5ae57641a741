"""Test that command lines are checked before slow libraries are imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = ("torch", "deepspeed", "megatron", "transformers", "sklearn", "scipy")
COMMANDS = [
    *([str(path)] for path in sorted(Path("launch").glob("*.py"))),
    *(
        ["-m", "data_prep", *command.split()]
        for command in ("", "build", "verify", "report", "contamination", "tasks")
    ),
]


def answer(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that must not load any of SLOW."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, timeout=60
    )
    loaded = set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "argparse" in loaded
    assert not loaded & set(SLOW)
    return done


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(command):
    done = answer(*command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_unknown_flag(command):
    done = answer(*command, "--colour", "blue")
    assert done.returncode == 2
    assert "error: " in done.stderr


@pytest.mark.parametrize("script", ["pretrain", "finetune"])
def test_a_misspelt_key(script):
    done = answer(f"launch/{script}.py", "configs/pretrain/tiny.yaml", "modle.num_layers=2")
    assert done.returncode == 2
    assert "error: modle: unknown key; did you mean model?" in done.stderr


def test_a_rank_beyond_the_world(monkeypatch):
    for name, value in {"RANK": "8", "WORLD_SIZE": "8", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    done = answer("launch/pretrain.py", "configs/pretrain/tiny.yaml")
    assert done.returncode == 2
    assert "error: RANK 8 is not below WORLD_SIZE 8" in done.stderr
    assert "unset RANK and WORLD_SIZE" in done.stderr
