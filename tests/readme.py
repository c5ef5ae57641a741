"""The commands of README.md that start training on a cluster, made small."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_SMALLER = {
    "deepspeed": {},
    "srun": {"--nodes 4": "--nodes 1", "-per-node 8 --gpus-per-node 8": "-per-node 2"},
    "mpirun": {"-n 16": "-n 2", "training.micro_batch_size=4": ""},
    "torchrun": {"--nnodes 4": "--nnodes 2", "--nproc-per-node 8": "--nproc-per-node 1"},
}
"""Changes to each launcher's command, so that two processes without a GPU run it."""


def cluster_command(launcher: str, hostfile: Path | None = None) -> list[str]:
    """Return README's command with tiny.yaml, fewer processes, and without the path of the data."""
    _, _, section = Path("README.md").read_text().partition("\n## On a cluster\n")
    commands = section.replace("\\\n", " ").splitlines()
    command = next(line for line in commands if line.startswith(f"{launcher} "))
    changes = _SMALLER[launcher] | {"data.path=/data/tokens": ""}
    if hostfile:
        changes |= {"--hostfile hosts": f"--hostfile {shlex.quote(str(hostfile))}"}
    for old, new in changes.items():
        assert command.count(old) == 1, (command, old)
        command = command.replace(old, new)
    command, count = re.subn(r"configs/pretrain/\S+", "configs/pretrain/tiny.yaml", command)
    assert count == 1, command
    return shlex.split(command)
