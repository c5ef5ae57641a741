"""Read the released GPT-1's weights: one long vector in pieces, and a list of shapes."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.errors import ModelError
from gpt_dist.files.tensor_file import Shape
from gpt_dist.model.parameters import FullTensors, parameter_table

SHAPES_NAME = "params_shapes.json"
HEAD_SIZE = 64
"""Of the released model (Radford et al. 2018, section 4.1), whose files do not state it."""

_SHAPES_BYTES = 2**20
_REMEDY = "copy the released files again"


class ReleasedWeights(FullTensors):
    """Full tensors of `params_*.npy` under this model's names."""

    def __init__(self, path: Path) -> None:
        """Check shapes and sizes; raise ModelError if the files are damaged or hold pickles."""
        self.config = _read_config(path / SHAPES_NAME)
        self._path = path
        pieces = _open_pieces(path)
        sizes = {name: math.prod(shape) for name, shape in _stored_shapes(self.config).items()}
        found, expected = sum(map(len, pieces)), sum(sizes.values())
        if found != expected:
            raise ModelError(
                f"{path}: params_*.npy hold {found} numbers, but {SHAPES_NAME} asks for "
                f"{expected}; {_REMEDY}"
            )
        vector = torch.from_numpy(np.concatenate(pieces).astype(np.float32, copy=False))
        self._vectors = dict(zip(sizes, vector.split(list(sizes.values())), strict=True))

    def __getitem__(self, name: str) -> Tensor:
        vector, spec = self._vectors[name], parameter_table(self.config)[name]
        if not vector.isfinite().all():
            raise ModelError(f"{self._path}: {name} holds values that are not finite; {_REMEDY}")
        return spec.stored.join([vector.view(spec.stored_shapes[0])])


def _read_config(path: Path) -> ResolvedModelConfig:
    """Return the model of a list of shapes; raise ModelError if it is not a GPT-1's."""
    try:
        if path.stat().st_size > _SHAPES_BYTES:
            raise ValueError(f"larger than {_SHAPES_BYTES} bytes")
        shapes = json.loads(path.read_bytes())
        (positions, width), (vocabulary, _) = shapes[:2]
        config = ResolvedModelConfig(
            num_layers=len(shapes[2:]) // 12,  # the tensors of a block
            hidden_size=width,
            num_heads=width // HEAD_SIZE,
            sequence_length=positions,
            vocab_size=vocabulary,
        )
        # Matrices are stored as convolutions of width 1.
        expected = [
            [1, *shape] if name.startswith("blocks") and len(shape) == 2 else list(shape)
            for name, shape in _stored_shapes(config).items()
        ]
        if width % HEAD_SIZE or shapes != expected:
            raise ValueError("not the shapes of a GPT-1")
    except (OSError, ValueError, TypeError, IndexError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path}: not a list of a GPT-1's shapes ({reason}); {_REMEDY}") from None
    return config


def _stored_shapes(config: ResolvedModelConfig) -> dict[str, Shape]:
    """Return the stored shape of each parameter in the order of the files: positions first."""
    tokens, positions, *rest = parameter_table(config).items()
    return {name: spec.stored_shapes[0] for name, spec in (positions, tokens, *rest)}


def _open_pieces(folder: Path) -> list[NDArray[Any]]:
    """params_0.npy, params_1.npy, … as flat vectors that stay on the disk."""
    count = len(list(folder.glob("params_*.npy")))
    pieces = []
    for path in (folder / f"params_{number}.npy" for number in range(count)):
        try:
            piece = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(piece, np.ndarray) or piece.ndim != 1 or piece.dtype.kind != "f":
                raise ValueError("not a vector of floating-point numbers")
        except Exception as error:  # noqa: BLE001 -- numpy hands a header to Python's parser
            reason = " ".join(str(error).split())
            raise ModelError(f"{path}: cannot be read ({reason}); {_REMEDY}") from None
        pieces.append(piece)
    return pieces
