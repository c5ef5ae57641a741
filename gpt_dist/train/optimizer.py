"""AdamW and the learning-rate schedule of the paper."""

import math

import torch
from torch import nn

from gpt_dist.config import OptimizerConfig, ResolvedScheduleConfig


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only; each step sets its learning rate."""
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.epsilon, fused=True)


def learning_rate(step: int, maximum: float, schedule: ResolvedScheduleConfig) -> float:
    """Return the rate of a step, counted from 1.

    It rises linearly from 0 to the maximum over the warm-up, then falls to 0 at decay_steps
    (Radford et al. 2018, section 4.1).
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
