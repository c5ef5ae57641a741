"""The learning-rate schedule of the paper, and the configuration of DeepSpeed."""

import math
from typing import Any

from gpt_dist.config import ResolvedConfig, ResolvedScheduleConfig


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


def is_partitioned(config: ResolvedConfig, data_parallel_size: int) -> bool:
    """Return whether DeepSpeed holds the state of training; otherwise MasterAdamW does.

    ZeRO has nothing to partition among one data-parallel process, and would only cost time.
    DeepSpeed scales the loss of fp16, and does it wrongly without ZeRO.
    """
    parallel = config.parallel
    partitions = parallel.zero_stage > 0 and data_parallel_size > 1
    return partitions or parallel.offload_optimizer or config.training.precision == "fp16"


def deepspeed_config(config: ResolvedConfig, partitioned: bool) -> dict[str, Any]:
    """Return the dictionary for `deepspeed.initialize`, from a resolved configuration.

    Gradients are summed and reduced in fp32 wherever DeepSpeed can, so that accumulation and the
    number of processes do not change the result. If the state is not `partitioned`, MasterAdamW
    clips the gradients and holds the fp32 weights.
    """
    training, parallel = config.training, config.parallel
    zero: dict[str, Any] = {"stage": max(1, parallel.zero_stage) if partitioned else 0}
    if parallel.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    derived: dict[str, Any] = {
        "train_batch_size": training.global_batch_size,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_clipping": config.optimizer.clip_norm if partitioned else 0.0,
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        # The optimizer is torch's fused AdamW, on the host too: it needs no compiled extension.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
    if not partitioned:
        return derived
    if training.precision == "bf16":
        derived["bf16"] = {"enabled": True}
        derived["data_types"] = {"grad_accum_dtype": "fp32"}
    elif training.precision == "fp16":
        derived["fp16"] = {"enabled": True, "initial_scale_power": 16}
    return derived
