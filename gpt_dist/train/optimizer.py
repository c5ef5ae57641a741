"""AdamW, the learning-rate schedule of the paper, and the configuration of DeepSpeed."""

import math
from typing import Any

import torch
from torch import nn

from gpt_dist.config import OptimizerConfig, ResolvedConfig, ResolvedScheduleConfig


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


def deepspeed_config(config: ResolvedConfig) -> dict[str, Any]:
    """Return the dictionary for `deepspeed.initialize`, from a resolved configuration.

    Gradients are summed and reduced in fp32 wherever DeepSpeed can, so that accumulation and the
    number of processes do not change the result.
    """
    training, parallel = config.training, config.parallel
    zero: dict[str, Any] = {"stage": parallel.zero_stage}
    if parallel.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    derived: dict[str, Any] = {
        "train_batch_size": training.global_batch_size,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_clipping": config.optimizer.clip_norm,
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        # The optimizer is torch's fused AdamW, on the host too: it needs no compiled extension.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
    if training.precision == "bf16":
        derived["bf16"] = {"enabled": True}
        if parallel.zero_stage:
            derived["data_types"] = {"grad_accum_dtype": "fp32"}
    elif training.precision == "fp16":
        derived["fp16"] = {"enabled": True, "initial_scale_power": 16}
    return derived
