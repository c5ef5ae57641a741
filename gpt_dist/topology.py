"""Process groups, ranks, and DeepSpeed's view of them."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup, Store  # type: ignore[attr-defined]

from gpt_dist.errors import GptDistError, LaunchError
from gpt_dist.megatron import parallel_state
from gpt_dist.memory import keep_freed_memory
from gpt_dist.rendezvous import TIMEOUT, Launch, open_store
from gpt_dist.watchdog import Progress

Result = TypeVar("Result")


@dataclass(frozen=True)
class Topology:
    """This process's place in the grid of processes; tensor-parallel peers have adjacent ranks."""

    launch: Launch
    device: torch.device
    tensor_parallel_size: int
    tensor_parallel_rank: int
    data_parallel_size: int
    data_parallel_rank: int
    tensor_parallel_group: dist.ProcessGroup
    data_parallel_group: dist.ProcessGroup
    progress: Progress = field(default_factory=Progress)
    """Training says here what it does, for the watchdog."""

    @property
    def is_main(self) -> bool:
        """Return whether this process writes what only one may write."""
        return self.launch.rank == 0


def device_type() -> str:
    """The kind of device that training uses on this machine: "cuda" or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def computes_bf16(device: torch.device) -> bool:
    """Return whether a device has instructions for bf16, without which it is many times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    available = torch.backends.mkldnn.is_available()
    return bool(available and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def connect(launch: Launch, store: Store | None = None) -> torch.device:
    """Claim this process's device and join all processes in torch.distributed's default group.

    They meet in `store`, by default the one of `open_store`. Raises LaunchError where they do not.
    """
    # DeepSpeed reads these, whatever the launcher set.
    os.environ.update(
        RANK=str(launch.rank), WORLD_SIZE=str(launch.world_size), LOCAL_RANK=str(launch.local_rank)
    )
    # megatron-core overlaps the reduction of input gradients with the product behind it only then.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    device, backend = torch.device(device_type()), "gloo"
    if device.type == "cuda":
        backend = "nccl"
        device = torch.device("cuda", _gpu_index(launch, torch.cuda.device_count()))
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
        torch.set_num_threads(_threads(launch))
    store = store or open_store(launch)
    dist.init_process_group(
        backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=TIMEOUT
    )
    return device


def _threads(launch: Launch) -> int:
    """Return the threads of this process: OMP_NUM_THREADS, or its share of the cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    # torchrun sets 1 for several processes a host, whatever the cores.
    if wanted.isdecimal() and int(wanted) and not (launch.launcher == "torchrun" and wanted == "1"):
        return int(wanted)
    return max(1, len(os.sched_getaffinity(0)) // launch.local_world_size)


def form_groups(launch: Launch, device: torch.device, tensor_parallel_size: int) -> Topology:
    """Divide the connected processes into tensor- and data-parallel groups."""
    if not (
        parallel_state.model_parallel_is_initialized()
        and parallel_state.get_tensor_model_parallel_world_size() == tensor_parallel_size
    ):
        _release_groups()
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


def together(action: Callable[[], Result]) -> Result:
    """Return what `action` returns on this process; raise its error on all where it fails on one.

    Covers errors of the input and of the file system; of several, the lowest rank's is raised.
    """
    result, error = None, None
    try:
        result = action()
    except GptDistError as failure:
        error = failure
    except OSError as failure:
        error = GptDistError(f"{failure.filename or 'a file'}: {failure.strerror or failure}")
    for found in gather(error):
        if found:
            raise found
    return cast(Result, result)


def gather(own: Result, group: dist.ProcessGroup | None = None) -> list[Result]:
    """Return what the processes of a group, by default all, have, in the order of their ranks."""
    found = [own] * dist.get_world_size(group)
    dist.all_gather_object(found, own, group)
    return found


def disconnect() -> None:
    """Leave all groups; call once, when no process will use another any more."""
    _release_groups()
    dist.destroy_process_group()


def gloo_group() -> ProcessGroup:
    """Form a group of all processes on the CPU, which does not wait for training's collectives."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, ProcessGroup)  # no process is left out
    # A run without a step left closes the group at once, perhaps while another process connects.
    dist.barrier(group)
    return group


def _release_groups() -> None:
    """End megatron-core's groups: it only forgets them, and each keeps threads."""
    groups = {group for group in vars(parallel_state).values() if isinstance(group, ProcessGroup)}
    parallel_state.destroy_model_parallel()
    for group in groups - {dist.group.WORLD}:
        dist.destroy_process_group(group)


def _gpu_index(launch: Launch, visible: int) -> int:
    # A launcher that binds each process to a GPU of its own shows it as the only one.
    index = 0 if visible == 1 and launch.launcher == "srun" else launch.local_rank
    if index >= visible:
        raise LaunchError(
            f"{launch.local_world_size} processes on this host, but {visible} GPU(s); start one "
            "process a GPU"
        )
    return index


def model_parallel_unit(topology: Topology) -> SimpleNamespace:
    """Return what DeepSpeed expects as its `mpu` argument.

    megatron-core's own module lacks some of these names, and DeepSpeed then silently assumes that
    there is no model parallelism.
    """
    return SimpleNamespace(
        get_model_parallel_group=lambda: topology.tensor_parallel_group,
        get_model_parallel_rank=lambda: topology.tensor_parallel_rank,
        get_model_parallel_world_size=lambda: topology.tensor_parallel_size,
        get_tensor_model_parallel_group=lambda: topology.tensor_parallel_group,
        get_tensor_model_parallel_rank=lambda: topology.tensor_parallel_rank,
        get_tensor_model_parallel_world_size=lambda: topology.tensor_parallel_size,
        get_data_parallel_group=lambda: topology.data_parallel_group,
        get_data_parallel_rank=lambda: topology.data_parallel_rank,
        get_data_parallel_world_size=lambda: topology.data_parallel_size,
    )
