"""Read the released GPT-1's weights: one long vector in pieces, and a list of shapes."""

import math
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic_core import from_json
from torch import Tensor

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.errors import ModelError
from gpt_dist.files.entries import read_small
from gpt_dist.files.shared import SharedFiles
from gpt_dist.files.tensor_file import Shape
from gpt_dist.model.checksums import refuse
from gpt_dist.model.parameters import FullTensors, parameter_table

SHAPES_NAME = "params_shapes.json"
HEAD_SIZE = 64
"""Size of the heads (Radford et al. 2018, section 4.1), which the released files do not state."""

_SHAPES_BYTES = 2**20
_REMEDY = "copy the released files again"


class ReleasedWeights(FullTensors):
    """Full tensors of `params_*.npy` under this model's names."""

    def __init__(self, path: Path) -> None:
        """Check shapes and sizes; raise ModelError if the files are damaged or hold pickles."""
        self.config = _read_config(path / SHAPES_NAME)
        self._path = path
        self._pieces = _open_pieces(path)
        self.files = SharedFiles(path, dict.fromkeys(self._pieces), refuse)
        sizes = {name: math.prod(shape) for name, shape in _stored_shapes(self.config).items()}
        self._stops = dict(zip(sizes, accumulate(sizes.values()), strict=True))
        found, expected = sum(map(len, self._pieces.values())), sum(sizes.values())
        if found != expected:
            raise ModelError(
                f"{path}: params_*.npy hold {found} numbers, but {SHAPES_NAME} asks for "
                f"{expected}; {_REMEDY}"
            )

    def __getitem__(self, name: str) -> Tensor:
        spec = parameter_table(self.config)[name]
        (shape,) = spec.stored_shapes
        values = self._read(self._stops[name] - math.prod(shape), self._stops[name])
        if not values.isfinite().all():
            raise ModelError(f"{self._path}: {name} holds values that are not finite; {_REMEDY}")
        return spec.stored.join([values.view(shape)])

    def _read(self, start: int, stop: int) -> Tensor:
        parts, first = [], 0
        for file, piece in self._pieces.items():
            begin, end = (min(max(0, one - first), len(piece)) for one in (start, stop))
            size = piece.itemsize
            content = torch.empty((end - begin) * size, dtype=torch.uint8, device=self.files.device)
            self.files.read(file, piece.offset + begin * size, content)
            parts.append(content.cpu().numpy().view(piece.dtype).astype(np.float32))
            first += len(piece)
        return torch.from_numpy(np.concatenate(parts))


def _read_config(path: Path) -> ResolvedModelConfig:
    """Return the model of a list of shapes; raise ModelError if it is not a GPT-1's."""
    try:
        shapes = from_json(read_small(path, _SHAPES_BYTES))
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
    except (OSError, ValueError, TypeError, IndexError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path}: not a list of a GPT-1's shapes ({reason}); {_REMEDY}") from None
    return config


def _stored_shapes(config: ResolvedModelConfig) -> dict[str, Shape]:
    """Return the stored shape of each parameter in the order of the files: positions first."""
    tokens, positions, *rest = parameter_table(config).items()
    return {name: spec.stored_shapes[0] for name, spec in (positions, tokens, *rest)}


def _open_pieces(folder: Path) -> dict[str, np.memmap[Any, Any]]:
    """Open params_0.npy, params_1.npy, … as flat vectors that stay on the disk."""
    count = len(list(folder.glob("params_*.npy")))
    pieces = {}
    for path in (folder / f"params_{number}.npy" for number in range(count)):
        try:
            piece = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(piece, np.memmap) or piece.ndim != 1 or piece.dtype.kind != "f":
                raise ValueError("not a vector of floating-point numbers")
        except Exception as error:  # noqa: BLE001 -- numpy hands a header to Python's parser
            reason = " ".join(str(error).split())
            raise ModelError(f"{path}: cannot be read ({reason}); {_REMEDY}") from None
        pieces[path.name] = piece
    return pieces
