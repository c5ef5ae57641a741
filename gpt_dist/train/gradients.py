"""Finds gradients that are not finite, on any process, before an optimizer step uses them."""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor


def check_gradients(engine: DeepSpeedEngine, loss: Tensor) -> Tensor:
    """Make a gradient of every process NaN if a reduced gradient of any process is not finite.

    DeepSpeed skips a step whose gradient norm is not finite. The norm counts a parameter that
    tensor parallelism replicates on the first tensor-parallel rank only, so DeepSpeed would apply
    a NaN that another rank has in it. The host does not wait for the device here.

    `engine` is between its last backward pass and its step, and `loss` is this process's part of
    the mean loss. Returns a tensor [world size + 1] on the device, the same on every process: for
    each rank 0, or 1 where its gradient is not finite, or 2 where its loss is not either; then the
    sum of `loss`.
    """
    held = _held_gradients(engine)
    size = dist.get_world_size()
    figures = torch.zeros(size + 1, dtype=torch.float64, device=engine.device)
    if held:
        # Unlike a sum, the largest magnitude overflows in no precision.
        largest = torch.stack(torch._foreach_norm(held, math.inf))
        figures[dist.get_rank()] = ~largest.isfinite().all() * (1 + ~loss.isfinite())
    figures[size] = loss
    dist.all_reduce(figures)
    for gradient in held[:1]:
        gradient[(0,) * gradient.dim()] += torch.where(figures[:size].any(), math.nan, 0.0)
    return figures


def name_ranks(flags: Sequence[float], tensor_parallel_size: int) -> tuple[int, ...]:
    """Return the ranks that cause a gradient not to be finite, by the flags of all ranks.

    These are the ranks whose loss is not finite. If there are none, they are whole data-parallel
    groups: the sum of their gradients does not tell which rank is the cause.
    """
    groups = {rank % tensor_parallel_size for rank, flag in enumerate(flags) if flag}
    peers = (rank for rank in range(len(flags)) if rank % tensor_parallel_size in groups)
    return tuple(rank for rank, flag in enumerate(flags) if flag == 2) or tuple(peers)


def _held_gradients(engine: DeepSpeedEngine) -> list[Tensor]:
    """Return the reduced gradients of this process; only their norms if the host has them."""
    optimizer = engine.optimizer
    if isinstance(optimizer, BF16_Optimizer):
        return list(optimizer.fp32_groups_gradients_flat)
    if engine.zero_cpu_offload():
        return list(optimizer.norm_for_param_grads.values())
    if engine.zero_optimization():
        return [part for group in optimizer.averaged_gradients.values() for part in group]
    return [p.grad for p in engine.module.parameters() if p.grad is not None]
