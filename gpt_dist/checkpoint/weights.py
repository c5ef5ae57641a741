"""The weights in a checkpoint as full tensors of a model, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from gpt_dist.checkpoint.folder import open_newest, open_whole, paths
from gpt_dist.checkpoint.format import MANIFEST_NAME, Checkpoint
from gpt_dist.config import ResolvedModelConfig
from gpt_dist.errors import CheckpointError, first_problem
from gpt_dist.model import parameter_table

_REMEDY = "take another checkpoint, or a backup"

_PREFIX = "model."
"""An objective holds the model under this name."""


class SavedWeights(Mapping[str, Tensor]):
    """Full fp32 tensors of a model by name, whatever layout saved them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Check its configuration and shapes; CheckpointError where it holds no known model."""
        self.path = checkpoint.path
        self.manifest = checkpoint.manifest
        self.files = checkpoint.files
        self._checkpoint = checkpoint
        self.config = _model_config(checkpoint)
        _check_shapes(checkpoint, self.config)

    @classmethod
    def open(cls, path: Path, opened: Callable[[Path], Checkpoint] = open_whole) -> SavedWeights:
        """Open the weights of a checkpoint, or of the newest of a run that `opened` opens."""
        if (path / MANIFEST_NAME).is_file():
            return cls(opened(path))
        return cls(open_newest(_folder(path), opened))

    def __getitem__(self, name: str) -> Tensor:
        return self._checkpoint.read_checked("weight", _PREFIX + name)

    def __iter__(self) -> Iterator[str]:
        names = self._checkpoint.manifest.parameters
        return (name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is a checkpoint, a run that has some, or their folder."""
    return newest_path(path) is not None


def newest_path(path: Path) -> Path | None:
    """Return a checkpoint itself, or a run's newest, whole or not; None before its first."""
    if (path / MANIFEST_NAME).is_file():
        return path
    return next(iter(paths(_folder(path))), None)


def _model_config(checkpoint: Checkpoint) -> ResolvedModelConfig:
    path = checkpoint.path / MANIFEST_NAME
    try:
        config = ResolvedModelConfig.model_validate(checkpoint.manifest.config.get("model"))
    except ValidationError as error:
        raise CheckpointError(f"{path}: config.model: {first_problem(error)}; {_REMEDY}") from None
    key_value_heads = config.num_key_value_heads or config.num_heads
    if config.hidden_size % config.num_heads or config.num_heads % key_value_heads:
        raise CheckpointError(f"{path}: config.model: sizes that no model has; {_REMEDY}")
    return config


def _check_shapes(checkpoint: Checkpoint, config: ResolvedModelConfig) -> None:
    found = {name: entry.shape for name, entry in checkpoint.manifest.parameters.items()}
    expected = {_PREFIX + name: spec.shape for name, spec in parameter_table(config).items()}
    for name in sorted(expected.keys() | {name for name in found if name.startswith(_PREFIX)}):
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"{checkpoint.path / MANIFEST_NAME}: {name} has shape {found.get(name)}, its "
                f"configuration asks for {expected.get(name)}; {_REMEDY}"
            )


def _folder(path: Path) -> Path:
    return path if path.name == "checkpoints" else path / "checkpoints"
