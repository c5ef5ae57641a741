"""The environments of launchers, and how the processes of a run find each other."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import psutil
import pytest
from torch.distributed import Store, TCPStore

from gpt_dist import rendezvous
from gpt_dist.errors import LaunchError
from gpt_dist.rendezvous import Launch, choose_interface, discover_launch, open_store


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


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("RANK=0", "WORLD_SIZE: the launcher set None.*unset RANK and WORLD_SIZE"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_SIZE=x", "LOCAL_SIZE: the launcher set 'x'"),
        (
            "RANK=2 WORLD_SIZE=2 LOCAL_RANK=0",
            "RANK 2 is not below WORLD_SIZE 2; .*unset RANK and WORLD_SIZE",
        ),
    ],
)
def test_an_impossible_environment_is_refused_by_name(environment, message):
    with pytest.raises(LaunchError, match=message):
        discover_launch(variables(environment))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment that names a free port of this host as rank 0's, and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(rendezvous, "TIMEOUT", timedelta(seconds=20))
    return environment


Join = Callable[..., Future[Store]]


@pytest.fixture
def join() -> Iterator[Join]:
    """Start one of two processes, here a thread, on its way to the store."""
    with ThreadPoolExecutor(4) as threads:

        def join(
            rank: int, local_world_size: int = 2, launcher: str = "deepspeed"
        ) -> Future[Store]:
            launch = Launch(launcher, rank, 2, rank % local_world_size, local_world_size)
            return threads.submit(open_store, launch)

        yield join


def assert_connected(first: Future[Store], second: Future[Store]) -> None:
    first.result().set("word", "heard")
    assert second.result().get("word") == b"heard"


@pytest.mark.row(25, case="`MASTER_ADDR` left over")
def test_one_process_needs_no_address(environment):
    environment.update(MASTER_ADDR="node17.invalid", MASTER_PORT="0")
    store = open_store(Launch("python", 0, 1, 0, 1))
    store.set("word", "kept")
    assert store.get("word") == b"kept"
    assert environment["GLOO_SOCKET_IFNAME"] == "lo"


def test_processes_of_one_host_use_its_loopback_interface(environment, join):
    assert_connected(join(1), join(0))
    assert environment["GLOO_SOCKET_IFNAME"] == "lo"
    assert "NCCL_SOCKET_IFNAME" not in environment


def test_the_interface_that_the_user_named_stays(environment, join):
    environment["GLOO_SOCKET_IFNAME"] = "ib0"
    assert_connected(join(0), join(1))
    assert environment["GLOO_SOCKET_IFNAME"] == "ib0"


@pytest.mark.row(25, case="`RANK` and `WORLD_SIZE` left over")
@pytest.mark.parametrize(
    ("rank", "absent"), [(0, "1 of 2 processes"), (1, "rank 0 (Connection refused)")]
)
def test_a_process_says_once_for_whom_it_waits(environment, join, monkeypatch, capfd, rank, absent):
    """So does a rank above 0 without a launcher, whose environment may be another run's."""
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.1)
    first = join(rank)
    time.sleep(0.5)
    said = capfd.readouterr().err.splitlines()
    assert_connected(first, join(1 - rank))
    place = f"127.0.0.1:{environment['MASTER_PORT']}"
    remedy = "if no launcher started this process, unset RANK and WORLD_SIZE"
    assert said == [f"waiting for {absent} at {place}; {remedy}"]


@pytest.mark.usefixtures("environment")
def test_one_process_of_a_host_says_for_whom_it_waits(monkeypatch, capfd):
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.1)
    monkeypatch.setattr(rendezvous, "TIMEOUT", timedelta(seconds=0.5))
    with pytest.raises(LaunchError, match="gave up waiting"):
        open_store(Launch("srun", 1, 2, 1, 2))
    assert "waiting" not in capfd.readouterr().err


@pytest.mark.parametrize("rank", range(2))
def test_waiting_ends_with_an_error(environment, join, monkeypatch, rank):
    monkeypatch.setattr(rendezvous, "TIMEOUT", timedelta(seconds=0.5))
    place = f"127.0.0.1:{environment['MASTER_PORT']}"
    message = rf"rank {rank} of 2 cannot meet the others at {place} \(gave up .*set MASTER_ADDR"
    with pytest.raises(LaunchError, match=message):
        join(rank).result()


@pytest.mark.row(25, case="the address of another host")
def test_an_address_of_another_host_is_refused_on_rank_0(environment, join):
    environment["MASTER_ADDR"] = "node17.invalid"
    with pytest.raises(LaunchError, match=r"rank 0 cannot listen on port \d+ of node17\.invalid"):
        join(0).result()


@pytest.mark.row(25, case="an IPv6 address")
@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("local_world_size", [1, 2])
def test_an_ipv6_address(environment, join, local_world_size):
    environment["MASTER_ADDR"] = "::1"
    assert_connected(join(0, local_world_size), join(1, local_world_size))
    assert environment["GLOO_SOCKET_IFNAME"] == "lo"


@pytest.mark.row(23, case="a busy port")
def test_a_busy_port_is_refused_on_rank_0(environment, join, measured):
    begin = time.monotonic()
    with (
        socket.create_server(("127.0.0.1", int(environment["MASTER_PORT"]))),
        pytest.raises(LaunchError, match=r"cannot listen on port \d+ of 127\.0\.0\.1: Address al"),
    ):
        join(0).result()
    measured("until the error", time.monotonic() - begin)


@pytest.mark.parametrize("local_world_size", [1, 2])
def test_only_a_run_of_one_host_listens_on_the_loopback_address_alone(
    environment, join, local_world_size
):
    """The name of rank 0's host may resolve to another address on the other hosts."""
    environment["MASTER_ADDR"] = "127.0.1.1"
    port = int(environment["MASTER_PORT"])
    first = join(0, local_world_size)
    wait_until_listening("127.0.1.1", port)
    assert listens("127.0.0.2", port) is (local_world_size == 1)
    assert_connected(first, join(1, local_world_size))


def test_rank_0_of_srun_is_on_the_first_node(environment, join):
    del environment["MASTER_ADDR"]
    environment["SLURM_STEP_NODELIST"] = "127.0.[1-2].[7-9,12],node[03-04]"
    first = join(0, launcher="srun")
    wait_until_listening("127.0.1.7", int(environment["MASTER_PORT"]))
    assert_connected(first, join(1, launcher="srun"))


def wait_until_listening(address: str, port: int) -> None:
    deadline = time.monotonic() + 10
    while not listens(address, port):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def listens(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def test_a_restarted_run_does_not_meet_the_attempt_that_died(environment, join):
    """torchrun's store outlives the processes that it restarts."""
    environment["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    agent = TCPStore("127.0.0.1", int(environment["MASTER_PORT"]), is_master=True)
    first = join(0), join(1)
    assert_connected(*first)
    agent.set("question/1", "of a process that died before it was answered")
    second = join(0), join(1)
    second[1].result().set("word", "of the second attempt")
    assert second[0].result().get("word") == b"of the second attempt"
    assert first[0].result().get("word") == b"heard"


INTERFACES = {"lo": ["127.0.0.1", "::1"], "eth0": ["192.168.0.5"], "ib0": ["10.1.0.5", "10.2.0.5"]}


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        ("127.0.0.1", ["127.0.0.1"], "lo"),
        ("192.168.0.5", ["192.168.0.5"], "lo"),
        ("10.2.0.5", ["10.2.0.6"], "ib0"),
        ("10.2.0.5", ["127.0.0.1", "127.0.0.1"], "ib0"),
        # Rank 0's host, where its own name resolves to a loopback address.
        ("127.0.0.1", ["127.0.0.1", "10.2.0.6"], "ib0"),
        ("172.16.0.1", ["10.2.0.6"], None),
    ],
)
def test_the_interface_that_reaches_the_others(monkeypatch, own, others, expected):
    table = {
        name: [SimpleNamespace(address=address) for address in addresses]
        for name, addresses in INTERFACES.items()
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: table)
    monkeypatch.setattr(rendezvous, "_address_towards", {"10.2.0.6": "10.2.0.5"}.__getitem__)
    assert choose_interface(own, [own, *others]) == expected
