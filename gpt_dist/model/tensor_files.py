"""Write a model's safetensors files a tensor at a time, and open them with every claim checked."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_dist.errors import ModelError
from gpt_dist.files.shared import SharedFiles
from gpt_dist.files.tensor_file import FLOATS, Shape, write_tensor_file

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
        total = sum(_bytes(shape) for shape in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _bytes(shape: Shape) -> int:
    return 4 * math.prod(shape)


def _divide(shapes: Mapping[str, Shape], shard_bytes: int) -> list[dict[str, Shape]]:
    shards: list[dict[str, Shape]] = [{}]
    size = 0
    for name, shape in shapes.items():
        if shards[-1] and size + _bytes(shape) > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += _bytes(shape)
    return shards


class WeightFiles:
    """The tensors of a folder's safetensors files, read by name."""

    def __init__(self, folder: Path, names: list[str], files: SharedFiles) -> None:
        """Read the headers of the files `names`; ModelError where one is damaged."""
        self._files = files
        self.paths: dict[str, Path] = {}
        """The file that holds each tensor."""
        for path in (folder / name for name in names):
            for name in files.tensors(path.name).entries:
                if name in self.paths:
                    raise ModelError(f"{path}: {name} is in {self.paths[name]} too; {_REMEDY}")
                self.paths[name] = path

    def check_shape(self, name: str, shape: Shape) -> None:
        """Refuse a tensor of another shape; reads the header alone."""
        path = self.paths[name]
        found = self._files.tensors(path.name).entries[name].shape
        if found != shape:
            raise ModelError(
                f"{path}: {name} has shape {list(found)}, but config.json asks for "
                f"{list(shape)}; weights and config.json must be of one model"
            )

    def read(self, name: str) -> Tensor:
        """Return a tensor in fp32; ModelError where it holds other than finite numbers."""
        path = self.paths[name]
        file = self._files.tensors(path.name)
        dtype = file.entries[name].dtype
        if dtype not in FLOATS:
            raise ModelError(f"{path}: {name} holds {dtype}; export it as floating point")
        tensor = file.read(name).cpu().to(torch.float32)
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"{path}: {name} holds values that are not finite; "
                "take a model from before its training broke, or copy it again"
            )
        return tensor


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
        if path.stat().st_size > limit:
            raise ModelError(f"{path}: larger than {limit} bytes; {_REMEDY}")
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path}: missing; {_REMEDY}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not a readable JSON file ({error}); {_REMEDY}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path}: holds no JSON object; {_REMEDY}")
    return values
