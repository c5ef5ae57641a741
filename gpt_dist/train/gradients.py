"""Finds gradients that are not finite, on any process, before an optimizer step uses them."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor

from gpt_dist.topology import Topology


def spread_bad_gradients(engine: DeepSpeedEngine) -> Tensor:
    """Make a gradient of every process NaN if a reduced gradient of any process is not finite.

    DeepSpeed skips a step whose gradient norm is not finite. The norm counts a parameter that
    tensor parallelism replicates on the first tensor-parallel rank only, so DeepSpeed would apply
    a NaN that another rank has in it. The host does not wait for the device here.

    Returns:
        A tensor [world size] that is 1 at the ranks whose gradient is not finite, and 0 elsewhere.
    """
    held = _held_gradients(engine)
    bad = torch.zeros(dist.get_world_size(), device=engine.device)
    if held:
        # Unlike a sum, the largest magnitude overflows in no precision.
        largest = torch.stack(torch._foreach_norm(held, math.inf))
        bad[dist.get_rank()] = ~largest.isfinite().all()
    dist.all_reduce(bad)
    for gradient in held[:1]:
        gradient[(0,) * gradient.dim()] += torch.where(bad.any(), math.nan, 0.0)
    return bad


def name_ranks(bad: Tensor, topology: Topology) -> tuple[int, ...]:
    """Return the ranks whose sum of gradients is not finite, from what `spread_bad_gradients` gave.

    The sum of a data-parallel group does not tell its ranks apart, whichever of them holds it.
    """
    size = topology.tensor_parallel_size
    tensor_parallel_ranks = {rank % size for rank in bad.nonzero().flatten().tolist()}
    return tuple(rank for rank in range(len(bad)) if rank % size in tensor_parallel_ranks)


def drop_gradients(engine: DeepSpeedEngine) -> None:
    """Drop what a skipped step leaves behind.

    With an offloaded optimizer, DeepSpeed would add the next gradients to those not finite.
    """
    groups = getattr(engine.optimizer, "averaged_gradients", {})
    groups.update(dict.fromkeys(groups))


def _held_gradients(engine: DeepSpeedEngine) -> list[Tensor]:
    """Return the reduced gradients that this process holds.

    For an offloaded optimizer these are their norms, which DeepSpeed has computed on the device.
    """
    optimizer = engine.optimizer
    if isinstance(optimizer, BF16_Optimizer):
        gradients: list[Tensor] = optimizer.fp32_groups_gradients_flat
        return gradients
    if engine.zero_cpu_offload():
        return list(optimizer.norm_for_param_grads.values())
    if engine.zero_optimization():
        return [part for group in optimizer.averaged_gradients.values() for part in group]
    return [p.grad for p in engine.module.parameters() if p.grad is not None]
