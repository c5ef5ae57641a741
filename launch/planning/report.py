"""Print a plan: the layouts in order, those that do not fit, and the command to start."""

from collections.abc import Sequence
from operator import attrgetter

from rich.console import Console
from rich.table import Table

from gpt_dist.model import flops_per_token, num_parameters
from planning.estimate import MARGIN, Estimate
from planning.layouts import OPEN_KEYS
from planning.machines import GIB
from planning.operations import KINDS

SHOWN = 12
"""Layouts in the table."""


def show(console: Console, ranked: Sequence[Estimate], knows_steps: bool, data: str) -> None:
    """Print ranked layouts."""
    console.print(_table(ranked))
    for line in _summary(ranked, knows_steps, data):
        console.print(line, soft_wrap=True)


def _table(ranked: Sequence[Estimate]) -> Table:
    """Return the first layouts as a table of memory in GiB and time."""
    result = Table(box=None, pad_edge=False)
    for name in ("tensor", "data", "ZeRO", "micro", "recompute", "GiB", *KINDS):
        result.add_column(name, justify="right")
    for name in ("s/step", "talking", "tokens/s", "MFU", "fits"):
        result.add_column(name, justify="right")
    for one in ranked[:SHOWN]:
        parallel, training = one.config.parallel, one.config.training
        size = parallel.tensor_parallel_size
        result.add_row(
            *map(str, (size, one.world_size // size, parallel.zero_stage)),
            str(training.micro_batch_size),
            "yes" if training.activation_checkpointing else "no",
            f"{one.peak / GIB:.2f}",
            *(f"{one.memory[kind] / GIB:.2f}" for kind in KINDS),
            f"{one.seconds:.3g}",
            f"{one.communication / (one.computation + one.communication):.0%}",
            f"{_tokens(one) / one.seconds:,.0f}",
            _mfu(one),
            "yes" if one.fits else "NO",
        )
    return result


def _tokens(one: Estimate) -> int:
    return one.config.training.global_batch_size * one.config.model.sequence_length


def _mfu(one: Estimate) -> str:
    if one.machine.gpu is None:
        return ""
    flops = flops_per_token(one.config.model) * _tokens(one) / one.seconds
    return f"{flops / (one.machine.gpu.products * one.world_size):.0%}"


def _summary(ranked: Sequence[Estimate], knows_steps: bool, data: str) -> list[str]:
    """Return what was planned and assumed, in sentences."""
    best, machine = ranked[0], ranked[0].machine
    room = (machine.memory - machine.reserve) / GIB
    unfit = sum(not one.fits for one in ranked)
    lines = [
        f"{num_parameters(best.config.model):,} parameters on {best.world_size} x {machine.name}, "
        f"{len(ranked)} layout(s), of which {unfit} do(es) not fit: tensors x {MARGIN} must fit "
        f"into {room:.1f} GiB, after {machine.reserve / GIB:.1f} GiB beside tensors; {data}.",
    ]
    if best.fits and knows_steps:
        days = best.seconds * best.config.training.max_steps / 86400
        lines.append(
            f"The first takes {days:,.2f} days for {best.config.training.max_steps:,} steps, "
            "without validation and checkpoints."
        )
    if not best.fits:
        lines.append(
            "Nothing fits: use more or larger GPUs, activation checkpointing, a higher ZeRO stage, "
            "more tensor parallelism or a smaller micro-batch (--all tries these)."
        )
    return lines


def start_command(best: Estimate, config: str, overrides: Sequence[str]) -> str:
    """Return the command that starts a layout."""
    own = [f"{name}={attrgetter(name)(best.config)}".lower() for name in OPEN_KEYS]
    kept = [text for text in overrides if text.partition("=")[0] not in OPEN_KEYS]
    arguments = " ".join(["launch/pretrain.py", config, *kept, *own])
    per_host = best.machine.per_host
    if best.world_size <= per_host:
        return f"deepspeed --num_gpus {best.world_size} {arguments}"
    return (
        f"torchrun --nnodes {best.world_size // per_host} --nproc-per-node {per_host} "
        f"--rdzv-backend c10d --rdzv-endpoint HOST1:29500 {arguments}    # on each host"
    )
