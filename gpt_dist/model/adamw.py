"""AdamW, as DeepSpeed wraps it, and with fp32 masters of its own."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gpt_dist.config import OptimizerConfig


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig
) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only; each step sets its learning rate."""
    return torch.optim.AdamW(_groups(parameters, config), **_settings(config))


def _groups(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> list[dict[str, Any]]:
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]


def _settings(config: OptimizerConfig) -> dict[str, Any]:
    return {"lr": 0.0, "betas": config.betas, "eps": config.epsilon, "fused": True}


PART_SIZE = 2**24
"""Elements whose gradients a step holds in fp32 at once, or those of one larger parameter."""


class MasterAdamW(torch.optim.AdamW):
    """AdamW of whole weights: it updates fp32 masters, and rounds them to bf16 weights if need be.

    The masters of fp32 weights are the weights themselves. A step divides the gradients by
    `grad_scale` and does nothing where `found_inf` is 1: both are tensors that the host need not
    know, as torch.amp.GradScaler sets them.
    """

    grad_scale: Tensor
    found_inf: Tensor

    def __init__(self, weights: Iterable[nn.Parameter], config: OptimizerConfig) -> None:
        """Copy the weights of half precision."""
        self.weights = list(weights)
        self.masters = [
            weight if weight.dtype == torch.float32 else nn.Parameter(weight.detach().float())
            for weight in self.weights
        ]
        self._pairs = list(zip(self.weights, self.masters, strict=True))
        super().__init__(_groups(self.masters, config), **_settings(config))

    def collect(self) -> None:
        """Add the gradients of the weights to those of the masters, in fp32."""
        for weight, master in self._pairs:
            if weight is not master and weight.grad is not None:
                gradient = weight.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                weight.grad = None

    def gradients(self) -> list[Tensor]:
        """Return the gradients that `step` applies: the masters', or the weights' without any."""
        found = [
            weight.grad if master.grad is None else master.grad for weight, master in self._pairs
        ]
        return [gradient for gradient in found if gradient is not None]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update the masters and the weights, and drop the gradients."""
        for pairs in self._parts():
            halves = [(weight, master) for weight, master in pairs if weight is not master]
            for weight, master in halves:
                if weight.grad is not None:
                    master.grad, weight.grad = weight.grad.float(), None
            super().step(closure)
            for weight, master in halves:
                weight.copy_(master)
            self.zero_grad()

    def _parts(self) -> Iterator[list[tuple[nn.Parameter, nn.Parameter]]]:
        """Yield the pairs of weights and masters that are updated together."""
        if any(master.grad is not None for master in self.masters):
            yield self._pairs
            return
        part: list[tuple[nn.Parameter, nn.Parameter]] = []
        size = 0
        for pair in self._pairs:
            if part and size + pair[0].numel() > PART_SIZE:
                yield part
                part, size = [], 0
            part.append(pair)
            size += pair[0].numel()
        yield part
