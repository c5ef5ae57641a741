"""A model's parameters: their table, read off the model itself, and their full tensors."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.files.tensor_file import Shape
from gpt_dist.model.decoder import GPT
from gpt_dist.model.families import family_of
from gpt_dist.model.family import TOKEN_MODULES, Stored
from gpt_dist.model.layers import INIT_STD, without_memory
from gpt_dist.model.regions import SingleProcess


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of a model, as the module that holds it declares it."""

    shape: Shape
    """The shape of the full tensor, with the padding of the vocabulary."""
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
    with without_memory():
        model = GPT(config, SingleProcess())
    return {
        name: ParameterSpec(tuple(parameter.shape), stored(name, config))
        for name, parameter in model.named_parameters()
    }


def split_dimension(parameter: nn.Parameter) -> int | None:
    """Return the dimension in which megatron-core has split a parameter, or None."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return None
    return int(parameter.partition_dim)  # type: ignore[attr-defined]


def num_parameters(config: ResolvedModelConfig) -> int:
    """Return the number of weights of a model, without the padding of its vocabulary."""
    specs = parameter_table(config).values()
    return sum(math.prod(shape) for spec in specs for shape in spec.stored_shapes)


class FullTensors(Mapping[str, Tensor]):
    """The full tensors of a model by parameter name, each read when it is asked for."""

    config: ResolvedModelConfig

    def __iter__(self) -> Iterator[str]:
        return iter(parameter_table(self.config))

    def __len__(self) -> int:
        return len(parameter_table(self.config))


@dataclass(eq=False)
class GrownVocabulary(FullTensors):
    """The full tensors of a model, with rows drawn for tokens that are new to it."""

    tensors: Mapping[str, Tensor]
    before: ResolvedModelConfig
    config: ResolvedModelConfig
    """The configuration of the grown model, which has more tokens at most."""
    unused: Sequence[int]
    """Ids of the model before that get new rows as well."""
    seed: int

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        if name.removesuffix(".weight") not in TOKEN_MODULES:
            return tensor
        rows = torch.empty(parameter_table(self.config)[name].shape)
        rows.normal_(std=INIT_STD, generator=torch.Generator().manual_seed(self.seed))
        known, unused = self.before.vocab_size, list(self.unused)
        drawn = rows[unused]
        rows[:known] = tensor[:known]
        rows[unused] = drawn
        return rows


def load_model(
    tensors: Mapping[str, Tensor], config: ResolvedModelConfig, group: ProcessGroup
) -> GPT:
    """Return a model with these full tensors, each process of the group holding its slice."""
    with without_memory():
        model = GPT(config, group)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            allocated = nn.Parameter(torch.empty_like(parameter, device="cpu"))
            vars(allocated).update(vars(parameter))
            setattr(module, name, allocated)
    load_full_tensors(model, tensors)
    return model


def load_full_tensors(model: GPT, tensors: Mapping[str, Tensor], layers: int | None = None) -> None:
    """Copy full tensors into a model, each process taking its tensor-parallel slice.

    With `layers`, only so many blocks are copied, from the first, and all that is in no block.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            place = name.split(".")[1]  # a block's number, where the parameter is in a block
            if layers is not None and place.isdigit() and int(place) >= layers:
                continue
            full, dimension = tensors[name], split_dimension(parameter)
            if dimension is not None:
                full = full.chunk(model.group.size(), dim=dimension)[model.group.rank()]
            assert parameter.shape == full.shape, f"{name}: {full.shape} for {parameter.shape}"
            parameter.copy_(full)
