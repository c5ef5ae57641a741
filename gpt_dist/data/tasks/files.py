"""Read the rows of a task's files: delimited text, JSON lines, or RACE's folder of passages."""

import csv
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from gpt_dist.config import Column
from gpt_dist.errors import DataError


@dataclass(frozen=True, slots=True)
class FileRow:
    """Row of a task's file, from which one example is made."""

    where: str
    """File and line, as errors name them."""
    fields: Mapping[Column, Any]
    problem: str = ""
    """Reason why there are no fields: the row has more or fewer than the file's first."""


def read_rows(
    path: Path,
    form: str,
    header: bool,
    columns: Collection[Column] = (),
    quoting: bool | None = None,
) -> Iterator[FileRow]:
    """Yield the rows of one file, or of one folder of RACE, in order.

    A byte order mark and blank last lines are skipped. A row of RACE has its parts by role.
    `quoting` says whether delimited text has quoted fields; by default, csv has. DataError, with
    the line, is raised for a file that is not of its format, or lacks one of `columns`.
    """
    if form == "race":
        return _passages(path)
    if form == "jsonl":
        return _json_lines(path)
    delimiter = {"tsv": "\t", "csv": ","}[form]
    quoting = form == "csv" if quoting is None else quoting
    return _delimited(_split_fields(path, delimiter, quoting), path, header, columns)


def _delimited(
    rows: Iterator[tuple[int, list[str]]], path: Path, header: bool, columns: Collection[Column]
) -> Iterator[FileRow]:
    """Yield rows whose fields have positions, and names too if there is a header."""
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path}, line 1: the file is empty; copy it again")
    width = len(first[1])
    names = [name.strip() for name in first[1]] if header else []
    keys: list[Column] = [*range(width), *names]
    for column in columns:
        if keys.count(column) != 1:
            known = ", ".join(map(repr, names)) or f"no header, but positions 0 to {width - 1}"
            raise DataError(
                f"{path}, line 1: no single column {column!r}: it has {known}; correct "
                "task.columns, where a number is a position from 0, or, if only this file has "
                "other columns, name them in task.splits"
            )
    for line, values in rows if header else chain([first], rows):
        where = f"{path}, line {line}"
        if len(values) == width:
            yield FileRow(where, dict(zip(keys, [*values, *values], strict=False)))
        else:
            yield FileRow(where, {}, f"{len(values)} fields instead of {width}")


def _split_fields(path: Path, delimiter: str, quoting: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield each row's first line and its fields; only quoted fields may hold line ends."""
    lines = _lines(path)
    if not quoting:
        for number, line in enumerate(lines, 1):
            yield number, line.rstrip("\r\n").split(delimiter)
        return
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number = 1
    try:
        for fields in reader:
            yield number, fields
            number = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {number}: the row's quoted fields cannot be read ({error}); "
            "fix the quotes, or set task.quoting to false"
        ) from None


def _json_lines(path: Path) -> Iterator[FileRow]:
    for number, line in enumerate(_lines(path), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            raise DataError(f"{where}: the line is blank; remove it")
        yield FileRow(where, _json_object(line, where))


def _passages(folder: Path) -> Iterator[FileRow]:
    """Yield a row for each question of RACE; its id is the passage's id and its number, from 0."""
    files = sorted(folder.rglob("*.txt"))
    if not files:
        raise DataError(f"{folder}: no passages (.txt files) in it; copy the folder again")
    for file in files:
        where = f"{file}, line 1"
        passage = _json_object("".join(_lines(file)), where)
        try:
            parts = zip(passage["questions"], passage["options"], passage["answers"], strict=True)
            for number, (question, options, answer) in enumerate(parts):
                fields: dict[Column, Any] = {
                    "context": passage["article"],
                    "question": question,
                    "choices": options,
                    "label": answer,
                    "id": f"{passage['id']}/{number}",
                }
                yield FileRow(f"{where}, question {number}", fields)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{where}: not a passage of RACE, with id, article, and as many questions, options "
                f"and answers ({type(error).__name__}: {error}); copy it again"
            ) from None


def _json_object(text: str, where: str) -> dict[Any, Any]:
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        reason = str(error).replace("line 1 column", "column")
        raise DataError(f"{where}: not JSON ({reason}); fix the line") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected {{…}}, found {text.strip()[:40]!r}; fix the line")
    return value


def _lines(path: Path) -> Iterator[str]:
    """Yield a UTF-8 file's lines with their ends, without byte order mark and blank last lines."""
    blank: list[str] = []
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                blank.append(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if blank[-1].rstrip("\r\n"):
                    yield from blank
                    blank.clear()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give another file") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from None
