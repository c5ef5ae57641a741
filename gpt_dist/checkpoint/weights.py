"""The weights of a checkpoint as a model's, each put together when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from gpt_dist.checkpoint.folder import newest_valid, open_whole, paths
from gpt_dist.checkpoint.format import MANIFEST_NAME, Checkpoint
from gpt_dist.config import ModelConfig
from gpt_dist.errors import CheckpointError

_PREFIX = "model."
"""An objective holds the model under this name."""


class SavedWeights(Mapping[str, Tensor]):
    """Full fp32 tensors of a model by name, whatever layout saved them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Raises CheckpointError where it holds no model that this version knows."""
        self.path = checkpoint.path
        self.step = checkpoint.manifest.step
        self.probe_loss = checkpoint.manifest.probe_loss
        self.fine_tuned = checkpoint.manifest.config.get("task") is not None
        self._checkpoint = checkpoint
        try:
            self.config = ModelConfig.model_validate(checkpoint.manifest.config.get("model"))
        except ValidationError as error:
            raise CheckpointError(
                f"{checkpoint.path / MANIFEST_NAME}: its model section is not understood: {error}"
            ) from None

    @classmethod
    def open(cls, path: Path) -> SavedWeights:
        """The weights of a checkpoint, or of the newest whole one of a run; all hashes checked."""
        if (path / MANIFEST_NAME).is_file():
            return cls(open_whole(path))
        newest = newest_valid(_folder(path), print)
        assert newest is not None, "is_checkpoint was not asked"
        return cls(newest)

    def __getitem__(self, name: str) -> Tensor:
        return self._checkpoint.read("weight", _PREFIX + name)

    def __iter__(self) -> Iterator[str]:
        names = self._checkpoint.manifest.parameters
        return (name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint, the directory of a run that has some, or their folder."""
    return newest_path(path) is not None


def newest_path(path: Path) -> Path | None:
    """A checkpoint itself, or a run's newest, whole or not; None where there is none."""
    if (path / MANIFEST_NAME).is_file():
        return path
    return next(iter(paths(_folder(path))), None)


def _folder(path: Path) -> Path:
    return path if path.name == "checkpoints" else path / "checkpoints"
