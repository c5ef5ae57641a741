"""The table of a model's parameters, read off the model itself, and what follows from it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.files.tensor_file import Shape
from gpt_dist.model.families import build_model, family_of
from gpt_dist.model.family import Stored
from gpt_dist.model.group import SingleProcess


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of a model, as the module that holds it declares it."""

    shape: Shape
    """Of the full tensor, with the padding of the vocabulary."""
    split_dimension: int | None
    """The dimension that tensor parallelism splits; None where every process holds all."""
    stored: Stored
    """Its form in a Hugging Face model."""

    @property
    def stored_shapes(self) -> list[Shape]:
        """Return the shapes of the tensors that stand for it in a Hugging Face model."""
        full = torch.empty(self.shape, device="meta")
        return [tuple(tensor.shape) for tensor in self.stored.split(full)]


@lru_cache(maxsize=8)
def parameter_table(config: ResolvedModelConfig) -> dict[str, ParameterSpec]:
    """Return every parameter of a model by name, in the order of the model.

    The model is built without memory for its weights, in milliseconds a block.
    """
    stored = family_of(config).stored
    with torch.device("meta"):
        model = build_model(config, SingleProcess())
    return {
        name: ParameterSpec(
            tuple(parameter.shape), split_dimension(parameter), stored(name, config)
        )
        for name, parameter in model.named_parameters()
    }


def split_dimension(parameter: torch.nn.Parameter) -> int | None:
    """Return the dimension in which megatron-core has split a parameter, or None."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return None
    return int(parameter.partition_dim)  # type: ignore[attr-defined]


def num_parameters(config: ResolvedModelConfig) -> int:
    """Return the number of weights of a model, without the padding of its vocabulary."""
    return sum(
        math.prod(shape)
        for spec in parameter_table(config).values()
        for shape in spec.stored_shapes
    )


class FullTensors(Mapping[str, Tensor]):
    """The full tensors of a model by parameter name, each read when it is asked for."""

    config: ResolvedModelConfig

    def __iter__(self) -> Iterator[str]:
        return iter(parameter_table(self.config))

    def __len__(self) -> int:
        return len(parameter_table(self.config))
