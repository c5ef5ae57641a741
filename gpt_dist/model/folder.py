"""Model folders: a configuration, weights and tokenizer files, as `transformers` opens them."""

import json
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.errors import ConfigError, ModelError
from gpt_dist.files.folders import new_folder
from gpt_dist.files.shared import SharedFiles
from gpt_dist.files.tensor_file import FLOATS
from gpt_dist.model.checksums import read_checksums, refuse, write_checksums
from gpt_dist.model.families import FAMILIES, family_of
from gpt_dist.model.parameters import FullTensors, parameter_table
from gpt_dist.model.probe import agrees, probe_loss
from gpt_dist.model.tensor_files import SHARD_BYTES, read_json, weight_files, write_weights
from gpt_dist.progress import Report, silent

CONFIG_NAME = "config.json"
_CONFIG_BYTES = 2**20
# What was given may have been meant as any of them.
_GIVE = "give a model folder, a whole checkpoint, or the directory of a run that has one"
_EMBEDDING = "token_embedding.weight"


class ModelFolder(FullTensors):
    """The full tensors of a model folder under this model's names, each read when asked for."""

    def __init__(self, path: Path) -> None:
        """Check all but the weights: configuration, names and shapes.

        `files` holds those of the weights, to be verified or shared. Raises ModelError.
        """
        self.path = path
        if not path.is_dir():
            raise ModelError(f"{path}: no such folder; {_GIVE}")
        self.probe_loss, stated = read_checksums(path)
        """The loss of the weights on fixed tokens as it was written; None if made elsewhere."""
        if CONFIG_NAME not in stated and not (path / CONFIG_NAME).is_file():
            raise ModelError(f"{path}: no model: it has no {CONFIG_NAME}; {_GIVE}")
        names = weight_files(path)
        others = {name: entry for name, entry in stated.items() if name not in names}
        SharedFiles(path, others, refuse).verify()
        self.config = read_model_config(path / CONFIG_NAME)
        self._family = family_of(self.config)
        self.files = SharedFiles(path, {name: stated.get(name) for name in names}, refuse)
        self._paths = self._find_tensors(names)
        if self.config.num_layers > len(self._paths):
            raise ModelError(
                f"{path}: {len(self._paths)} weights for the {self.config.num_layers} layers "
                f"of {CONFIG_NAME}; both must be of one model"
            )
        self._table = parameter_table(self.config)
        self._stored = self._find_names()
        for name, spec in self._table.items():
            for theirs, shape in zip(self._stored[name], spec.stored_shapes, strict=True):
                file = self._paths[theirs]
                found = self.files.tensors(file.name).entries[theirs].shape
                if found != shape:
                    raise ModelError(
                        f"{file}: {theirs} has shape {list(found)}, but {CONFIG_NAME} asks for "
                        f"{list(shape)}; weights and {CONFIG_NAME} must be of one model"
                    )

    def __getitem__(self, name: str) -> Tensor:
        parts = [self._read(theirs) for theirs in self._stored[name]]
        theirs = self._family.head
        head = self._paths.get(theirs) if name == _EMBEDDING else None
        if head and theirs not in self._wanted and not self._read(theirs).equal(parts[0]):
            raise ModelError(
                f"{head}: {theirs} differs from {self._stored[name][0]}; only models whose head is "
                "tied to the embedding can be opened"
            )
        return self._table[name].stored.join(parts)

    def _read(self, theirs: str) -> Tensor:
        """Return a stored tensor in fp32; ModelError where it holds other than finite numbers."""
        path = self._paths[theirs]
        file = self.files.tensors(path.name)
        dtype = file.entries[theirs].dtype
        if dtype not in FLOATS:
            raise ModelError(f"{path}: {theirs} holds {dtype}; export it as floating point")
        tensor = file.read(theirs).cpu().to(torch.float32)
        if not tensor.isfinite().all():
            raise ModelError(
                f"{path}: {theirs} holds values that are not finite; "
                "take a model from before its training broke, or copy it again"
            )
        return tensor

    def _find_tensors(self, names: list[str]) -> dict[str, Path]:
        """Return the file that holds each tensor of the files with these names."""
        paths: dict[str, Path] = {}
        for path in (self.path / name for name in names):
            for theirs in self.files.tensors(path.name).entries:
                if theirs in paths:
                    raise ModelError(
                        f"{path}: {theirs} is in {paths[theirs]} too; copy the model folder again, "
                        "or export it again"
                    )
                paths[theirs] = path
        return paths

    def _find_names(self) -> dict[str, list[str]]:
        """Return the names under which each parameter is stored.

        They may lack the prefix of the class with a head, such as `transformer.`; and a tied
        embedding may be stored as the head alone.
        """
        stored, family = self._paths.keys(), self._family
        prefix = family.names["blocks"].split(".")[0] + "."
        dropped = "" if any(name.startswith(prefix) for name in stored) else prefix
        names = {
            name: [theirs.removeprefix(dropped) for theirs in spec.stored.names]
            for name, spec in self._table.items()
        }
        if family.tied_head and family.head in stored and not stored >= set(names[_EMBEDDING]):
            names[_EMBEDDING] = [family.head]
        wanted = {theirs for each in names.values() for theirs in each}
        if missing := sorted(wanted - stored):
            raise ModelError(
                f"{self.path}: {len(missing)} weights are missing, such as {missing[0]}; weights "
                f"and {CONFIG_NAME} must be of one model"
            )
        unknown = {
            name
            for name in stored - wanted - {family.head}
            if not name.endswith(family.buffers) and not name.startswith(family.other_heads)
        }
        if unknown:
            raise ModelError(
                f"{self._paths[min(unknown)]}: {min(unknown)} is no weight of the model that "
                f"{CONFIG_NAME} describes; weights and {CONFIG_NAME} must be of one model"
            )
        self._wanted = wanted
        return names


def write_model_folder(
    path: Path,
    config: ResolvedModelConfig,
    read: Callable[[str], Tensor],
    files: Mapping[str, bytes],
    *,
    end_of_text: int | None,
    stated_loss: float | None = None,
    shard_bytes: int = SHARD_BYTES,
    report: Report = silent,
) -> None:
    """Write a folder that `transformers` opens, holding one tensor in memory at a time.

    The folder is published atomically, and only if the written weights give the expected loss on
    fixed tokens. Raises ModelError where they do not, or `path` is no new folder.

    Args:
        read: Gives a full tensor by this model's name for it.
        files: The tokenizer's files and others, by name.
        end_of_text: The token at which generation ends; None where the model has none.
        stated_loss: The loss on fixed tokens that the source states; None to compute it.
        shard_bytes: The size above which weights are spread over several files.
    """
    table = parameter_table(config)
    shapes, sources, numbers = {}, {}, count(1)
    for name, spec in table.items():
        for part, theirs in enumerate(spec.stored.names):
            shapes[theirs] = spec.stored_shapes[part]
            sources[theirs] = name, part

    def read_stored(theirs: str) -> Tensor:
        report("writing", next(numbers), len(shapes))
        name, part = sources[theirs]
        return table[name].stored.split(read(name))[part]

    with new_folder(path, ModelError, "4 bytes a parameter") as partial:
        expected = probe_loss(read, config) if stated_loss is None else stated_loss
        for name, content in files.items():
            (partial / name).write_bytes(content)
        write_weights(partial, shapes, read_stored, shard_bytes)
        description = family_of(config).describe(config, end_of_text)
        text = json.dumps(description, indent=2, sort_keys=True)
        (partial / CONFIG_NAME).write_text(text + "\n")
        found = probe_loss(ModelFolder(partial).__getitem__, config)
        if not agrees(found, expected):
            raise ModelError(
                f"{path}: not written: its weights would give a loss of {found:.6f} on fixed "
                f"tokens, and their source states {expected:.6f}; take the source from a backup"
            )
        write_checksums(partial, expected)


def read_model_config(path: Path) -> ResolvedModelConfig:
    """Return the model that a config.json of Hugging Face describes, if some family computes it."""
    values = read_json(path, _CONFIG_BYTES)
    model_type = values.get("model_type")
    for name, family in FAMILIES.items():
        if family.model_type == model_type:
            config = family.read(path, values, name)
            try:
                family_of(config)
            except ConfigError as error:
                raise ModelError(f"{path}: {error}") from None
            return config
    kinds = ", ".join(family.model_type for family in FAMILIES.values())
    raise ModelError(f"{path}: model_type {model_type!r}; models of type {kinds} can be opened")
