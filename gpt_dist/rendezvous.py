"""What a launcher tells a process, and where the processes find each other."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from gpt_dist.errors import LaunchError

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
    launched_by: tuple[int, ...] = field(default=(), compare=False)
    """The launcher's processes whose end is to end this one: the parent, and what started that."""


_LAUNCHERS = {
    "mpirun": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    # Before srun: inside an allocation, MPICH's ranks inherit what srun told their starter.
    "mpiexec": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
}


def discover_launch(environment: Mapping[str, str]) -> Launch:
    """Read the rank from `deepspeed`, `torchrun`, Open MPI, MPICH, SLURM, or none of them.

    Raises LaunchError where the environment is incomplete.
    """
    if "RANK" in environment:
        world_size = _integer(environment, "WORLD_SIZE")
        launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "deepspeed"
        return Launch(
            launcher,
            _integer(environment, "RANK"),
            world_size,
            _integer(environment, "LOCAL_RANK"),
            int(environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or world_size),
            _launched_by(launcher),
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


def _launched_by(launcher: str) -> tuple[int, ...]:
    """As Launch has it. A shell is no launcher: a run may outlive it.

    srun's and MPI's daemons end what they started themselves.
    """
    parent = os.getppid()
    if launcher == "torchrun":
        return (parent,)
    if b"deepspeed.launcher.launch" not in _command_line(parent):
        return ()
    starter = _parent_of(parent)
    return (parent, starter) if starter and b"deepspeed" in _command_line(starter) else (parent,)


def launcher_ended(launch: Launch) -> bool:
    """Whether the launcher has ended since `discover_launch`."""
    if not launch.launched_by:
        return False
    parent, *starter = launch.launched_by
    if os.getppid() != parent:
        return True
    return bool(starter) and _parent_of(parent) not in (*starter, None)


def _command_line(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def _parent_of(process: int) -> int | None:
    """None where that cannot be told."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may hold spaces; the parent is the second field behind it.
    return int(status.rpartition(")")[2].split()[1])


def _integer(environment: Mapping[str, str], name: str) -> int:
    # SLURM writes the tasks per node as "4(x2)" or "4,3".
    digits = environment.get(name, "").replace("(", ",").split(",")[0]
    if not digits.isdigit():
        raise LaunchError(
            f"{name}: the launcher set {environment.get(name)!r}, not a number; start with "
            "deepspeed, torchrun, mpirun, srun or plain python"
        )
    return int(digits)


def open_store(launch: Launch) -> Store:
    """The key-value store where the processes find each other.

    MASTER_ADDR and MASTER_PORT say where it is; what the launcher left out of them is agreed on
    here. On one machine it listens on the loopback address alone. Raises LaunchError where the
    port is taken, or no address can be found.
    """
    environment = os.environ
    address = environment.get("MASTER_ADDR") or _default_address(launch)
    port = _integer(environment, "MASTER_PORT") if "MASTER_PORT" in environment else 0
    if not port and launch.launcher == "srun":
        port = _slurm_port()
    hosts_store = launch.rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    listener = _listen(address, port) if hosts_store else None
    if not port:
        port = _share_port(launch, listener.getsockname()[1] if listener else 0)
    try:
        return TCPStore(
            address,
            port,
            launch.world_size,
            is_master=hosts_store,
            timeout=TIMEOUT,
            master_listen_fd=listener.detach() if listener else None,
        )
    except (ValueError, RuntimeError) as error:
        raise LaunchError(
            f"rank {launch.rank} of {launch.world_size} cannot reach rank 0 at {address}:{port} "
            f"({str(error).splitlines()[0]}); set MASTER_ADDR and MASTER_PORT, or the launcher's "
            "flags, to an address that every host can reach"
        ) from error


def _listen(address: str, port: int) -> socket.socket:
    try:
        if socket.gethostbyname(address).startswith("127."):
            return socket.create_server(("127.0.0.1", port))
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise LaunchError(
            f"port {port} of {address}: {error.strerror}; choose a free one (MASTER_PORT, or the "
            "launcher's flag)"
        ) from None


def _default_address(launch: Launch) -> str:
    if launch.launcher in ("mpirun", "mpiexec"):
        hosts = _mpi_world(launch).allgather(socket.gethostname())
        return "127.0.0.1" if len(set(hosts)) == 1 else str(hosts[0])
    if launch.launcher == "srun":
        return _first_slurm_node()
    return "127.0.0.1"


def _share_port(launch: Launch, port: int) -> int:
    """Rank 0's port, told to all where a launcher gives a way to."""
    if launch.launcher in ("mpirun", "mpiexec"):
        return int(_mpi_world(launch).bcast(port))
    if launch.world_size > 1:
        raise LaunchError("MASTER_PORT: not set; the launcher should, or set it by hand")
    return port


def _mpi_world(launch: Launch) -> Any:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise LaunchError(
            f"started by MPI, but mpi4py does not load ({error}): pip install 'gpt_dist[mpi]', or "
            "set MASTER_ADDR and MASTER_PORT"
        ) from None
    world = MPI.COMM_WORLD
    if world.size != launch.world_size:
        raise LaunchError(
            f"{launch.launcher} started {launch.world_size} processes, but mpi4py's MPI sees "
            f"{world.size}: it belongs to another MPI; build mpi4py against the one in use, or set "
            "MASTER_ADDR and MASTER_PORT"
        )
    return world


def _first_slurm_node() -> str:
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
    return listing.stdout.split()[0]


def _slurm_port() -> int:
    """The same on every rank; steps of one job that run together get different ones."""
    job, step = (_integer(os.environ, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return 20_000 + (job * 61 + step) % 20_000
