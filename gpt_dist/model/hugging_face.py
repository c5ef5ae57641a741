"""Translation between this package's models and Hugging Face's: parameters and `config.json`.

Each family states its own names and keys with the parts that are defined here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from gpt_dist.config import ModelConfig, ResolvedModelConfig
from gpt_dist.errors import ModelError

Values = Mapping[str, Any]
"""The content of a config.json."""


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
    return Stored((name,), lambda tensors: tensors[0], lambda tensor: [tensor])


def transposed(name: str) -> Stored:
    """Store a matrix input x output."""
    return Stored(
        (name,), lambda tensors: tensors[0].t().contiguous(), lambda full: [full.t().contiguous()]
    )


def token_rows(name: str, config: ResolvedModelConfig) -> Stored:
    """Store a matrix that has a row for each token without the padding of the vocabulary."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        rows = tensors[0]
        padding = rows.new_zeros(config.padded_vocab_size - rows.size(0), rows.size(1))
        return torch.cat([rows, padding])

    return Stored((name,), join, lambda full: [full[: config.vocab_size]])


def fused_thirds(name: str, num_heads: int) -> Stored:
    """Store the fused projection as thirds q, k, v of one matrix input x output, or one bias."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        rows = tensors[0].t().contiguous() if tensors[0].dim() == 2 else tensors[0]
        return rows.unflatten(0, (3, num_heads, -1)).transpose(0, 1).flatten(0, 2)

    def split(full: Tensor) -> list[Tensor]:
        rows = full.unflatten(0, (num_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
        return [rows.t().contiguous() if rows.dim() == 2 else rows]

    return Stored((name,), join, split)


def grouped_projections(names: tuple[str, str, str], config: ResolvedModelConfig) -> Stored:
    """Store the fused projection as three matrices output x input: queries, keys, values."""
    groups = config.num_key_value_heads or config.num_heads
    counts = (config.num_heads // groups, 1, 1)  # heads of q, k, v in a group

    def join(tensors: Sequence[Tensor]) -> Tensor:
        parts = [
            tensor.unflatten(0, (groups, count * config.head_size))
            for tensor, count in zip(tensors, counts, strict=True)
        ]
        return torch.cat(parts, dim=1).flatten(0, 1)

    def split(full: Tensor) -> list[Tensor]:
        sizes = [count * config.head_size for count in counts]
        return [
            part.flatten(0, 1).contiguous()
            for part in full.unflatten(0, (groups, sum(sizes))).split(sizes, dim=1)
        ]

    return Stored(names, join, split)


@dataclass(frozen=True)
class HuggingFaceConfig:
    """The `config.json` of a family: how it is written, read, and checked."""

    architecture: str
    """The class of transformers that opens the model."""
    model_type: str
    prefix: str
    """The prefix of parameter names that the class without a head leaves out."""
    keys: Mapping[str, tuple[str, ...]]
    """Their keys for each field of the model section; several must agree."""
    defaults: Mapping[str, Any]
    """Their default of a field where it is not the one of the model section."""
    fixed: Mapping[str, Any]
    """Keys that are always written so."""
    supported: Callable[[Values], Mapping[str, tuple[Any, ...]]]
    """Gives the values with which a model computes what this family computes, by key."""
    flatten: Callable[[Values], Values] = lambda values: values
    """Brings what other versions of transformers write into the form of `keys`."""
    complete: Callable[[ResolvedModelConfig], Values] = lambda _config: {}
    """Gives the fields whose default is the family's own, with the values that it computes with."""

    def describe(self, config: ResolvedModelConfig, end_of_text: int | None) -> dict[str, Any]:
        """Return the content of config.json.

        Args:
            config: The model.
            end_of_text: The token that ends a text, and begins one; None where it has none.
        """
        values = {**config.model_dump(), **self.complete(config)}
        fields = {
            theirs: values[ours] for ours, all_theirs in self.keys.items() for theirs in all_theirs
        }
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            **fields,
            **self.fixed,
            "dtype": "float32",
            # Left out, they would be those of the released models' vocabularies.
            "bos_token_id": end_of_text,
            "eos_token_id": end_of_text,
        }

    def read(self, path: Path, values: Values, family: str) -> ResolvedModelConfig:
        """Return the model that the content of the config.json at `path` describes.

        Raises:
            ModelError: It describes a model of other arithmetic, or contradicts itself; the message
                names the key.
        """
        values = self.flatten(values)
        for key, allowed in self.supported(values).items():
            if key in values and values[key] not in allowed:
                raise ModelError(
                    f"{path}: {key} is {values[key]!r}; only models with {allowed[-1]!r} can be "
                    "opened"
                )
        found: dict[str, Any] = {"family": family}
        defaults = {**ModelConfig().model_dump(), **self.defaults}
        for ours, theirs in self.keys.items():
            each = [values.get(key, defaults[ours]) for key in theirs]
            if any(other != each[0] for other in each):
                raise ModelError(
                    f"{path}: {', '.join(theirs)} differ, but a model has one rate here; set them "
                    "equal"
                )
            found[ours] = each[0]
        return self._validate(path, found)

    def _validate(self, path: Path, found: Values) -> ResolvedModelConfig:
        try:
            config = ResolvedModelConfig.model_validate(found, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            key, value = self.keys[str(first["loc"][0])][0], repr(first["input"])[:40]
            raise ModelError(f"{path}: {key} is {value}: {first['msg']}; copy it again") from None
        for divisor, number in (
            ("num_heads", "hidden_size"),
            ("num_key_value_heads", "num_heads"),
        ):
            of, part = getattr(config, number), getattr(config, divisor)
            if part and of % part:
                raise ModelError(
                    f"{path}: {self.keys[divisor][0]} {part} does not divide "
                    f"{self.keys[number][0]} {of}; copy it again"
                )
        return config
