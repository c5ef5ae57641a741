"""Launcher environments, and the store where the processes of a run find each other."""

import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from ipaddress import ip_address
from threading import Thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psutil

from gpt_dist.errors import LaunchError

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for its peers, at the start and in every collective."""

PATIENCE = 10.0
"""Seconds of waiting at the start after which a process says for whom, and looks for its launcher
and the other processes of its host."""

ANSWER_SECONDS = 20.0
"""Seconds in which rank 0 answers once it listens."""

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Launch:
    """The place of this process among `world_size` processes, as its launcher told it."""

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    launched_by: tuple[psutil.Process, ...] = field(default=(), compare=False)
    """The launcher's processes whose end ends this one: the parent, and its own parent."""


_LAUNCHERS = {
    "mpirun": [f"OMPI_COMM_WORLD_{x}" for x in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")],
    # Before srun: inside an allocation, MPICH's ranks inherit what srun told their starter.
    "mpiexec": ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"],
    "srun": ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"],
}
"""The variables in which launchers tell rank, world size, local rank and local world size."""

_MPI = ("mpirun", "mpiexec")
_MPI_DAEMONS = ("mpirun", "mpiexec", "prterun", "prted", "orted", "hydra_pmi_proxy")
_NODE_LAUNCHER = "deepspeed.launcher.launch"
_NO_LAUNCHER = "if no launcher started this process, unset RANK and WORLD_SIZE"


def discover_launch(environment: Mapping[str, str]) -> Launch:
    """Read the rank that `deepspeed`, `torchrun`, Open MPI, MPICH or SLURM gave this process.

    A process without a launcher is rank 0 of 1. Raises LaunchError where the environment is
    incomplete or contradicts itself.
    """
    if "RANK" in environment:
        launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "deepspeed"
        local_size = next(filter(environment.get, ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")), "WORLD_SIZE")
        names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", local_size]
    else:
        told = (x for x, names in _LAUNCHERS.items() if environment.keys() >= {*names[:2]})
        launcher = next(told, "python")
        if launcher == "python":
            return Launch(launcher, rank=0, world_size=1, local_rank=0, local_world_size=1)
        names = _LAUNCHERS[launcher]
    rank, world_size, local_rank, local_world_size = (_integer(environment, x) for x in names)
    if rank >= world_size:
        raise LaunchError(f"RANK {rank} is not below WORLD_SIZE {world_size}; {_NO_LAUNCHER}")
    return Launch(launcher, rank, world_size, local_rank, local_world_size, _launched_by(launcher))


def _launched_by(launcher: str) -> tuple[psutil.Process, ...]:
    # A run may outlive a shell, and the daemons of srun end what they started themselves. Those of
    # MPI do so too, but on its own host mpirun is the daemon, and may be killed.
    found = []
    with suppress(psutil.Error):
        parent = psutil.Process(os.getppid())
        if launcher == "torchrun":
            found.append(parent)
        if launcher in _MPI:
            above = (parent, *parent.parents())
            found += [process for process in above if process.name() in _MPI_DAEMONS][:1]
        if launcher == "deepspeed" and _NODE_LAUNCHER in " ".join(parent.cmdline()):
            found.append(parent)
            for process in parent.parents():
                command, over_ssh = " ".join(process.cmdline()), process.name().startswith("sshd")
                found += [process] if over_ssh or "deepspeed" in command else []
                found += _remote_starters(parent) if over_ssh else []
                if _NODE_LAUNCHER not in command:  # not the shell in which ssh runs it
                    break
    return tuple(found)


def _remote_starters(node_launcher: psutil.Process) -> list[psutil.Process]:
    """Return pdsh and the `deepspeed` command that started a host's launcher, if they run here."""
    words = {word for word in node_launcher.cmdline() if word.startswith(("--world_", "--master_"))}
    for process in psutil.process_iter(["name", "cmdline"]):
        if str(process.info["name"]).startswith("pdsh") and words <= set(
            process.info["cmdline"] or ()
        ):
            above = process.parent()
            return [process, above] if above and "deepspeed" in str(above.cmdline()) else [process]
    return []


def launcher_ended(launch: Launch) -> bool:
    """Return whether the launcher has ended since `discover_launch`."""
    with suppress(psutil.NoSuchProcess):
        return not all(
            process.is_running() and process.status() != psutil.STATUS_ZOMBIE
            for process in launch.launched_by
        )
    return True


def _integer(environment: Mapping[str, str], name: str) -> int:
    # SLURM writes the tasks per node as "4(x2)" or "4,3".
    digits = environment.get(name, "").replace("(", ",").split(",")[0]
    if not digits.isdigit():
        raise LaunchError(
            f"{name}: the launcher set {environment.get(name)!r}, not a number; start with "
            "deepspeed, torchrun, mpirun or srun, or unset RANK and WORLD_SIZE for plain python"
        )
    return int(digits)


def open_store(launch: Launch) -> "Store":
    """Return the key-value store where the processes find each other, once all are there.

    Rank 0 listens at MASTER_ADDR and MASTER_PORT; the processes agree here on what the launcher
    left out of them. A single process needs neither. Also sets the network interface of gloo and
    NCCL, unless the user has. Raises LaunchError where the processes do not meet.
    """
    from torch.distributed import HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]

    if launch.world_size == 1:
        _name_interface(LOOPBACK, [LOOPBACK])
        return HashStore()
    address, port, listener = _meeting_place(launch)
    wait = _waiter(launch, f"{address}:{port}")
    try:
        own = _reach(address, port, wait)
        connect = partial(
            TCPStore,
            address,
            port,
            is_master=listener is not None,
            timeout=TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=listener.detach() if listener else None,
        )
        shared = _answer(connect, wait)
        store = PrefixStore(_meet(shared, launch, wait), shared)
        store.set(f"address/{launch.rank}", own)
        addresses = store.multi_get([f"address/{rank}" for rank in range(launch.world_size)])
        _name_interface(own, [address.decode() for address in addresses])
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise LaunchError(
            f"rank {launch.rank} of {launch.world_size} cannot meet the others at {address}:{port} "
            f"({reason}); set MASTER_ADDR and MASTER_PORT, or the launcher's flags, to an address "
            "that every host can reach"
        ) from error
    return store


def _meeting_place(launch: Launch) -> tuple[str, int, socket.socket | None]:
    """Return the address and port of rank 0, and on rank 0 the socket that listens there."""
    address = os.environ.get("MASTER_ADDR") or _default_address(launch)
    port = _integer(os.environ, "MASTER_PORT") if "MASTER_PORT" in os.environ else 0
    if port > 65_535:
        raise LaunchError(f"MASTER_PORT: {port} is no port; choose one from 1024 to 65535")
    if not port and launch.launcher == "srun":
        # The same on every rank; steps of one job that run together get different ports.
        job, step = (_integer(os.environ, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        port = 20_000 + (job * 61 + step) % 20_000
    if not port and launch.launcher not in _MPI:
        raise LaunchError(f"MASTER_PORT: not set; set it to rank 0's port, or, {_NO_LAUNCHER}")
    hosts_store = launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    listener = _listen(address, port, launch) if hosts_store else None
    port = port or int(_mpi_world(launch).bcast(listener and listener.getsockname()[1]))
    return address, port, listener


def _listen(address: str, port: int, launch: Launch) -> socket.socket:
    """Listen on every address, or only on `address` where it is a loopback one of a lone host."""
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(address, port)]
        own = next((entry for entry in found if entry.startswith("127.")), None)
        if own and launch.local_world_size == launch.world_size:
            return socket.create_server((own, port))
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise LaunchError(
            f"rank 0 cannot listen on port {port} of {address}: {error.strerror}; choose a free "
            "port and an address of rank 0's host (MASTER_PORT and MASTER_ADDR, or the launcher's "
            "flags)"
        ) from None


def _waiter(launch: Launch, place: str) -> Callable[[str], None]:
    """Return a function that sleeps, says after PATIENCE for whom, and raises after TIMEOUT.

    It raises LaunchError once the launcher, or another process of this host, has ended.
    """
    # One process a host prints it, and any whose environment may be left over from another run.
    silent = launch.local_rank > 0 and (launch.launcher != "deepspeed" or bool(launch.launched_by))
    begin = time.monotonic()
    patience = PATIENCE

    def wait(absent: str) -> None:
        nonlocal silent, patience
        waited = time.monotonic() - begin
        if waited > TIMEOUT.total_seconds():
            raise TimeoutError(f"gave up waiting for {absent}")
        if waited > PATIENCE and not silent:
            silent = True
            print(f"waiting for {absent} at {place}; {_NO_LAUNCHER}", file=sys.stderr, flush=True)
        if waited > patience:
            patience += PATIENCE
            _check_neighbours(launch)
        time.sleep(0.05)

    return wait


def _check_neighbours(launch: Launch) -> None:
    """Raise LaunchError if the launcher has ended, or a process that it started on this host."""
    alive = launch.local_world_size
    # Between MPI's daemon and its processes there may be shells.
    for launcher in () if launch.launcher in _MPI else launch.launched_by[:1]:
        with suppress(psutil.Error):
            children = [one for one in launcher.children() if one.status() != psutil.STATUS_ZOMBIE]
            alive = sum("LOCAL_RANK" in one.environ() for one in children)
    if alive < launch.local_world_size or launcher_ended(launch):
        raise LaunchError(
            f"the launcher, or one of its {launch.local_world_size} processes on "
            f"{socket.gethostname()}, has ended before all processes were there; start again"
        )


def _reach(address: str, port: int, wait: Callable[[str], None]) -> str:
    """Wait until rank 0 listens; return the address from which this process reaches it."""
    while True:
        try:
            with socket.create_connection((address, port), timeout=5) as connection:
                own = str(connection.getsockname()[0])
                return LOOPBACK if ip_address(own).is_loopback else own
        except OSError as error:
            reason = error.strerror or str(error)
        wait(f"rank 0 ({reason})")


def _answer(connect: Callable[[], "Store"], wait: Callable[[str], None]) -> "Store":
    """Return the store of rank 0; TimeoutError where what listens there does not answer as one.

    torch itself would wait for such a program's answer for ever.
    """
    found: Future[Store] = Future()

    def try_to() -> None:
        try:
            found.set_result(connect())
        except RuntimeError as error:
            found.set_exception(error)

    thread = Thread(target=try_to, daemon=True)
    thread.start()
    thread.join(1)
    deadline = time.monotonic() + ANSWER_SECONDS
    while not found.done():
        if time.monotonic() > deadline:
            raise TimeoutError("what listens there is not rank 0 of this run; choose another port")
        wait("an answer of rank 0")
    return found.result()


def _meet(store: "Store", launch: Launch, wait: Callable[[str], None]) -> str:
    """Wait for all processes; return the prefix of their keys, one that no earlier start used.

    torchrun's store keeps the keys of the processes that it restarts, and its restart counts differ
    between hosts. So rank 0 makes up the prefix, and each process asks for it with a key of its
    own, which a rank 0 that has died did not answer.
    """
    question = uuid4().hex
    if launch.rank:
        store.set(f"question/{launch.rank}", question)
        while not store.check([f"answer/{question}"]):
            wait("an answer of rank 0")
        prefix = store.get(f"answer/{question}").decode()
        store.set(f"{prefix}/{launch.rank}", "here")
        while not store.check([f"{prefix}/0"]):
            wait("other processes")
        return prefix
    prefix, absent = question, list(range(1, launch.world_size))
    while absent := [rank for rank in absent if not store.check([f"{prefix}/{rank}"])]:
        for rank in absent:
            if store.check([f"question/{rank}"]):
                store.set(f"answer/{store.get(f'question/{rank}').decode()}", prefix)
        wait(f"{len(absent)} of {launch.world_size} processes")
    store.set(f"{prefix}/0", "here")
    return prefix


def _name_interface(own: str, addresses: Sequence[str]) -> None:
    """Set the interface of gloo, and between hosts of NCCL, unless the user has."""
    interface = choose_interface(own, addresses)
    if interface and not os.environ.get("GLOO_SOCKET_IFNAME"):
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    if interface and set(addresses) != {own} and not os.environ.get("NCCL_SOCKET_IFNAME"):
        os.environ["NCCL_SOCKET_IFNAME"] = f"={interface}"  # "=": not every name that begins so


def choose_interface(own: str, addresses: Sequence[str]) -> str | None:
    """Return the network interface by which a process reaches the others of its run, if any.

    `own` and `addresses` are the addresses from which this and all processes reached rank 0:
    LOOPBACK on a host whose own name resolves to a loopback address, as it does on Debian.
    """
    if set(addresses) == {own}:
        own = LOOPBACK
    elif own == LOOPBACK:
        own = _address_towards(next(other for other in addresses if other != LOOPBACK))
    found = psutil.net_if_addrs().items()
    return next((name for name, entries in found if own in {x.address for x in entries}), None)


def _address_towards(peer: str) -> str:
    """Return the address from which this host sends to `peer`."""
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))  # sends nothing: it asks for the route
        return str(probe.getsockname()[0])


def _default_address(launch: Launch) -> str:
    if launch.launcher in _MPI:
        hosts = _mpi_world(launch).allgather(socket.gethostname())
        return LOOPBACK if len(set(hosts)) == 1 else str(hosts[0])
    if launch.launcher == "srun":
        # The first of a list such as "rack[1-2]node[07-09,12],login".
        nodes = os.environ.get("SLURM_STEP_NODELIST", LOOPBACK)
        return re.sub(r"\[(\d+)[^]]*\]", r"\1", nodes).partition(",")[0]
    return LOOPBACK


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
