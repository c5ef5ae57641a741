"""Refuse a task that contradicts itself, before its data are read."""

import re
from pathlib import Path

from gpt_dist.config import TaskConfig
from gpt_dist.data.tasks.reading import TEXT_ROLES, columns_of, split_of, submission_name
from gpt_dist.errors import ConfigError, DataError


def check_task(folder: Path, task: TaskConfig) -> None:
    """Raise ConfigError, with the key, for a task that contradicts itself.

    DataError is raised for a missing file, other than a `test` file. No file is read.
    """
    _check_splits(task)
    _check_submissions(task)
    _check_labels(task)
    for name in task.splits:
        _check_columns(task, name)
    kind, is_there = ("folder", Path.is_dir) if task.format == "race" else ("file", Path.is_file)
    for name in task.splits:
        path = folder / split_of(task, name).path
        if not is_there(path) and not name.startswith("test"):
            raise DataError(
                f"{path}: no such {kind} (task.splits.{name}); put it there, or correct data.path"
            )


def _check_splits(task: TaskConfig) -> None:
    for name in task.splits:
        if not re.fullmatch(r"train|(dev|test)(_[\w.-]+)?", name):
            raise ConfigError(
                f"task.splits.{name}: not train, dev, dev_…, test or test_… (letters, digits, _, - "
                "and .); rename it"
            )
    if "train" not in task.splits:
        raise ConfigError(f"task.splits: no train; it has {', '.join(task.splits) or 'nothing'}")
    named = [name for name in task.splits if name.startswith("dev")]
    if named and task.dev_fraction:
        raise ConfigError(f"task.dev_fraction: task.splits names {named[0]} too; leave out one")
    if not named and not task.dev_fraction:
        raise ConfigError("task.splits: no dev or dev_…; name one, or set task.dev_fraction")


def _check_submissions(task: TaskConfig) -> None:
    owners: dict[str, str] = {}
    for name in task.splits:
        if not name.startswith("test") and not split_of(task, name).submission:
            continue  # no file is written
        key, file = f"task.splits.{name}.submission", submission_name(task, name)
        if Path(file).name != file or not file.endswith(".tsv") or not file.isprintable():
            raise ConfigError(f"{key}: {file!r} is not a plain .tsv name; give one like {name}.tsv")
        if file in owners:
            raise ConfigError(f"{key}: {file!r} is {owners[file]}'s too; give each its own")
        owners[file] = name


def _check_columns(task: TaskConfig, name: str) -> None:
    split = split_of(task, name)
    key = "task.columns" if split.columns is None else f"task.splits.{name}.columns"
    if task.format == "race" and (task.columns or split.columns or task.form != "multiple_choice"):
        raise ConfigError("task.format: race is multiple_choice, and has its own columns")
    columns = columns_of(task, split)
    roles = (*TEXT_ROLES[task.form], "label", "id")
    for role in columns:
        if role not in roles:
            raise ConfigError(f"{key}.{role}: {task.form} has {', '.join(roles)}")
    for role in roles:
        labelled = role == "label" and not name.startswith("test")
        if role not in columns and (labelled or role not in ("question", "label", "id")):
            raise ConfigError(f"{key}: no {role}, which {task.form} needs in {name}")
    for role, named in columns.items():
        if not named or (len(named) > 1 and role in ("label", "id")):
            raise ConfigError(f"{key}.{role}: {named!r} is not one column")
        if task.format == "jsonl" and not all(isinstance(column, str) for column in named):
            raise ConfigError(f"{key}.{role}: {named!r}, but a line of JSON has names only")


def _check_labels(task: TaskConfig) -> None:
    labels = task.labels
    if labels is not None and (len(labels) < 2 or len(set(labels)) < len(labels)):
        raise ConfigError(f"task.labels: {labels!r} are not two different labels or more")
    if both := set(labels or ()) & set(task.ignored_labels):
        raise ConfigError(f"task.ignored_labels: {', '.join(both)} is one of task.labels too")
    is_score = labels is None and task.form != "multiple_choice"
    if is_score != (task.metric in ("pearson", "spearman")):
        kind = "scores, as task.labels is left out" if is_score else "classes or choices"
        raise ConfigError(f"task.metric: {task.metric} does not judge {kind}")
    if task.metric == "f1" and len(labels or ()) != 2:
        raise ConfigError("task.metric: f1 needs two task.labels, of which the second is positive")
    if task.metric in ("f1", "matthews") and task.form == "multiple_choice":
        raise ConfigError(f"task.metric: {task.metric} does not judge multiple_choice")
    if task.score_range and not (is_score and task.score_range[0] < task.score_range[1]):
        raise ConfigError(f"task.score_range: {task.score_range} is not a range of scores; fix it")
