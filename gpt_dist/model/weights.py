"""Whole weights in Hugging Face's layout of GPT-1 and GPT-2, and in this model's own.

Both follow the released GPT-1: matrices stored input x output, and q, k, v as thirds of one matrix.
Here matrices are stored output x input, and q, k, v head by head.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gpt_dist.config import ModelConfig
from gpt_dist.model.transformer import GPT

_BLOCK_NAMES = {
    "attention.query_key_value": "attn.c_attn",
    "attention.projection": "attn.c_proj",
    "attention_norm": "ln_1",
    "feed_forward.expansion": "mlp.c_fc",
    "feed_forward.projection": "mlp.c_proj",
    "feed_forward_norm": "ln_2",
}


def hugging_face_names(config: ModelConfig) -> dict[str, str]:
    """Each parameter of this model by its name in `OpenAIGPTLMHeadModel` or `GPT2LMHeadModel`."""
    post = config.norm_position == "post"
    names = {
        "token_embedding.weight": "transformer.tokens_embed.weight"
        if post
        else "transformer.wte.weight",
        "position_embedding.weight": "transformer.positions_embed.weight"
        if post
        else "transformer.wpe.weight",
    }
    for layer in range(config.num_layers):
        for ours, theirs in _BLOCK_NAMES.items():
            for kind in ("weight", "bias"):
                names[f"blocks.{layer}.{ours}.{kind}"] = f"transformer.h.{layer}.{theirs}.{kind}"
    if not post:
        for kind in ("weight", "bias"):
            names[f"final_norm.{kind}"] = f"transformer.ln_f.{kind}"
    return names


def from_hugging_face(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Full tensors of this model, the vocabulary padded with zeros, from a Hugging Face state."""
    own = {}
    for ours, theirs in hugging_face_names(config).items():
        tensor = _transpose_matrix(ours, state[theirs])
        if "query_key_value" in ours:
            tensor = _thirds_to_heads(tensor, config.num_heads)
        if ours == "token_embedding.weight":
            padding = config.padded_vocab_size - tensor.size(0)
            tensor = torch.cat([tensor, tensor.new_zeros(padding, tensor.size(1))])
        own[ours] = tensor
    return own


def load_full_tensors(model: GPT, tensors: Mapping[str, Tensor]) -> None:
    """Copy full tensors into a model, each process taking its tensor-parallel slice.

    Every parameter must be there, in its full shape.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            full = tensors[name]
            if getattr(parameter, "tensor_model_parallel", False):
                dimension: int = getattr(parameter, "partition_dim")  # noqa: B009 -- megatron-core's
                full = full.chunk(model.group.size(), dim=dimension)[model.group.rank()]
            assert parameter.shape == full.shape, f"{name}: {full.shape} for {parameter.shape}"
            parameter.copy_(full)


def _transpose_matrix(name: str, tensor: Tensor) -> Tensor:
    return tensor.t().contiguous() if "blocks" in name and tensor.dim() == 2 else tensor


def _thirds_to_heads(tensor: Tensor, num_heads: int) -> Tensor:
    """Rows [3, H, S] (all q, all k, all v) in the order [H, 3, S] (head by head)."""
    return tensor.unflatten(0, (3, num_heads, -1)).transpose(0, 1).flatten(0, 2).contiguous()
