"""The language model's head and its loss in one function, without logits in fp32.

Shapes: N tokens, D hidden, V padded vocabulary; `/tp` where a dimension is split over the
tensor-parallel group.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gpt_dist.config import IGNORED_LABEL
from gpt_dist.model.regions import Group


class HeadCrossEntropy(torch.autograd.Function):
    """Cross-entropy of the logits `hidden @ weight.T`.

    Only the exponentials of the logits are kept, and they are not divided by their sum. Each row of
    the logits' gradient is therefore too large by that sum, and the backward pass divides the rows
    of its two products by it instead, because these are far smaller.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, valid: int, group: Group
    ) -> Tensor:
        """Return the loss in nats [N], fp32, of labels [N] after hidden states [N, D].

        `weight` [V/tp, D] are the rows of this process; those from `valid` on are padding.
        """
        logits = hidden @ weight.t()  # [N, V/tp]
        logits[:, valid:] = -math.inf
        own = labels - group.rank() * weight.size(0)
        is_own = (own >= 0) & (own < valid)
        column = own.clamp(0, weight.size(0) - 1)[:, None]
        target = logits.gather(1, column)[:, 0].float()
        largest = logits.amax(1).float()
        if group.size() > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
        exponentials = logits.float().sub_(largest[:, None]).exp_()
        sums = torch.stack([exponentials.sum(1), target.where(is_own, 0.0)])
        if group.size() > 1:
            dist.all_reduce(sums, group=group)
        divisor, found = sums
        losses = (divisor.log() + largest - found).masked_fill(labels == IGNORED_LABEL, 0.0)
        at_column = (target - largest).exp() - divisor.where(is_own, 0.0)
        if logits.dtype == torch.float16:  # its range is too small for the sums
            exponentials /= divisor[:, None]
            at_column, divisor = at_column / divisor, torch.ones_like(divisor)
        gradient = exponentials.to(logits.dtype)
        gradient.scatter_(1, column, at_column[:, None].to(logits.dtype))
        ctx.save_for_backward(hidden, weight, gradient, divisor, labels)
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Return the gradients of the hidden states, this process's part, and of the weight."""
        hidden, weight, gradient, divisor, labels = ctx.saved_tensors
        scale = (grad_losses / divisor).masked_fill(labels == IGNORED_LABEL, 0.0)[:, None]
        grad_hidden = (gradient @ weight) * scale
        grad_weight = gradient.t() @ (hidden * scale).to(hidden.dtype)
        return grad_hidden.to(hidden.dtype), grad_weight, None, None, None
