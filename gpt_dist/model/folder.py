"""Model folders: a configuration, weights and tokenizer files, as `transformers` opens them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from gpt_dist.config import ModelConfig
from gpt_dist.errors import ModelError
from gpt_dist.files.folders import new_folder
from gpt_dist.files.shared import SharedFiles
from gpt_dist.model.checksums import read_checksums, refuse, write_checksums
from gpt_dist.model.probe import agrees, probe_loss
from gpt_dist.model.tensor_files import (
    SHARD_BYTES,
    WeightFiles,
    read_json,
    weight_files,
    write_weights,
)
from gpt_dist.model.transformer import GPT, INIT_STD, LAYER_NORM_EPSILON
from gpt_dist.model.weights import (
    hugging_face_names,
    hugging_face_shapes,
    load_full_tensors,
    tensor_from_hugging_face,
    tensor_to_hugging_face,
)
from gpt_dist.progress import Report, silent

CONFIG_NAME = "config.json"
_CONFIG_BYTES = 2**20
# What was given may have been meant as any of them.
_GIVE = "give a model folder, a whole checkpoint, or the directory of a run that has one"

_ARCHITECTURES = {"post": "OpenAIGPTLMHeadModel", "pre": "GPT2LMHeadModel"}
_MODEL_TYPES = {"post": "openai-gpt", "pre": "gpt2"}
_DROPOUTS = ("attn_pdrop", "embd_pdrop", "resid_pdrop")
_KEYS = {
    "num_layers": "n_layer",
    "hidden_size": "n_embd",
    "num_heads": "n_head",
    "sequence_length": "n_positions",
    "vocab_size": "vocab_size",
    "dropout": _DROPOUTS[0],
}
"""What config.json calls the fields of ModelConfig."""
# Tensors that old exports hold beside the parameters: causal masks, positions.
_BUFFERS = ("attn.bias", "attn.masked_bias", "position_ids")
_HEAD = "lm_head.weight"
# What transformers' classes for other work than language modelling put beside it.
_OTHER_HEADS = ("multiple_choice_head.", "score.", "classifier.", "qa_outputs.")


class ModelFolder(Mapping[str, Tensor]):
    """The full tensors of a model folder under this model's names, each read when asked for."""

    def __init__(self, path: Path) -> None:
        """Check all but the weights; ModelError where configuration, names or shapes are not right.

        `files` holds those of the weights, to be verified or shared.
        """
        self.path = path
        if not path.is_dir():
            raise ModelError(f"{path}: no such folder; {_GIVE}")
        self.probe_loss, stated = read_checksums(path)
        """What the weights gave on fixed tokens when they were written; None if made elsewhere."""
        if CONFIG_NAME not in stated and not (path / CONFIG_NAME).is_file():
            raise ModelError(f"{path}: no model: it has no {CONFIG_NAME}; {_GIVE}")
        names = weight_files(path)
        others = {name: entry for name, entry in stated.items() if name not in names}
        SharedFiles(path, others, refuse).verify()
        self.config = read_model_config(path / CONFIG_NAME)
        self.files = SharedFiles(path, {name: stated.get(name) for name in names}, refuse)
        self._files = WeightFiles(path, names, self.files)
        self._names = self._find_names()
        for ours, shape in hugging_face_shapes(self.config).items():
            self._files.check_shape(self._names[ours], shape)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._files.read(self._names[name])
        if name == "token_embedding.weight":
            self._check_tied(tensor)
        return tensor_from_hugging_face(name, tensor, self.config)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _find_names(self) -> dict[str, str]:
        """The stored name of each parameter: with or without the prefix `transformer.`.

        The embedding may be stored as the head alone, which is tied to it.
        """
        stored = self._files.names
        if self.config.num_layers > len(stored):
            raise ModelError(
                f"{self.path}: {len(stored)} weights for the {self.config.num_layers} layers of "
                f"{CONFIG_NAME}; both must be of one model"
            )
        prefix = "transformer." if any(name.startswith("transformer.") for name in stored) else ""
        names = {
            ours: prefix + theirs.removeprefix("transformer.")
            for ours, theirs in hugging_face_names(self.config).items()
        }
        if _HEAD in stored and names["token_embedding.weight"] not in stored:
            names["token_embedding.weight"] = _HEAD
        if missing := sorted(set(names.values()) - stored):
            raise ModelError(
                f"{self.path}: {len(missing)} weights are missing, such as {missing[0]}; weights "
                f"and {CONFIG_NAME} must be of one model"
            )
        unknown = stored - set(names.values()) - {_HEAD}
        unknown -= {x for x in unknown if x.endswith(_BUFFERS) or x.startswith(_OTHER_HEADS)}
        if unknown:
            raise ModelError(
                f"{self._files.path(min(unknown))}: {min(unknown)} is no weight of the model that "
                f"{CONFIG_NAME} describes; weights and {CONFIG_NAME} must be of one model"
            )
        return names

    def _check_tied(self, embedding: Tensor) -> None:
        """Refuse a head that is stored beside the embedding, and is another."""
        if _HEAD in self._files.names and not self._files.read(_HEAD).equal(embedding):
            raise ModelError(
                f"{self._files.path(_HEAD)}: {_HEAD} differs from "
                f"{self._names['token_embedding.weight']}; only models whose head is tied to the "
                "embedding can be opened"
            )


def load_model(tensors: Mapping[str, Tensor], config: ModelConfig, group: ProcessGroup) -> GPT:
    """A model with these full tensors, each process of the group holding its slice."""
    with torch.device("meta"):  # no initial weights are drawn, which would take seconds
        model = GPT(config, group)
    _allocate(model)
    load_full_tensors(model, tensors)
    return model


def _allocate(model: nn.Module) -> None:
    """Give the parameters of a model on the meta device memory, and keep what marks them split."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            allocated = nn.Parameter(torch.empty_like(parameter, device="cpu"))
            vars(allocated).update(vars(parameter))
            setattr(module, name, allocated)


def write_model_folder(
    path: Path,
    config: ModelConfig,
    read: Callable[[str], Tensor],
    files: Mapping[str, bytes],
    stated_loss: float | None = None,
    shard_bytes: int = SHARD_BYTES,
    report: Report = silent,
) -> None:
    """Write a folder that `transformers` opens, holding one tensor in memory at a time.

    `read` gives a full tensor by this model's name for it; `files` are the tokenizer's and others.
    The folder appears whole or not at all, and only if what was written gives `stated_loss` on
    fixed tokens, or, where none was stated, what the source gives now.

    Raises ModelError where that is not so, or where `path` exists and is not empty, or cannot be
    written to.
    """
    theirs = hugging_face_names(config)
    ours = {name: own for own, name in theirs.items()}
    shapes = {theirs[name]: shape for name, shape in hugging_face_shapes(config).items()}
    numbers = {name: number for number, name in enumerate(shapes, 1)}

    def read_theirs(name: str) -> Tensor:
        report("writing", numbers[name], len(numbers))
        return tensor_to_hugging_face(ours[name], read(ours[name]), config)

    with new_folder(path, ModelError, "4 bytes a parameter") as partial:
        expected = probe_loss(read, config) if stated_loss is None else stated_loss
        for name, content in files.items():
            (partial / name).write_bytes(content)
        write_weights(partial, shapes, read_theirs, shard_bytes)
        text = json.dumps(describe(config), indent=2, sort_keys=True)
        (partial / CONFIG_NAME).write_text(text + "\n")
        found = probe_loss(ModelFolder(partial).__getitem__, config)
        if not agrees(found, expected, "fp32"):
            raise ModelError(
                f"{path}: not written: its weights would give a loss of {found:.6f} on fixed "
                f"tokens, and their source states {expected:.6f}; take the source from a backup"
            )
        write_checksums(partial, expected)


def describe(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json."""
    post = config.norm_position == "post"
    return {
        "architectures": [_ARCHITECTURES[config.norm_position]],
        "model_type": _MODEL_TYPES[config.norm_position],
        "vocab_size": config.vocab_size,
        "n_positions": config.sequence_length,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        **dict.fromkeys(_DROPOUTS, config.dropout),
        "afn" if post else "activation_function": "gelu" if post else "gelu_new",
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
        "initializer_range": INIT_STD,
        "tie_word_embeddings": True,
        "dtype": "float32",
        # Those of GPT-2's own vocabulary are transformers' default.
        "bos_token_id": None,
        "eos_token_id": None,
    }


def read_model_config(path: Path) -> ModelConfig:
    """The model that a config.json of Hugging Face's GPT-1 or GPT-2 describes.

    Raises ModelError where it describes another model, naming the key.
    """
    values = read_json(path, _CONFIG_BYTES)
    model_type = values.get("model_type")
    position = next((key for key, kind in _MODEL_TYPES.items() if kind == model_type), None)
    if position is None:
        kinds = " and ".join(_MODEL_TYPES.values())
        raise ModelError(f"{path}: model_type {model_type!r}; models of type {kinds} can be opened")
    _check_supported(path, values)
    defaults = ModelConfig()
    found = {
        "num_layers": values.get("n_layer", defaults.num_layers),
        "hidden_size": values.get("n_embd", defaults.hidden_size),
        "num_heads": values.get("n_head", defaults.num_heads),
        "sequence_length": values.get("n_positions", 512 if position == "post" else 1024),
        "vocab_size": values.get("vocab_size", 40478 if position == "post" else 50257),
        "dropout": _read_dropout(path, values),
        "norm_position": position,
    }
    return _validate(path, found)


def _validate(path: Path, found: Mapping[str, Any]) -> ModelConfig:
    try:
        config = ModelConfig.model_validate(found, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key, value = _KEYS[str(first["loc"][0])], repr(first["input"])[:40]
        raise ModelError(f"{path}: {key} is {value}: {first['msg']}; copy it again") from None
    if config.vocab_size is None:
        raise ModelError(f"{path}: vocab_size is null; copy it again")
    if config.hidden_size % config.num_heads:
        raise ModelError(
            f"{path}: n_head {config.num_heads} does not divide n_embd {config.hidden_size}; copy "
            "it again"
        )
    return config


def _read_dropout(path: Path, values: Mapping[str, Any]) -> Any:
    first, *others = (values.get(key, 0.1) for key in _DROPOUTS)
    if any(other != first for other in others):
        raise ModelError(
            f"{path}: {', '.join(_DROPOUTS)} differ, but a model has one rate here; set them equal"
        )
    return first


def _check_supported(path: Path, values: Mapping[str, Any]) -> None:
    """Refuse what changes the arithmetic in a way that this model does not have."""
    width = values.get("n_embd", 768)
    supported: dict[str, tuple[Any, ...]] = {
        "afn": ("gelu",),
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": (LAYER_NORM_EPSILON,),
        "n_inner": (None, 4 * width if isinstance(width, int) else None),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    }
    for key, allowed in supported.items():
        if key in values and values[key] not in allowed:
            raise ModelError(
                f"{path}: {key} is {values[key]!r}; only models with {allowed[-1]!r} can be opened"
            )
