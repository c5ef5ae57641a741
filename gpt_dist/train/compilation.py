"""Decide whether a run compiles its model, and compile it."""

import os
import shutil

from gpt_dist.config import ResolvedConfig
from gpt_dist.model import flops_per_token, peak_flops
from gpt_dist.topology import Topology
from gpt_dist.train.objective import Objective

WORTHWHILE_SECONDS = 600
"""Estimated duration of a run from which on compiling pays: it takes a minute, and saves a tenth to
a third of a step."""

CPU_FLOPS = 1e11
"""Rate of one process on the CPU, for that estimate."""


def is_worthwhile(config: ResolvedConfig, topology: Topology) -> bool:
    """Return training.compile, or without it whether the run is long enough and can be compiled.

    The answer follows from the configuration, the layout and the machine, not from a measurement:
    a resumed run must be compiled as before, to give the same bits.
    """
    if config.training.compile is not None:
        return config.training.compile
    # The batches of tasks differ in shape; the hooks of ZeRO 3 do not reach into a compiled model.
    gathers = config.parallel.zero_stage == 3 and topology.data_parallel_size > 1
    if config.task or gathers:
        return False
    if topology.device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        return False
    training = config.training
    tokens = training.max_steps * training.global_batch_size * config.model.sequence_length
    rate = peak_flops(topology.device) or CPU_FLOPS
    seconds = flops_per_token(config.model) * tokens / (rate * topology.launch.world_size)
    return seconds > WORTHWHILE_SECONDS


def compile_in_place(objective: Objective, topology: Topology) -> None:  # type: ignore[type-arg]
    """Have an objective compiled when it is first called."""
    # On the CPU, the few random numbers that masks are hashed from stay those of torch.
    objective.compile(options={"fallback_random": topology.device.type == "cpu"})
