"""Finds gradients that are not finite, on any process, before an optimizer step uses them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor

from gpt_dist.topology import Topology


@dataclass(frozen=True)
class CheckedGradients:
    """The state of the gradients and of the loss on every rank, still on the device."""

    figures: Tensor
    """[world size + 1]: for each rank 0, or 1 where its gradient is not finite, or 2 where its loss
    is not either; then the sum of the losses."""

    def read(self, topology: Topology) -> tuple[float, tuple[int, ...]]:
        """Return the mean loss, and the ranks to name for a gradient that is not finite.

        These are the ranks whose loss is not finite. If there are none, they are the data-parallel
        groups whose sum of gradients is not: the sum does not tell which of them is the cause.
        """
        *flags, loss = self.figures.tolist()
        ranks = [rank for rank, flag in enumerate(flags) if flag == max(flags) > 0]
        size = topology.tensor_parallel_size
        if max(flags) == 1:
            groups = {rank % size for rank in ranks}
            ranks = [rank for rank in range(len(flags)) if rank % size in groups]
        return loss / size, tuple(ranks)


def check_gradients(engine: DeepSpeedEngine, loss: Tensor) -> CheckedGradients:
    """Make a gradient of every process NaN if a reduced gradient of any process is not finite.

    DeepSpeed skips a step whose gradient norm is not finite. The norm counts a parameter that
    tensor parallelism replicates on the first tensor-parallel rank only, so DeepSpeed would apply
    a NaN that another rank has in it. The host does not wait for the device here.

    Args:
        engine: The engine, between its last backward pass and its step.
        loss: The part of the mean loss that this process computed, a scalar.
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
    return CheckedGradients(figures)


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
