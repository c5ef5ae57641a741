"""Whole weights in Hugging Face's layout of GPT-1 and GPT-2, and in this model's own.

Both follow the released GPT-1: matrices stored input x output, and q, k, v as thirds of one matrix.
Here matrices are stored output x input, and q, k, v head by head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gpt_dist.config import ModelConfig
from gpt_dist.model.transformer import GPT, INIT_STD

Shape = tuple[int, ...]

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


def hugging_face_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The shape of each parameter in Hugging Face's layout, under this model's names."""
    assert config.vocab_size is not None
    width = config.hidden_size
    outputs = {
        "attention.query_key_value": (width, 3 * width),
        "attention.projection": (width, width),
        "feed_forward.expansion": (width, 4 * width),
        "feed_forward.projection": (4 * width, width),
    }
    shapes: dict[str, Shape] = {}
    for name in hugging_face_names(config):
        layer, _, kind = name.rpartition(".")
        matrix = outputs.get(layer.split(".", 2)[-1], (width, width))
        shapes[name] = matrix if "norm" not in layer and kind == "weight" else matrix[1:]
    shapes["token_embedding.weight"] = (config.vocab_size, width)
    shapes["position_embedding.weight"] = (config.sequence_length, width)
    return shapes


def full_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The shape of each full tensor of this model, its vocabulary padded."""
    shapes = {
        name: shape[::-1] if name.startswith("blocks") else shape
        for name, shape in hugging_face_shapes(config).items()
    }
    shapes["token_embedding.weight"] = (config.padded_vocab_size, config.hidden_size)
    return shapes


def num_parameters(config: ModelConfig) -> int:
    """Of a whole model, without the padding of its vocabulary."""
    return sum(math.prod(shape) for shape in hugging_face_shapes(config).values())


def released_order(config: ModelConfig) -> list[str]:
    """This model's names in the order of the released `params_shapes.json`: positions first."""
    tokens, positions, *rest = hugging_face_names(config)
    return [positions, tokens, *rest]


def from_hugging_face(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Full tensors of this model, the vocabulary padded with zeros, from a Hugging Face state."""
    return {
        ours: tensor_from_hugging_face(ours, state[theirs], config)
        for ours, theirs in hugging_face_names(config).items()
    }


def to_hugging_face(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The inverse of `from_hugging_face`; the padding of the vocabulary is dropped."""
    return {
        theirs: tensor_to_hugging_face(ours, tensors[ours], config)
        for ours, theirs in hugging_face_names(config).items()
    }


def tensor_from_hugging_face(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """One full tensor, by this model's name for it."""
    tensor = _transpose_matrix(name, tensor)
    if "query_key_value" in name:
        return tensor.unflatten(0, (3, config.num_heads, -1)).transpose(0, 1).flatten(0, 2)
    if name == "token_embedding.weight":
        padding = config.padded_vocab_size - tensor.size(0)
        return torch.cat([tensor, tensor.new_zeros(padding, tensor.size(1))])
    return tensor


def tensor_to_hugging_face(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """The inverse of `tensor_from_hugging_face`."""
    if "query_key_value" in name:
        tensor = tensor.unflatten(0, (config.num_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    if name == "token_embedding.weight":
        return tensor[: config.vocab_size]
    return _transpose_matrix(name, tensor)


class GrownVocabulary(Mapping[str, Tensor]):
    """The full tensors of a model, with embeddings drawn for tokens that are new to it."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        before: ModelConfig,
        after: ModelConfig,
        unused: Sequence[int],
        seed: int,
    ) -> None:
        """`before` and `after` differ in vocab_size at most; the ids `unused` are new as well."""
        self._tensors = tensors
        self._unused = list(unused)
        self._before = before
        self._after = after
        self._seed = seed

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if name != "token_embedding.weight":
            return tensor
        rows = torch.empty(self._after.padded_vocab_size, tensor.size(1))
        rows.normal_(std=INIT_STD, generator=torch.Generator().manual_seed(self._seed))
        drawn = rows[self._unused]
        rows[: self._before.vocab_size] = tensor[: self._before.vocab_size]
        rows[self._unused] = drawn
        return rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def load_full_tensors(model: GPT, tensors: Mapping[str, Tensor], layers: int | None = None) -> None:
    """Copy full tensors into a model, each process taking its tensor-parallel slice.

    With `layers`, only so many blocks from the first are copied, and what is in no block. Every
    other parameter must be there, in its full shape.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if layers is not None and _block_number(name) >= layers:
                continue
            full = tensors[name]
            if getattr(parameter, "tensor_model_parallel", False):
                dimension: int = getattr(parameter, "partition_dim")  # noqa: B009 -- megatron-core's
                full = full.chunk(model.group.size(), dim=dimension)[model.group.rank()]
            assert parameter.shape == full.shape, f"{name}: {full.shape} for {parameter.shape}"
            parameter.copy_(full)


def _block_number(name: str) -> int:
    """The number of the block that a parameter is of, -1 for none."""
    return int(name.split(".")[1]) if name.startswith("blocks.") else -1


def _transpose_matrix(name: str, tensor: Tensor) -> Tensor:
    return tensor.t().contiguous() if "blocks" in name and tensor.dim() == 2 else tensor
