"""The words with which a run begins: what is trained, how, and what may go wrong."""

import math
import shutil
from pathlib import Path

from gpt_dist.checkpoint.folder import steps
from gpt_dist.config import ResolvedConfig
from gpt_dist.topology import Topology, computes_bf16
from gpt_dist.train.engine import Engine

STATE_BYTES = 12
"""Bytes of a checkpoint for each parameter: a weight and two moments."""


def describe(config: ResolvedConfig, topology: Topology, engine: Engine) -> str:
    """Return the size and layout of a run in words, with warnings about it."""
    training, warmup_steps = config.training, config.schedule.warmup_steps
    batch = "examples" if config.task else f"x {config.model.sequence_length} tokens"
    text = (
        f"{engine.num_parameters:,} parameters a process, {training.precision}, "
        f"{topology.device.type}; data parallel {topology.data_parallel_size} x tensor parallel "
        f"{topology.tensor_parallel_size}, ZeRO {config.parallel.zero_stage}; "
        f"global batch {training.global_batch_size} {batch}, {training.max_steps} steps"
    )
    if engine.compiled:
        text += "; compiled, so the first step takes about a minute"
    if training.precision == "bf16" and not computes_bf16(topology.device):
        text += (
            f"\nWARNING: training.precision bf16: this {topology.device.type} has no instructions "
            "for it, and fp32 is many times faster"
        )
    if warmup_steps >= training.max_steps:
        text += (
            f"\nWARNING: schedule.warmup_steps {warmup_steps}: all {training.max_steps} steps are "
            "warm-up, below optimizer.learning_rate"
        )
    return text


def warn_of_little_room(config: ResolvedConfig, engine: Engine) -> str:
    """Return a warning where the disk has no room for the checkpoints to come, or nothing."""
    folder = Path(config.run.directory) / "checkpoints"
    size = STATE_BYTES * sum(math.prod(one.shape) for one in engine.state().entries.values())
    count = max(1, config.checkpoint.keep + 1 - len(steps(folder)))
    free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
    if free >= count * size:
        return ""
    return (
        f"\nWARNING: {folder}: {free:,} bytes are free, but up to {count} more checkpoints of "
        f"{size:,} bytes are to be there at once; make room, or lower checkpoint.keep"
    )
