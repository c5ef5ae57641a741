"""Who runs where: the launcher's environment, process groups, ranks, DeepSpeed's view of them."""

from __future__ import annotations

import os
import socket
import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from gpt_dist.errors import LaunchError

with warnings.catch_warnings():
    # Each import of megatron-core says that its optional CUDA extensions are missing.
    warnings.simplefilter("ignore")
    from megatron.core import parallel_state

TIMEOUT = timedelta(minutes=10)
"""After which a collective that a peer never joined ends the process."""


@dataclass(frozen=True)
class Launch:
    """What a launcher told this process: its place among `world_size` processes."""

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


_LAUNCHERS = {
    "mpirun": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    "mpiexec": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}


def discover_launch(environment: Mapping[str, str]) -> Launch:
    """Read the rank from `deepspeed`, `torchrun`, Open MPI, MPICH, SLURM, or none of them.

    Raises LaunchError where the environment is incomplete.
    """
    if "RANK" in environment:
        world_size = _integer(environment, "WORLD_SIZE")
        return Launch(
            "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "deepspeed",
            _integer(environment, "RANK"),
            world_size,
            _integer(environment, "LOCAL_RANK"),
            int(environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or world_size),
        )
    for launcher, (rank, world_size_name, local_rank, local_size) in _LAUNCHERS.items():
        if rank in environment and world_size_name in environment:
            return Launch(
                launcher,
                _integer(environment, rank),
                _integer(environment, world_size_name),
                _integer(environment, local_rank),
                _integer(environment, local_size),
            )
    return Launch("python", rank=0, world_size=1, local_rank=0, local_world_size=1)


def _integer(environment: Mapping[str, str], name: str) -> int:
    # SLURM writes the tasks per node as "4(x2)" or "4,3".
    digits = environment.get(name, "").replace("(", ",").split(",")[0]
    if not digits.isdigit():
        raise LaunchError(
            f"{name}: the launcher set {environment.get(name)!r}, not a number; start with "
            "deepspeed, torchrun, mpirun, srun or plain python"
        )
    return int(digits)


@dataclass(frozen=True)
class Topology:
    """This process's place in the grid of data-parallel x tensor-parallel processes.

    Tensor-parallel peers have neighbouring global ranks, and so share a host.
    """

    launch: Launch
    device: torch.device
    tensor_parallel_size: int
    tensor_parallel_rank: int
    data_parallel_size: int
    data_parallel_rank: int
    tensor_parallel_group: dist.ProcessGroup
    data_parallel_group: dist.ProcessGroup

    @property
    def is_main(self) -> bool:
        """Whether this process writes what only one may write."""
        return self.launch.rank == 0


def device_type() -> str:
    """The kind of device that training uses on this machine: "cuda" or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def connect(launch: Launch, init_method: str = "env://") -> torch.device:
    """Claim this process's device and join all processes in torch.distributed's default group.

    init_method is torch.distributed's: where the processes meet, by default the MASTER_ADDR and
    MASTER_PORT of the environment, which are agreed on here when the launcher left them out. Raises
    LaunchError where the processes cannot find each other.
    """
    # megatron-core overlaps the reduction of input gradients with the product behind it only then.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    device = torch.device(device_type())
    if device.type == "cuda":
        device = torch.device("cuda", _gpu_index(launch, torch.cuda.device_count()))
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // launch.local_world_size))
    _export_rendezvous(launch)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=init_method,
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=TIMEOUT,
        )
    except (ValueError, RuntimeError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise LaunchError(
            f"rank {launch.rank} of {launch.world_size} cannot meet the others at {address}: "
            f"{error}; choose a free port (MASTER_PORT, or the launcher's flag) that every host "
            "can reach"
        ) from error
    return device


def form_groups(launch: Launch, device: torch.device, tensor_parallel_size: int) -> Topology:
    """Divide the connected processes into tensor- and data-parallel groups."""
    if not (
        parallel_state.model_parallel_is_initialized()
        and parallel_state.get_tensor_model_parallel_world_size() == tensor_parallel_size
    ):
        parallel_state.destroy_model_parallel()
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor_parallel_size,
            distributed_timeout_minutes=int(TIMEOUT.total_seconds() // 60),
            create_gloo_process_groups=False,
        )
    return Topology(
        launch,
        device,
        tensor_parallel_size,
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_world_size(),
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_tensor_model_parallel_group(),
        parallel_state.get_data_parallel_group(),
    )


def disconnect() -> None:
    """Leave all groups; call once, when no process will use another any more."""
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def _gpu_index(launch: Launch, visible: int) -> int:
    # A launcher that binds each process to a GPU of its own shows it as the only one.
    index = 0 if visible == 1 and launch.launcher == "srun" else launch.local_rank
    if index >= visible:
        raise LaunchError(
            f"{launch.local_world_size} processes on this host, but {visible} GPU(s); start one "
            "process a GPU"
        )
    return index


def _export_rendezvous(launch: Launch) -> None:
    """Set the variables that torch.distributed and DeepSpeed read, whatever the launcher."""
    os.environ.update(
        RANK=str(launch.rank),
        WORLD_SIZE=str(launch.world_size),
        LOCAL_RANK=str(launch.local_rank),
        LOCAL_WORLD_SIZE=str(launch.local_world_size),
    )
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return
    if launch.launcher in ("mpirun", "mpiexec"):
        address, port = _agree_over_mpi()
    elif launch.launcher == "srun":
        address, port = _agree_over_slurm()
    else:
        address, port = "127.0.0.1", _free_port()
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))


def _agree_over_mpi() -> tuple[str, int]:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"started by MPI, but mpi4py does not load ({error}): pip install 'gpt_dist[mpi]', or "
            "set MASTER_ADDR and MASTER_PORT"
        ) from None
    world = MPI.COMM_WORLD
    hosts = world.allgather(socket.gethostname())
    address = "127.0.0.1" if len(set(hosts)) == 1 else socket.gethostbyname(hosts[0])
    return address, world.bcast(_free_port() if world.rank == 0 else 0)


def _agree_over_slurm() -> tuple[str, int]:
    nodes = os.environ.get("SLURM_STEP_NODELIST", "")
    try:
        listing = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise LaunchError(
            f"started by srun, but scontrol cannot list the nodes {nodes!r} ({error}); set "
            "MASTER_ADDR and MASTER_PORT"
        ) from None
    # Every rank computes the same port; steps of one job that run together get different ones.
    step = int(os.environ["SLURM_JOB_ID"]) * 61 + int(os.environ["SLURM_STEP_ID"])
    return listing.stdout.split()[0], 20_000 + step % 20_000


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


class ModelParallelUnit:
    """What DeepSpeed expects of its `mpu` argument, answered from a Topology.

    megatron-core's own module lacks some of these names, and DeepSpeed then silently assumes that
    there is no model parallelism.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._topology.tensor_parallel_group

    def get_model_parallel_rank(self) -> int:
        return self._topology.tensor_parallel_rank

    def get_model_parallel_world_size(self) -> int:
        return self._topology.tensor_parallel_size

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._topology.data_parallel_group

    def get_data_parallel_rank(self) -> int:
        return self._topology.data_parallel_rank

    def get_data_parallel_world_size(self) -> int:
        return self._topology.data_parallel_size

    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
