"""Whole weights: loaded into a model, and given rows for new tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.model.decoder import GPT
from gpt_dist.model.families import build_model
from gpt_dist.model.family import TOKEN_MODULES
from gpt_dist.model.layers import INIT_STD
from gpt_dist.model.parameters import FullTensors, parameter_table, split_dimension


@dataclass(eq=False)
class GrownVocabulary(FullTensors):
    """The full tensors of a model, with rows drawn for tokens that are new to it."""

    tensors: Mapping[str, Tensor]
    before: ResolvedModelConfig
    config: ResolvedModelConfig
    """Of the grown model, which has more tokens at most."""
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
    with torch.device("meta"):  # no initial weights are drawn, which would take seconds
        model = build_model(config, group)
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
