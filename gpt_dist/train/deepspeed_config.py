"""Configuration of DeepSpeed, derived from that of a run."""

from typing import Any

from gpt_dist.config import ResolvedConfig


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
