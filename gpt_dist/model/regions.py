"""The tensor-parallel group, and the borders between what it splits by features and by time.

Under sequence parallelism (Korthikanti et al. 2022, section 4.2.2) hidden states are split along
time, except between a column-parallel and a row-parallel layer, where each process holds all
positions and its own heads or features.

Shapes: B batch, T time, D hidden, E features of the layer behind; `/tp` where a dimension is split
over the tensor-parallel group.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup


class SingleProcess:
    """The group of a process that holds whole layers, with or without torch.distributed."""

    def size(self) -> int:
        """Return 1."""
        return 1

    def rank(self) -> int:
        """Return 0."""
        return 0


Group = ProcessGroup | SingleProcess
"""The tensor-parallel group, whose processes share each layer."""


def sum_over_time(gradient: Tensor, group: ProcessGroup) -> Tensor:
    """Return a parameter's whole gradient, of which each process has that of its positions."""
    total = gradient.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total.to(gradient.dtype)


# megatron-core's own functions take the first dimension as time, and allocate on CUDA.


class Gather(torch.autograd.Function):
    """Joins the positions of all processes: [B, T/tp, D] -> [B, T, D].

    The gradient of the result differs between the processes, and is summed.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: ProcessGroup) -> Tensor:
        """Return all positions."""
        ctx.group = group
        return _gather(part, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the sum of the gradients at this process's positions."""
        return _reduce_scatter(gradient, ctx.group), None


class ReduceScatter(torch.autograd.Function):
    """Adds up what the processes have, each for its positions: [B, T, D] -> [B, T/tp, D]."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, bias: Tensor | None, group: ProcessGroup) -> Tensor:
        """Return the sum at this process's positions, and a bias [D] added to it."""
        ctx.group, ctx.has_bias = group, bias is not None
        total = _reduce_scatter(parts, group)
        return total if bias is None else total + bias

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Return the gradient at all positions, and that of the bias, complete on each process."""
        whole = _gather(gradient, ctx.group)
        return whole, whole.flatten(0, 1).sum(0) if ctx.has_bias else None, None


class GatheredProduct(torch.autograd.Function):
    """Joins the positions of all processes and maps them: [B, T/tp, D] -> [B, T, E/tp].

    The joined hidden states are not kept for the backward pass, which joins them again.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, weight: Tensor, group: ProcessGroup) -> Tensor:
        """Return the product with a weight [E/tp, D]."""
        ctx.group = group
        ctx.save_for_backward(part, weight)
        return F.linear(_gather(part, group), weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of this process's positions and of its weight."""
        part, weight = ctx.saved_tensors
        grad_part = _reduce_scatter(gradient @ weight, ctx.group)
        whole = _gather(part, ctx.group)
        return grad_part, gradient.flatten(0, 1).t() @ whole.flatten(0, 1), None


def _gather(part: Tensor, group: ProcessGroup) -> Tensor:
    size = group.size()
    parts = part.new_empty(size * part.size(0), *part.shape[1:])
    dist.all_gather_into_tensor(parts, part.contiguous(), group=group)
    return parts.unflatten(0, (size, -1)).transpose(0, 1).flatten(1, 2)


def _reduce_scatter(whole: Tensor, group: ProcessGroup) -> Tensor:
    parts = whole.unflatten(1, (group.size(), -1)).transpose(0, 1).contiguous()
    own = torch.empty_like(parts[0])
    dist.reduce_scatter_tensor(own, parts.flatten(0, 1), group=group)
    return own
