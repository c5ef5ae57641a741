"""What each launcher's environment says, and what is refused in it."""

from __future__ import annotations

import pytest

from gpt_dist.errors import LaunchError
from gpt_dist.rendezvous import Launch, discover_launch


def variables(text: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in text.split())


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ("", Launch("python", 0, 1, 0, 1)),
        (
            "RANK=9 WORLD_SIZE=16 LOCAL_RANK=1 LOCAL_SIZE=8",
            Launch("deepspeed", 9, 16, 1, 8),
        ),
        (
            "TORCHELASTIC_RUN_ID=x RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2",
            Launch("torchrun", 3, 4, 1, 2),
        ),
        (
            "OMPI_COMM_WORLD_RANK=5 OMPI_COMM_WORLD_SIZE=8 OMPI_COMM_WORLD_LOCAL_RANK=1 "
            "OMPI_COMM_WORLD_LOCAL_SIZE=4",
            Launch("mpirun", 5, 8, 1, 4),
        ),
        (
            "SLURM_PROCID=5 SLURM_STEP_NUM_TASKS=8 SLURM_LOCALID=1 SLURM_STEP_TASKS_PER_NODE=4(x2)",
            Launch("srun", 5, 8, 1, 4),
        ),
        # Inside an allocation, but not started by srun: one process.
        ("SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_JOB_ID=1", Launch("python", 0, 1, 0, 1)),
        (
            "PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2",
            Launch("mpiexec", 1, 2, 1, 2),
        ),
    ],
)
def test_launchers(environment, expected):
    assert discover_launch(variables(environment)) == expected


def test_an_incomplete_environment_is_refused_by_name():
    with pytest.raises(LaunchError, match="WORLD_SIZE: the launcher set None"):
        discover_launch({"RANK": "0"})
