"""Arithmetic of a model and peak rate of a device: the two sides of MFU."""

import math

import torch

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.model.parameters import parameter_table

PEAK_BF16_FLOPS = {
    "A100": 312e12,
    **dict.fromkeys(("H100", "H200", "H800", "GH200"), 989e12),
    "B200": 2250e12,
    "L40S": 362e12,
    "A10": 125e12,
    "V100": 125e12,
}
"""Dense bf16 (V100: fp16) matrix rates of data sheets, by a word of the device's name."""


def flops_per_token(config: ResolvedModelConfig) -> float:
    """Return the operations of forward and backward for one token of a full window.

    Six per weight of a matrix product, padded vocabulary included, and causal attention at half of
    the full square (Narayanan et al. 2021, appendix, without recomputation).
    """
    blocks = sum(
        math.prod(spec.shape)
        for name, spec in parameter_table(config).items()
        if name.startswith("blocks.") and len(spec.shape) > 1
    )
    head = config.padded_vocab_size * config.hidden_size
    attention = config.num_layers * config.hidden_size * config.sequence_length
    return 6.0 * (blocks + head + attention)


def peak_flops(device: torch.device) -> float | None:
    """Return the peak rate of a device, or None where it is not known, as for every CPU."""
    if device.type != "cuda":
        return None
    words = torch.cuda.get_device_name(device).replace("-", " ").split()
    return next((PEAK_BF16_FLOPS[word] for word in words if word in PEAK_BF16_FLOPS), None)
