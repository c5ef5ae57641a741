"""Open a model with its tokenizer, whatever it is stored as, in one process or in several."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from gpt_dist.checkpoint.folder import open_newest, open_shared, open_whole, paths
from gpt_dist.checkpoint.format import MANIFEST_NAME, Checkpoint
from gpt_dist.config import ResolvedModelConfig
from gpt_dist.data.tokenizers.folder import FolderTokenizer, open_tokenizer, tokenizer_files
from gpt_dist.errors import CheckpointError, ModelError, first_problem
from gpt_dist.files.shared import SharedFiles
from gpt_dist.model import ModelFolder, ReleasedWeights, parameter_table, write_model_folder
from gpt_dist.model.parameters import FullTensors
from gpt_dist.model.released import SHAPES_NAME
from gpt_dist.progress import Report, silent
from gpt_dist.topology import Topology

TASK_NAME = "task.json"
"""The file that makes a model folder that of a fine-tuned model."""

_PREFIX = "model."
"""An objective holds the model under this name."""
_REMEDY = "take another checkpoint, or a backup"


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
    """The number of training steps behind it; None where it is not a checkpoint."""
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


class SavedWeights(FullTensors):
    """The weights in a checkpoint, whatever layout saved them."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Check its configuration and shapes; CheckpointError where it holds no known model."""
        self.checkpoint, path = checkpoint, checkpoint.path / MANIFEST_NAME
        try:
            config = ResolvedModelConfig.model_validate(checkpoint.manifest.config.get("model"))
        except ValidationError as error:
            problem = first_problem(error)
            raise CheckpointError(f"{path}: config.model: {problem}; {_REMEDY}") from None
        if config.indivisible():
            raise CheckpointError(f"{path}: config.model: sizes that no model has; {_REMEDY}")
        self.config = config
        shapes = {_PREFIX + name: one.shape for name, one in parameter_table(self.config).items()}
        checkpoint.check_shapes(shapes, "its configuration asks for", _REMEDY, _PREFIX)

    def __getitem__(self, name: str) -> Tensor:
        return self.checkpoint.read_checked("weight", _PREFIX + name)


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
    path: Path, open_checkpoint: Callable[[Path], Checkpoint] = Checkpoint
) -> OpenedModel:
    """Open the same without hashing its weights, which `share_model` does."""
    path = model_path(path)
    if newest := newest_path(path):
        single = newest == path
        found = open_checkpoint(path) if single else open_newest(_folder(path), open_checkpoint)
        return describe_checkpoint(found, path)
    if (path / "config.yaml").is_file() and not (path / "config.json").is_file():
        raise ModelError(f"{path}: a run that has no checkpoint yet; wait for one, or give another")
    if (path / SHAPES_NAME).is_file():
        released = ReleasedWeights(path)
        return OpenedModel(path, released.config, released, released.files, path)
    model, tuned = ModelFolder(path), (path / TASK_NAME).is_file()
    return OpenedModel(
        path, model.config, model, model.files, path, probe_loss=model.probe_loss, fine_tuned=tuned
    )


def share_model(opened: OpenedModel, topology: Topology) -> OpenedModel:
    """Have all processes hash and hold a model together that each has inspected; collective.

    The newest checkpoint of a run is looked for again: there may be a newer one by now, or it may
    prove to be damaged. Raises ModelError or CheckpointError, on all processes, for any damage.
    """
    if not isinstance(opened.tensors, SavedWeights):
        opened.files.share(topology)
        return opened
    share, path = partial(open_shared, topology=topology), opened.tensors.checkpoint.path
    newest = path != opened.given
    found = open_newest(path.parent, share, topology) if newest else share(path)
    return describe_checkpoint(found, opened.given)


def describe_checkpoint(checkpoint: Checkpoint, given: Path | None = None) -> OpenedModel:
    """Return the model of a checkpoint as `inspect_model` does; CheckpointError if it has none."""
    saved, manifest = SavedWeights(checkpoint), checkpoint.manifest
    return OpenedModel(
        given or checkpoint.path,
        saved.config,
        saved,
        checkpoint.files,
        checkpoint.path,
        manifest.step,
        manifest.probe_loss,
        fine_tuned=manifest.config.get("task") is not None,
    )


def model_path(path: Path) -> Path:
    """Return the model that the directory of a finished fine-tuning run stands for, or the path."""
    return path / "model" if (path / "model" / TASK_NAME).is_file() else path


def newest_path(path: Path) -> Path | None:
    """Return a checkpoint itself, or a run's newest, whole or not; None before its first."""
    if (path / MANIFEST_NAME).is_file():
        return path
    return next(iter(paths(_folder(path))), None)


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


def _folder(run: Path) -> Path:
    """Return the folder of a run's checkpoints, which may stand for the run."""
    return run if run.name == "checkpoints" else run / "checkpoints"
