"""Start the training scripts as users do, under every launcher."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

BIN = Path(sys.executable).parent
LAUNCHERS = {
    # By Python, since a script's first line cannot hold a path with spaces.
    "deepspeed": [sys.executable, f"{BIN}/deepspeed", "--num_gpus", "2", "--master_port"],
    "torchrun": ["torchrun", "--nproc-per-node", "2", "--master-port"],
    "torchrun --max-restarts": [
        *("torchrun", "--nproc-per-node", "2", "--max-restarts", "2", "--master-port"),
    ],
    "mpirun": ["mpirun", "-n", "2", "--oversubscribe", "python"],
    "python": ["python"],
}


def start(
    launcher: str,
    *arguments: str,
    script: str = "pretrain",
    config: str = "configs/pretrain/tiny.yaml",
    new_session: bool = False,
) -> subprocess.Popen[str]:
    """Start a training script."""
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    return subprocess.Popen(
        [*launcher_words(launcher), f"launch/{script}.py", config, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=new_session,
    )


def launcher_words(launcher: str) -> list[str]:
    """Return the words before the script, with a free port if the launcher asks for one."""
    words = LAUNCHERS[launcher]
    return [*words, str(free_port())] if words[-1].startswith("--master") else words


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def launch(launcher: str, *arguments: str, **what: str) -> subprocess.CompletedProcess[str]:
    """Run a training script to its end."""
    process = start(launcher, *arguments, **what)
    stdout, stderr = process.communicate(timeout=180)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def find_rank(process: subprocess.Popen[str], rank: int) -> psutil.Process:
    """Return the process of one rank below its launcher."""
    for child in psutil.Process(process.pid).children(recursive=True):
        environment = child.environ()
        found = environment.get("RANK", environment.get("OMPI_COMM_WORLD_RANK"))
        if found == str(rank) and "launch/pretrain.py" in child.cmdline():
            return child
    raise LookupError(f"no process of rank {rank}")


def wait_for_step(directory: Path, step: int) -> None:
    """Return when a run has reported a step."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        path = directory / "metrics.jsonl"
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.1)
    pytest.fail(f"no step {step} within three minutes")
