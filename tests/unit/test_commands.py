"""Test that command lines are checked before slow libraries are imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_dist.command import USER_ERROR

SLOW = ("torch", "deepspeed", "megatron", "transformers", "sklearn", "scipy")
# What `data_prep` needs for its work, but not to answer a command line.
OF_TEXT = ("numpy", "chardet", "ftfy", "lxml", "pyarrow", "rich", "sentencepiece", "tokenizers")
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
    slow = {*SLOW, *OF_TEXT} if "data_prep" in command else set(SLOW)
    assert not loaded & slow
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


@pytest.mark.parametrize(
    ("script", "config", "expected"),
    [
        ("finetune", "configs/pretrain/tiny.yaml", "task: not given; see configs/finetune/"),
        (
            "pretrain",
            "configs/finetune/sst2.yaml",
            "task: for fine-tuning only; use launch/finetune.py",
        ),
    ],
)
def test_a_configuration_of_the_other_kind(script, config, expected):
    done = answer(f"launch/{script}.py", config)
    assert done.returncode == 2
    assert f"error: {expected}" in done.stderr


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("generate", ["--prompt", "x"]),
        ("evaluate", ["--tokens", "x"]),
        ("consolidate", ["--output", "x"]),
        ("import_model", ["--output", "x"]),
        ("predict", []),
    ],
)
def test_a_model_that_is_not_there(script, options):
    done = answer(f"launch/{script}.py", "absent", *options)
    assert done.returncode == 2
    assert "error: absent: no such folder; give a model folder" in done.stderr


@pytest.mark.row(11, case="no data for {script}")
@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("pretrain", ["configs/pretrain/tiny.yaml", "data.path=absent"], "`python -m data_prep"),
        ("finetune", ["configs/finetune/sst2.yaml", "data.path=absent"], "the task's files"),
    ],
)
def test_data_that_are_not_there(script, arguments, expected):
    done = answer(f"launch/{script}.py", *arguments)
    assert done.returncode == 2
    assert "error: data.path: absent: no such folder; give" in done.stderr
    assert expected in done.stderr


@pytest.mark.parametrize("script", ["pretrain", "finetune"])
def test_overrides_are_optional(script):
    done = answer(f"launch/{script}.py")
    assert done.stderr.endswith("the following arguments are required: CONFIG.yaml\n")


@pytest.mark.row(25, case="`RANK` not below `WORLD_SIZE`")
def test_a_rank_beyond_the_world(monkeypatch):
    for name, value in {"RANK": "8", "WORLD_SIZE": "8", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    done = answer("launch/pretrain.py", "configs/pretrain/tiny.yaml")
    assert done.returncode == 2
    assert "error: RANK 8 is not below WORLD_SIZE 8" in done.stderr
    assert "unset RANK and WORLD_SIZE" in done.stderr


def test_too_few_open_files_are_refused_in_one_line():
    command = f"ulimit -n 40; exec {sys.executable} launch/pretrain.py configs/pretrain/tiny.yaml"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == USER_ERROR
    assert done.stderr == "error: ulimit -n 40: too few open files; allow 4096 of them\n"
