"""Read the texts of test files: the fields of each row, whatever the file's format."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_prep.defaults import TEST_SUFFIXES
from gpt_dist.data.tasks.files import read_rows
from gpt_dist.errors import DataError


@dataclass(frozen=True)
class TaskFiles:
    """Files of tests, and how to read them."""

    paths: tuple[Path, ...]
    columns: tuple[str, ...] = ()
    """Columns that hold text, by name or, from 0, by position; all of them if none is given."""
    header: bool = True
    """Whether the first line of a .tsv or .csv names the columns."""

    def check(self) -> None:
        """Raise DataError if a file is missing or of an unknown format."""
        for path in self.paths:
            if not path.exists():
                raise DataError(f"{path}: no such file")
            if not path.is_dir() and path.suffix.lower() not in TEST_SUFFIXES:
                raise DataError(
                    f"{path}: not a file of tests by its suffix; give {', '.join(TEST_SUFFIXES)}, "
                    "or a folder of RACE"
                )


@dataclass(frozen=True, slots=True)
class TaskText:
    """Text of a test, in one part or several: the fields of a row."""

    where: str
    """The file, and the line or the place in its array."""
    parts: tuple[str, ...]


def read_texts(path: Path, files: TaskFiles) -> Iterator[TaskText]:
    """Yield the texts of one file in order; of a malformed row, without parts.

    Raises:
        DataError: The file cannot be read, or lacks a column.
    """
    suffix = path.suffix.lower()
    if suffix == ".txt" and path.is_file():
        lines = enumerate(_read(path).decode("utf-8-sig", "replace").split("\n"), 1)
        yield from (TaskText(f"{path}, line {n}", (line,)) for n, line in lines if line.strip())
        return
    for where, fields in _json_items(path) if suffix == ".json" else _rows(path, files):
        if not isinstance(fields, Mapping):
            yield TaskText(where, tuple(_strings(fields)))
            continue
        values = [_field(fields, column, where) for column in files.columns if fields]
        yield TaskText(where, tuple(_strings(values if files.columns else _once(fields))))


def _rows(path: Path, files: TaskFiles) -> Iterator[tuple[str, Any]]:
    form = "race" if path.is_dir() else path.suffix.lower().removeprefix(".")
    return ((row.where, row.fields) for row in read_rows(path, form, files.header))


def _json_items(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the items of an array, which may be the only one in an object."""
    try:
        value = orjson.loads(_read(path))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); fix it, or give .jsonl") from None
    if isinstance(value, dict):
        arrays = [item for item in value.values() if isinstance(item, list)]
        value = arrays[0] if len(arrays) == 1 else value
    if not isinstance(value, list):
        raise DataError(f"{path}: not an array of texts or objects; write one, or give .jsonl")
    for number, item in enumerate(value, 1):
        yield f"{path}, item {number}", item


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give another file") from error


def _field(fields: Mapping[Any, Any], column: str, where: str) -> Any:
    for key in (column, int(column) if column.isdecimal() else column):
        if key in fields:
            return fields[key]
    known = ", ".join(map(str, _once(fields, names=True)))
    raise DataError(f"{where}: no column {column}, only {known}; correct --column")


def _once(fields: Mapping[Any, Any], names: bool = False) -> list[Any]:
    """Return all values, or names, but once where a column has a position and a name."""
    named = [key for key in fields if isinstance(key, str)] or list(fields)
    return named if names else [fields[key] for key in named]


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings in a JSON value, at any depth."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Iterable):
            stack += reversed(list(one.values() if isinstance(one, Mapping) else one))
