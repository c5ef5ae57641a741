"""A fine-tuned model as a folder: a model folder with the task and its head beside the weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.checkpoint.opened import (
    TASK_NAME,
    OpenedModel,
    describe_checkpoint,
    inspect_model,
    model_path,
    save_model,
)
from gpt_dist.config import TaskConfig
from gpt_dist.data.batches import TaskBatch
from gpt_dist.data.tasks.examples import encode_split
from gpt_dist.data.tasks.reading import dev_splits, read_labelled
from gpt_dist.data.tasks.transforms import Transformation
from gpt_dist.errors import CheckpointError, ModelError, first_problem
from gpt_dist.files.entries import Record, read_small
from gpt_dist.finetune.objective import TaskHead, head_shape, task_scores
from gpt_dist.finetune.predict import Evaluator, metric_rows
from gpt_dist.inference.assemble import Load
from gpt_dist.progress import Report, silent
from gpt_dist.train.objective import to_device

HEAD_NAME = "head.safetensors"
Content = TypeVar("Content")

_HEAD = "head.linear."
"""An objective holds the head under this name."""
_LIMIT_BYTES = 2**24


class _TaskFile(Record):
    """Content of `task.json`."""

    format: Literal["gpt_dist.task"]
    version: Literal[1]
    task: TaskConfig


@dataclass(frozen=True)
class TaskModel:
    """A fine-tuned model on the disk: checked, its weights not read yet."""

    opened: OpenedModel
    task: TaskConfig
    head: TaskHead
    """In evaluation: without dropout."""
    transformation: Transformation


def save_task_model(checkpoint: Checkpoint, output: Path, report: Report = silent) -> None:
    """Write the model folder of a fine-tuning checkpoint; ModelError where that fails."""
    try:
        task = TaskConfig.model_validate(checkpoint.manifest.config["task"])
    except ValidationError as error:
        reason = first_problem(error)
        raise CheckpointError(f"{checkpoint.path}: config.task: {reason}") from None
    head = {name: checkpoint.read_checked("weight", _HEAD + name) for name in ("weight", "bias")}
    content = _TaskFile(format="gpt_dist.task", version=1, task=task)
    text = content.model_dump_json(indent=2) + "\n"
    files = {TASK_NAME: text.encode(), HEAD_NAME: save(head)}
    save_model(describe_checkpoint(checkpoint), output, report, files)


def open_task_model(path: Path) -> TaskModel:
    """Open a fine-tuned model, its weights not hashed; ModelError where the folder holds none."""
    path = model_path(path)
    if not (path / TASK_NAME).is_file():
        raise ModelError(
            f"{path}: no fine-tuned model (it has no {TASK_NAME}); give a finished run of "
            "launch/finetune.py, or its `model` folder"
        )
    opened = inspect_model(path)
    task = _read(path / TASK_NAME, _TaskFile.model_validate_json, "task").task
    head = TaskHead(opened.config.hidden_size, *head_shape(task), dropout=0.0).eval()
    try:
        head.linear.load_state_dict(_read(path / HEAD_NAME, _head_tensors, "head"))
    except RuntimeError:
        raise ModelError(
            f"{path / HEAD_NAME}: not the head of {TASK_NAME}; copy the folder again"
        ) from None
    length = opened.config.sequence_length
    return TaskModel(opened, task, head, Transformation(task.form, opened.tokenizer, length))


def load_task_model(opened: TaskModel, load: Load, batch_size: int, report: Report) -> Evaluator:
    """Connect the processes and load the model."""
    model, _, topology = load(opened.opened)
    head = opened.head.to(topology.device)

    def evaluate(batch: TaskBatch[NDArray[Any]]) -> Tensor:
        with torch.no_grad():
            return task_scores(model, head, to_device(batch, topology.device))[0]

    return Evaluator(evaluate, opened.task, batch_size, topology.data_parallel_group, report)


def evaluate_task(
    path: Path, folder: Path, split: str | None, load: Load, batch_size: int, report: Report
) -> list[dict[str, Any]]:
    """Return a row of metrics of a fine-tuned model for a split, or for each named dev or dev_….

    Raises ModelError, ConfigError or DataError: before the processes connect, but for damaged
    weights.
    """
    opened = open_task_model(path)
    encoded = {
        name: encode_split(read_labelled(folder, opened.task, name), opened.transformation)
        for name in ([split] if split else dev_splits(opened.task))
    }
    evaluator = load_task_model(opened, load, batch_size, report)
    judged = {name: evaluator.judge(one) for name, one in encoded.items()}
    return metric_rows(judged, opened.task)


def _head_tensors(content: bytes) -> dict[str, Tensor]:
    tensors = load(content)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError("it holds numbers that are not finite")
    return tensors


def _read(path: Path, parse: Callable[[bytes], Content], what: str) -> Content:
    try:
        return parse(read_small(path, _LIMIT_BYTES))
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{path}: no readable {what} ({reason}); copy the folder again") from None
