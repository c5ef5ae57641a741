"""Open a model with its tokenizer, whatever it is stored as, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor

from gpt_dist.checkpoint.folder import (
    open_newest,
    open_shared,
    open_whole,
)
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.checkpoint.weights import SavedWeights, is_checkpoint
from gpt_dist.config import ResolvedModelConfig
from gpt_dist.data.tokenizers.folder import FolderTokenizer, open_tokenizer, tokenizer_files
from gpt_dist.errors import ModelError
from gpt_dist.files.shared import SharedFiles
from gpt_dist.model import ModelFolder, ReleasedWeights, write_model_folder
from gpt_dist.model.released import SHAPES_NAME
from gpt_dist.progress import Report, silent
from gpt_dist.topology import Topology

TASK_NAME = "task.json"
"""The file that makes a model folder that of a fine-tuned model."""


@dataclass(frozen=True)
class OpenedModel:
    """A model on the disk, its weights not read yet."""

    given: Path
    """The path by which it was asked for."""
    config: ResolvedModelConfig
    tensors: Mapping[str, Tensor]
    """Full tensors by parameter name, each read when asked for."""
    files: SharedFiles
    """The files that the tensors are read from."""
    tokenizer_folder: Path
    """The folder of the tokenizer's files."""
    step: int | None = None
    """Of pre-training, where it is a checkpoint."""
    probe_loss: float | None = None
    """The loss on fixed tokens that is stated of the weights; None if none is."""
    fine_tuned: bool = False
    """Whether a task has trained it, and so its start, delimiter and extract tokens."""

    @property
    def end_of_text(self) -> int | None:
        """The token that ends a text, and begins one; None where the model does not know it."""
        token = self.tokenizer.end_of_text
        return token if token < self.config.vocab_size else None

    @cached_property
    def tokenizer(self) -> FolderTokenizer:
        """The model's tokenizer; ModelError where it has more tokens than the model."""
        tokenizer = open_tokenizer(self.tokenizer_folder)
        if tokenizer.vocab_size > self.config.vocab_size:
            raise ModelError(
                f"{self.tokenizer_folder}: the tokenizer has {tokenizer.vocab_size} tokens, the "
                f"model {self.config.vocab_size}; copy the model's own tokenizer into the folder"
            )
        return tokenizer


def open_model(path: Path) -> OpenedModel:
    """Open a sharded checkpoint, a model folder, ours or Hugging Face's, or released GPT-1 files.

    The directory of a run stands for its newest whole checkpoint, or, of a fine-tuning run that is
    finished, for the model that did best.

    Raises ModelError or CheckpointError where it is none of them, or is damaged.
    """
    opened = inspect_model(path, open_whole)
    if not isinstance(opened.tensors, SavedWeights):
        opened.files.verify()
    return opened


def inspect_model(
    path: Path, open_checkpoint: Callable[[Path], Checkpoint] = Checkpoint.open
) -> OpenedModel:
    """Open the same without hashing its weights, which `share_model` does."""
    path = model_path(path)
    if is_checkpoint(path):
        return _of_saved(path, SavedWeights.open(path, open_checkpoint))
    if (path / "config.yaml").is_file() and not (path / "config.json").is_file():
        raise ModelError(f"{path}: a run that has no checkpoint yet; wait for one, or give another")
    if (path / SHAPES_NAME).is_file():
        released = ReleasedWeights(path)
        return OpenedModel(path, released.config, released, released.files, path)
    folder = ModelFolder(path)
    return OpenedModel(
        path,
        folder.config,
        folder,
        folder.files,
        path,
        probe_loss=folder.probe_loss,
        fine_tuned=(path / TASK_NAME).is_file(),
    )


def share_model(opened: OpenedModel, topology: Topology) -> OpenedModel:
    """Have all processes hash and hold a model together that each has inspected; collective.

    The newest checkpoint of a run is looked for again: there may be a newer one by now, or it may
    prove to be damaged. Raises ModelError or CheckpointError, on all processes, for any damage.
    """
    if not isinstance(opened.tensors, SavedWeights):
        opened.files.share(topology)
        return opened
    share, path = partial(open_shared, topology=topology), opened.tensors.path
    newest = path != opened.given
    found = open_newest(path.parent, share, topology) if newest else share(path)
    return _of_saved(opened.given, SavedWeights(found))


def describe_checkpoint(checkpoint: Checkpoint) -> OpenedModel:
    """Return the model of a checkpoint as `inspect_model` does; CheckpointError if it has none."""
    return _of_saved(checkpoint.path, SavedWeights(checkpoint))


def model_path(path: Path) -> Path:
    """Return the model that the directory of a finished fine-tuning run stands for, or the path."""
    return path / "model" if (path / "model" / TASK_NAME).is_file() else path


def _of_saved(given: Path, saved: SavedWeights) -> OpenedModel:
    manifest = saved.manifest
    return OpenedModel(
        given,
        saved.config,
        saved,
        saved.files,
        saved.path,
        manifest.step,
        manifest.probe_loss,
        fine_tuned=manifest.config.get("task") is not None,
    )


def save_model(
    opened: OpenedModel, output: Path, report: Report = silent, more: Mapping[str, bytes] = {}
) -> None:
    """Write a model, its tokenizer and more files as a folder; ModelError where that fails."""
    write_model_folder(
        output,
        opened.config,
        opened.tensors.__getitem__,
        {**tokenizer_files(opened.tokenizer_folder), **more},
        end_of_text=opened.end_of_text,
        stated_loss=opened.probe_loss,
        report=report,
    )
