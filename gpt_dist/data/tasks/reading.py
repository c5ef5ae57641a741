"""Read the examples of a fine-tuning task, and write predictions in GLUE's format."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_dist.config import Column, SplitConfig, TaskConfig
from gpt_dist.data.tasks.files import FileRow, read_rows
from gpt_dist.errors import ConfigError, DataError
from gpt_dist.files.folders import write_result

TRAIN = "train"
DEV = "dev"
"""Name of the dev split, or of all dev splits together if a task has several."""

TEXT_ROLES = {
    "classification": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("a", "b"),
    "multiple_choice": ("context", "question", "choices"),
}
"""Names of the texts in each form of task."""

Columns = dict[str, list[Column]]


@dataclass(frozen=True, slots=True)
class Example:
    """Example of a task; white space in its texts is stripped and collapsed."""

    texts: tuple[str, ...]
    """(text,); (premise, hypothesis); (a, b); or (context,) or (context, question)."""
    choices: tuple[str, ...]
    """Choices of multiple choice, else empty."""
    label: int | float | None
    """Number of the class or right choice, or a score; None in a split without labels."""
    id: str
    """Content of the task's `id` column, or the number of the row, from 0."""
    where: str = ""
    """File and line, as errors name them."""


class _MalformedRowError(DataError):
    """A row has more or fewer fields than its file's first, or an empty text."""


def read_split(folder: Path, task: TaskConfig, name: str) -> list[Example]:
    """Read the examples of one split, in the order of its file.

    Rows without a gold label (task.ignored_labels) are left out, and so are up to
    task.malformed_rows malformed rows of a labelled file. A split without labels keeps every row,
    even with an empty text, since each needs a prediction. With task.dev_fraction, `dev` is taken
    from the file of `train` by a hash of the first text. The order of the rows does not matter, and
    examples on the same passage stay together.

    Raises ConfigError where the task does not have the split or task.dev_fraction leaves it empty;
    DataError, with file and line, for bad input.
    """
    fraction = task.dev_fraction if name in (TRAIN, DEV) else 0
    split = split_of(task, TRAIN if fraction else name)
    path = folder / split.path
    examples = list(_examples(path, task, split))
    if not examples:
        raise DataError(f"{path}: no examples in it; give a file that has some")
    if fraction:
        examples = [ex for ex in examples if _is_held_out(ex, fraction) == (name == DEV)]
    if not examples:
        raise ConfigError(
            f"task.dev_fraction: {fraction} of {path} leaves no example for {name}; give another, "
            "or a file with more"
        )
    return examples


def read_labelled(folder: Path, task: TaskConfig, name: str) -> list[Example]:
    """Read a split as `read_split` does; ConfigError where it has no labels."""
    examples = read_split(folder, task, name)
    if examples[0].label is None:
        raise ConfigError(f"--split: {name} of {task.name} has no labels; give another")
    return examples


def dev_splits(task: TaskConfig) -> list[str]:
    """Return the splits that judge a model; one that is taken from `train` is `dev`."""
    return [name for name in task.splits if name.startswith(DEV)] or [DEV]


def present_splits(folder: Path, task: TaskConfig) -> list[str]:
    """Return the splits that can be read: all but `test` splits whose files are missing."""
    named = [
        name
        for name in task.splits
        if not name.startswith("test") or (folder / split_of(task, name).path).exists()
    ]
    return list(dict.fromkeys([*named, *dev_splits(task)]))


def read_unlabelled(path: Path, task: TaskConfig) -> list[Example]:
    """Read examples without labels from lines of JSON whose keys are the TEXT_ROLES of the form.

    A line has a `question` only if the task has one. Errors are those of `read_split`.
    """
    known = columns_of(task, split_of(task, TRAIN))
    roles = [role for role in TEXT_ROLES[task.form] if role in known]
    split = SplitConfig(path=path.name, columns={role: role for role in roles})
    unlabelled = task.model_copy(update={"format": "jsonl", "splits": {"test": split}})
    return read_split(path.parent, unlabelled, "test")


def write_submission(
    folder: Path,
    task: TaskConfig,
    split: str,
    ids: Sequence[str],
    predictions: Sequence[int | float],
) -> Path:
    """Write predictions of examples in GLUE's format and return the file; DataError if that fails.

    Its name is the split's `submission` or else the split's own. A prediction is a score, or the
    number of a class or choice, written as task.labels names it.
    """
    path = folder / submission_name(task, split)
    if task.labels is not None:
        values = [task.labels[int(prediction)] for prediction in predictions]
    else:
        form = ".6g" if task.score_range is None else ".3f"
        values = [f"{prediction:{form}}" for prediction in predictions]
    lines = [f"{index}\t{value}\n" for index, value in zip(ids, values, strict=True)]
    write_result(path, "".join(["index\tprediction\n", *lines]))
    return path


def submission_name(task: TaskConfig, split: str) -> str:
    """Return the name of a split's prediction file."""
    return split_of(task, split).submission or f"{split}.tsv"


def _examples(path: Path, task: TaskConfig, split: SplitConfig) -> Iterator[Example]:
    columns = columns_of(task, split)
    header = task.header if split.header is None else split.header
    needed = [column for named in columns.values() for column in named]
    rows = read_rows(path, task.format, header, needed, task.quoting)
    allowed = task.malformed_rows if "label" in columns else 0
    for number, row in enumerate(rows):
        try:
            example = _example(row, number, task, columns)
        except _MalformedRowError as error:
            allowed -= 1
            if allowed < 0:
                raise DataError(
                    f"{error}; fix it, or let task.malformed_rows ({task.malformed_rows}) allow it "
                    "in a labelled file"
                ) from None
        else:
            if example is not None:
                yield example


def _example(row: FileRow, number: int, task: TaskConfig, columns: Columns) -> Example | None:
    """Return the example of a row, or None if it has no gold label."""
    if row.problem:
        raise _MalformedRowError(f"{row.where}: {row.problem}")
    named = _string(row, columns["label"][0]).strip() if "label" in columns else None
    if named in task.ignored_labels:
        return None
    roles = [role for role in TEXT_ROLES[task.form] if role in columns and role != "choices"]
    texts = tuple(_joined(_string(row, name) for name in columns[role]) for role in roles)
    choices = _choices(row, columns["choices"], task.labels) if "choices" in columns else ()
    for role, text in zip([*roles, *["choice"] * len(choices)], texts + choices, strict=True):
        if not text and named is not None:
            raise _MalformedRowError(f"{row.where}: the {role} is empty")
    label = None if named is None else _label(row, named, task, len(choices))
    index = _string(row, columns["id"][0]).strip() if "id" in columns else str(number)
    return Example(texts, choices, label, index, row.where)


def _choices(row: FileRow, columns: list[Column], labels: list[str] | None) -> tuple[str, ...]:
    values = [_field(row, column) for column in columns]
    values = values[0] if len(columns) == 1 else values
    if not isinstance(values, list) or len(values) < 2:
        raise DataError(
            f"{row.where}: {columns[0]!r} is {values!r:.40}, not a list of two choices or more; "
            "name a column that holds lists, or several columns"
        )
    choices = [_joined([_as_string(row, columns[0], value)]) for value in values]
    # A row with fewer choices leaves the last of several columns blank.
    while len(columns) > 1 and len(choices) > 2 and not choices[-1]:
        choices.pop()
    if labels is not None and len(choices) > len(labels):
        raise DataError(f"{row.where}: {len(choices)} choices, but task.labels names {len(labels)}")
    return tuple(choices)


def _label(row: FileRow, named: str, task: TaskConfig, num_choices: int) -> int | float:
    if task.labels is None and task.form != "multiple_choice":
        return _score(row, named, task.score_range)
    labels = task.labels or [str(number) for number in range(num_choices)]
    labels = labels[: num_choices or None]  # a row of multiple choice may have fewer than others
    if named not in labels:
        raise DataError(
            f"{row.where}: unknown label {named!r}, not one of {', '.join(labels)}; fix it, "
            "correct task.labels, or leave such rows out with task.ignored_labels"
        )
    return labels.index(named)


def _score(row: FileRow, named: str, score_range: tuple[float, float] | None) -> float:
    low, high = score_range or (-3e38, 3e38)  # scores are kept in fp32
    with suppress(ValueError):
        if low <= (score := float(named)) <= high:
            return score
    expected = f" from {low:g} to {high:g}" if score_range else ""
    raise DataError(
        f"{row.where}: {named!r} is not a score{expected}; fix it, or name the classes in "
        "task.labels"
    )


def _string(row: FileRow, column: Column) -> str:
    return _as_string(row, column, _field(row, column))


def _field(row: FileRow, column: Column) -> Any:
    if column not in row.fields:
        known = ", ".join(map(repr, row.fields))
        raise DataError(f"{row.where}: no {column!r}, only {known}; add it, or name another")
    return row.fields[column]


def _as_string(row: FileRow, column: Column, value: Any) -> str:
    """Return a field of a JSON file as a text file would hold it; null becomes empty."""
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise DataError(f"{row.where}: {column!r} is {value!r:.40}, not a text; fix it")
    return value if isinstance(value, str) else json.dumps(value)


def _joined(parts: Iterable[str]) -> str:
    return " ".join(" ".join(parts).split())


def _is_held_out(example: Example, fraction: float) -> bool:
    digest = hashlib.sha256(example.texts[0].encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def split_of(task: TaskConfig, name: str) -> SplitConfig:
    """Return the configuration of a split; raise ConfigError if the task does not have it."""
    if name not in task.splits:
        raise ConfigError(f"task.splits: no {name!r}; it has {', '.join(task.splits)}")
    split = task.splits[name]
    return SplitConfig(path=split) if isinstance(split, str) else split


def columns_of(task: TaskConfig, split: SplitConfig) -> Columns:
    """Return the columns of a split's file by role."""
    columns = task.columns if split.columns is None else split.columns
    if task.format == "race":
        columns = {role: role for role in (*TEXT_ROLES["multiple_choice"], "label", "id")}
    return {role: named if isinstance(named, list) else [named] for role, named in columns.items()}
