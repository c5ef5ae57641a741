"""The loss of stored weights on a few fixed tokens, by which they prove to be what they were."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.model.decoder import GPT
from gpt_dist.model.layers import without_memory
from gpt_dist.model.regions import SingleProcess

_SEQUENCES = 4
_LENGTH = 16
_MULTIPLIER = 2654435761  # Knuth's, of multiplicative hashing
_TOLERANCE = 1e-4


def probe_tokens(config: ResolvedModelConfig) -> tuple[Tensor, Tensor]:
    """Return token ids and their labels, both [B, T], the same for every model of a vocabulary."""
    length = min(_LENGTH, config.sequence_length)
    numbers = torch.arange(1, _SEQUENCES * (length + 1) + 1)
    ids = (numbers * _MULTIPLIER % 2**32 % config.vocab_size).view(_SEQUENCES, length + 1)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def probe_loss(read: Callable[[str], Tensor], config: ResolvedModelConfig) -> float:
    """Return the mean loss in nats of `probe_tokens`, computed in fp32 without a process group.

    `read` gives a full tensor by name; the model holds the parameters of one layer at a time.
    """
    inputs, labels = probe_tokens(config)
    with without_memory():
        model = GPT(config, SingleProcess()).eval()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)) or module is model.head:
            _read_when_called(module, read, names)
    with torch.no_grad():
        logits = model.logits(model(inputs))  # [B, T, V]
        return float(F.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def agrees(loss: float, other: float) -> bool:
    """Return whether two losses of the same weights are equal but for rounding."""
    return abs(loss - other) <= _TOLERANCE * abs(other)


def _read_when_called(
    module: nn.Module, read: Callable[[str], Tensor], names: dict[int, str]
) -> None:
    """Have a module read its parameters, and those it is called with, just for the call."""
    empty = dict(module.named_parameters(recurse=False))

    def fill(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        for name, parameter in empty.items():
            setattr(module, name, nn.Parameter(read(names[id(parameter)])))
        return tuple(read(names[id(each)]) if id(each) in names else each for each in arguments)

    def release(*_call: object) -> None:
        for name, parameter in empty.items():
            setattr(module, name, parameter)

    module.register_forward_pre_hook(fill)
    module.register_forward_hook(release)
