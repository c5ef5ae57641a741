"""The paper's AdamW and its learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from gpt_dist.config import OptimizerConfig, ResolvedScheduleConfig


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay on matrices only, not on biases and LayerNorm gains.

    Its learning rate is 0 until each step sets one.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for parameter in parameters if parameter.dim() > 1],
            "weight_decay": config.weight_decay,
        },
        {
            "params": [parameter for parameter in parameters if parameter.dim() == 1],
            "weight_decay": 0.0,
        },
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.epsilon, fused=True)


def learning_rate(step: int, maximum: float, schedule: ResolvedScheduleConfig) -> float:
    """The rate of update number `step`, counted from 1.

    Linear from 0 to the maximum over the warm-up, then down to 0 at decay_steps (Radford et al.
    2018, section 4.1).
    """
    if step <= schedule.warmup_steps:
        return maximum * step / schedule.warmup_steps
    if schedule.shape == "constant":
        return maximum
    length = max(1, schedule.decay_steps - schedule.warmup_steps)
    progress = min(1.0, (step - schedule.warmup_steps) / length)
    if schedule.shape == "linear":
        return maximum * (1 - progress)
    return maximum * (1 + math.cos(math.pi * progress)) / 2
