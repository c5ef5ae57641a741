"""A model's safetensors files and their index: written a tensor at a time, and found."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic_core import from_json
from torch import Tensor

from gpt_dist.errors import ModelError
from gpt_dist.files.entries import read_small
from gpt_dist.files.tensor_file import Shape, write_tensor_file

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
"""Weights larger than this are spread over several files."""

INDEX_BYTES = 2**26
"""Largest index that is read; GPT-3's would take about a hundredth of it."""

_REMEDY = "copy the model folder again, or export it again"


def write_weights(
    folder: Path,
    shapes: Mapping[str, Shape],
    read: Callable[[str], Tensor],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write fp32 tensors as transformers names the files, holding one tensor in memory at a time.

    `read` gives the tensor of a name, in the shape stated for it.
    """
    shards = _divide(shapes, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        path = folder / (WEIGHTS_NAME if len(shards) == 1 else name)
        entries = {key: (torch.float32, shape) for key, shape in shard.items()}
        write_tensor_file(path, entries, lambda key: read(key).to(torch.float32))
        weight_map |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        total = {"total_size": _bytes(*shapes.values())}
        index = {"metadata": total, "weight_map": weight_map}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _bytes(*shapes: Shape) -> int:
    return 4 * sum(map(math.prod, shapes))


def _divide(shapes: Mapping[str, Shape], shard_bytes: int) -> list[dict[str, Shape]]:
    shards: list[dict[str, Shape]] = [{}]
    for name, shape in shapes.items():
        if shards[-1] and _bytes(*shards[-1].values(), shape) > shard_bytes:
            shards.append({})
        shards[-1][name] = shape
    return shards


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files that `model.safetensors` or its index stand for.

    Raises ModelError where there are none, or only pickles.
    """
    single, index = folder / WEIGHTS_NAME, folder / INDEX_NAME
    if single.is_file():
        return [single.name]
    if index.is_file():
        weight_map = read_json(index, INDEX_BYTES).get("weight_map")
        names = list(weight_map.values()) if isinstance(weight_map, dict) else []
        if names and all(map(_is_file_name, names)):
            return sorted(set(names))
        raise ModelError(f"{index}: not an index of weight files; {_REMEDY}")
    pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt")])
    if pickles:
        raise ModelError(
            f"{pickles[0]}: a pickle, which can run code and is never opened here; convert it to "
            f"{WEIGHTS_NAME}, as `save_pretrained` of transformers writes it"
        )
    raise ModelError(f"{folder}: has no {WEIGHTS_NAME} and no {INDEX_NAME}; {_REMEDY}")


def _is_file_name(name: Any) -> bool:
    """Return whether it can be a shard's name: inside the folder, and valid on every system."""
    return isinstance(name, str) and name == Path(name).name and name.isprintable()


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """Read the object in a JSON file of at most `limit` bytes; raise ModelError if that fails."""
    try:
        values = from_json(read_small(path, limit))
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
        return values
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not a readable JSON file ({error}); {_REMEDY}") from None
