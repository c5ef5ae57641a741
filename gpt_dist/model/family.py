"""The contract of a model family: its modules, and its translation to and from Hugging Face."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.errors import ModelError
from gpt_dist.model.layers import INIT_STD, Rotation
from gpt_dist.model.regions import Group

Values = Mapping[str, Any]
"""The content of a config.json."""

TOKEN_MODULES = ("token_embedding", "head")
"""The modules whose weight has a row for each token."""


@dataclass(frozen=True)
class Stored:
    """The tensors that stand for one parameter in a Hugging Face model."""

    names: tuple[str, ...]
    join: Callable[[Sequence[Tensor]], Tensor]
    """Makes the full parameter of the tensors; one that pads the vocabulary gets rows of zeros."""
    split: Callable[[Tensor], Sequence[Tensor]]
    """The inverse: makes the tensors of the full parameter."""


def same(name: str) -> Stored:
    """Store a parameter as it is."""
    return Stored((name,), lambda tensors: tensors[0], lambda full: [full])


def transposed(name: str) -> Stored:
    """Store a matrix input x output; a vector stays as it is."""
    return Stored(
        (name,), lambda tensors: tensors[0].t().contiguous(), lambda full: [full.t().contiguous()]
    )


def token_rows(name: str, config: ResolvedModelConfig) -> Stored:
    """Store a matrix that has a row for each token without the padding of the vocabulary."""
    rows = config.padded_vocab_size
    return Stored(
        (name,),
        lambda tensors: F.pad(tensors[0], (0, 0, 0, rows - tensors[0].size(0))),
        lambda full: [full[: config.vocab_size]],
    )


def fused_thirds(name: str, config: ResolvedModelConfig) -> Stored:
    """Store the fused projection as thirds q, k, v of one matrix input x output, or one bias."""

    def swap(rows: Tensor, outer: int, inner: int) -> Tensor:
        return rows.unflatten(0, (outer, inner, -1)).transpose(0, 1).flatten(0, 2)

    return Stored(
        (name,),
        lambda tensors: swap(tensors[0].t(), 3, config.num_heads),
        lambda full: [swap(full, config.num_heads, 3).t().contiguous()],
    )


def grouped_projections(name: str, config: ResolvedModelConfig) -> Stored:
    """Store the fused projection as three matrices output x input; `{}` in `name` is q, k or v."""
    groups = config.num_key_value_heads or config.num_heads
    sizes = [config.hidden_size // groups, config.head_size, config.head_size]  # in a group

    def join(tensors: Sequence[Tensor]) -> Tensor:
        parts = [tensor.unflatten(0, (groups, -1)) for tensor in tensors]
        return torch.cat(parts, dim=1).flatten(0, 1)

    def split(full: Tensor) -> list[Tensor]:
        parts = full.unflatten(0, (groups, -1)).split(sizes, dim=1)
        return [part.flatten(0, 1).contiguous() for part in parts]

    return Stored(tuple(name.format(part) for part in "qkv"), join, split)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture: its modules, its names in Hugging Face's library, and its config.json."""

    block: Callable[[ResolvedModelConfig, Group], nn.Module]
    """Makes a block with initial weights, which is called as `layers.Block` is."""
    final_norm: Callable[[ResolvedModelConfig], nn.Module]
    """Makes the norm behind the last block."""
    rotation: Callable[[ResolvedModelConfig, Tensor], Rotation] | None
    """Makes the rotary embedding of positions [T]; None where position embeddings are learned."""
    tied_head: bool
    """Whether the logits are computed with the token embedding."""
    architecture: str
    """The class of transformers that opens the model."""
    model_type: str
    names: Mapping[str, str]
    """Hugging Face's names of `blocks`, of the modules within a block, and of those outside."""
    fused: Callable[[str, ResolvedModelConfig], Stored]
    """Gives the form of the fused projection's weight or bias."""
    in_block: Callable[[str], Stored]
    """Gives the form of a block's other parameters."""
    keys: Mapping[str, tuple[Any, ...]]
    """For each field of the model section: the default and the keys of config.json, which agree."""
    written: Mapping[str, tuple[Any, ...]]
    """Other keys, each with the values that can be opened; the first of them is written."""
    accepted: Mapping[str, tuple[Any, ...]]
    """The same for keys that are not written."""
    derived: Callable[[ResolvedModelConfig], Values]
    """Gives the values of keys that follow from the model section, and may be left out or null."""
    head: str = "lm_head.weight"
    """The name of the head's weight, which files may hold though the head is tied."""
    other_heads: tuple[str, ...] = ("score.", "classifier.", "qa_outputs.")
    """Prefixes of the heads that transformers' classes for other work put beside the model."""
    buffers: tuple[str, ...] = ()
    """Suffixes of tensors that old files hold beside the weights: masks, positions, angles."""
    flatten: Callable[[Values], Values] = lambda values: values
    """Brings what other versions of transformers write into the form of `keys`."""
    complete: Callable[[ResolvedModelConfig], Values] = lambda _config: {}
    """Gives the fields whose default is the family's own, with the values that it computes with."""

    def stored(self, name: str, config: ResolvedModelConfig) -> Stored:
        """Return the form in which a parameter is stored, by its name here."""
        module, _, kind = name.rpartition(".")
        block = ""
        if module.startswith("blocks."):
            _, layer, module = module.split(".", 2)
            block = f"{self.names['blocks']}.{layer}."
        theirs = f"{block}{self.names[module]}.{kind}"
        if module in TOKEN_MODULES:
            return token_rows(theirs, config)
        if module == "attention.query_key_value":
            return self.fused(theirs, config)
        return self.in_block(theirs) if block else same(theirs)

    def describe(self, config: ResolvedModelConfig, end_of_text: int | None) -> dict[str, Any]:
        """Return the content of config.json; `end_of_text` both ends a text and begins one."""
        values = {**config.model_dump(), **self.complete(config)}
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            **{key: values[ours] for ours, (_, *theirs) in self.keys.items() for key in theirs},
            **{key: allowed[0] for key, allowed in self.written.items()},
            "initializer_range": INIT_STD,
            "dtype": "float32",
            # Left out, they would be those of the released models' vocabularies.
            "bos_token_id": end_of_text,
            "eos_token_id": end_of_text,
        }

    def read(self, path: Path, values: Values, family: str) -> ResolvedModelConfig:
        """Return the model that the config.json at `path` describes; ModelError names a bad key."""
        values = self.flatten(values)
        found: dict[str, Any] = {"family": family}
        for ours, (default, *theirs) in self.keys.items():
            each = [values.get(key, default) for key in theirs]
            if any(other != each[0] for other in each):
                raise ModelError(
                    f"{path}: {', '.join(theirs)} differ, but a model has one rate here; set them "
                    "equal"
                )
            found[ours] = each[0]
        config = self._validate(path, found)
        derived = {key: (None, value) for key, value in self.derived(config).items()}
        for key, allowed in {**self.written, **self.accepted, **derived}.items():
            if key in values and values[key] not in allowed:
                raise ModelError(
                    f"{path}: {key} is {json.dumps(values[key])}; only models with "
                    f"{json.dumps(allowed[-1])} can be opened"
                )
        return config

    def _validate(self, path: Path, found: Values) -> ResolvedModelConfig:
        try:
            config = ResolvedModelConfig.model_validate(found, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            key, value = self.keys[str(first["loc"][0])][1], json.dumps(first["input"])[:40]
            raise ModelError(f"{path}: {key} is {value}: {first['msg']}; copy it again") from None
        if indivisible := config.indivisible():
            key, number, divisor, parts = indivisible
            raise ModelError(
                f"{path}: {self.keys[divisor][1]} {parts} does not divide {self.keys[key][1]} "
                f"{number}; copy it again"
            )
        return config
