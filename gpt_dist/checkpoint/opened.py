"""Opens a model with its tokenizer, whatever it is stored as, and spreads it over processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.checkpoint.weights import SavedWeights, is_checkpoint
from gpt_dist.config import ModelConfig, ResolvedModelConfig
from gpt_dist.data.tokenizers.folder import FolderTokenizer, open_tokenizer, tokenizer_files
from gpt_dist.errors import ModelError
from gpt_dist.model import ModelFolder, ReleasedWeights, write_model_folder
from gpt_dist.model.released import SHAPES_NAME
from gpt_dist.progress import Report, silent

TASK_NAME = "task.json"
"""The file that makes a model folder that of a fine-tuned model."""


@dataclass(frozen=True)
class OpenedModel:
    """A model on the disk: checked, its weights not read yet."""

    config: ResolvedModelConfig
    tensors: Mapping[str, Tensor]
    """Full tensors by parameter name, each read when asked for."""
    tokenizer_folder: Path
    """Where the tokenizer's files are."""
    step: int | None = None
    """Of pre-training, where it is a checkpoint."""
    probe_loss: float | None = None
    """What the weights gave on fixed tokens when they were saved; None if made elsewhere."""
    fine_tuned: bool = False
    """Whether a task has trained it, and so its start, delimiter and extract tokens."""

    @cached_property
    def tokenizer(self) -> FolderTokenizer:
        """DataError where there is none; ModelError where the model has fewer tokens."""
        tokenizer = open_tokenizer(self.tokenizer_folder)
        if tokenizer.vocab_size > self.config.vocab_size:
            raise ModelError(
                f"{self.tokenizer_folder}: the tokenizer has {tokenizer.vocab_size} tokens, the "
                f"model {self.config.vocab_size}; copy the model's own tokenizer into the folder"
            )
        return tokenizer


def open_model(path: Path) -> OpenedModel:
    """A sharded checkpoint, a model folder, ours or Hugging Face's, or the released GPT-1 files.

    The directory of a run stands for its newest whole checkpoint, or, of a fine-tuning run that is
    finished, for the model that did best.

    Raises ModelError or CheckpointError where it is none of them, or is damaged.
    """
    path = model_path(path)
    if is_checkpoint(path):
        return _of_saved(SavedWeights.open(path))
    if (path / "config.yaml").is_file() and not (path / "config.json").is_file():
        raise ModelError(f"{path}: a run that has no checkpoint yet; wait for one, or give another")
    if (path / SHAPES_NAME).is_file():
        released = ReleasedWeights(path)
        return OpenedModel(_resolved(released.config), released, path)
    folder = ModelFolder(path)
    return OpenedModel(
        _resolved(folder.config),
        folder,
        path,
        probe_loss=folder.probe_loss,
        fine_tuned=(path / TASK_NAME).is_file(),
    )


def _resolved(config: ModelConfig) -> ResolvedModelConfig:
    return ResolvedModelConfig.model_validate(config.model_dump())


def describe_checkpoint(checkpoint: Checkpoint) -> OpenedModel:
    """The model of a checkpoint whose weights were not checked; CheckpointError if it has none."""
    return _of_saved(SavedWeights(checkpoint))


def model_path(path: Path) -> Path:
    """The model that the directory of a finished fine-tuning run stands for; else the path."""
    return path / "model" if (path / "model" / TASK_NAME).is_file() else path


def _of_saved(saved: SavedWeights) -> OpenedModel:
    return OpenedModel(
        saved.config, saved, saved.path, saved.step, saved.probe_loss, saved.fine_tuned
    )


def save_model(opened: OpenedModel, output: Path, report: Report = silent) -> None:
    """Write a model and its tokenizer as a model folder; ModelError where that fails."""
    assert opened.tokenizer, "opening it checks it"
    files = tokenizer_files(opened.tokenizer_folder)
    read = opened.tensors.__getitem__
    write_model_folder(output, opened.config, read, files, opened.probe_loss, report=report)


def check_same(opened: OpenedModel) -> None:
    """Processes that looked at a run while it was saving may have found different checkpoints.

    All processes call this; ModelError, on all of them, where they did.
    """
    found: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (opened.step, opened.probe_loss))
    if len(set(found)) > 1:
        raise ModelError(
            f"{opened.tokenizer_folder}: not the same for every process; give the path of one "
            "checkpoint, whose run keeps it, and storage that all hosts share"
        )
