"""The rows of a task's files: delimited text, JSON lines, or RACE's folder of passages."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from gpt_dist.config import Column, TaskConfig
from gpt_dist.errors import DataError

RACE_COLUMNS: dict[str, Column | list[Column]] = {
    "context": "article",
    "question": "question",
    "choices": "options",
    "label": "answer",
    "id": "id",
}
"""What `read_rows` calls the parts of a question of RACE."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one example is made of."""

    where: str
    """The file and line, as errors name them."""
    fields: Mapping[Column, Any]
    problem: str = ""
    """Why there are no fields, where the row has not as many as the file's first."""


def read_rows(
    path: Path, task: TaskConfig, header: bool, columns: Collection[Column]
) -> Iterator[Row]:
    """The rows of one file, or of one folder of RACE, in order.

    A byte order mark and blank last lines are passed over. Raises DataError naming file and line
    where the file cannot be read, is not UTF-8 or of another format, or lacks one of `columns`.
    """
    if task.format == "race":
        return _passages(path)
    if task.format == "jsonl":
        return _json_lines(path)
    delimiter = {"tsv": "\t", "csv": ","}[task.format]
    quoting = task.format == "csv" if task.quoting is None else task.quoting
    return _delimited(_records(path, delimiter, quoting), path, header, columns)


def _delimited(
    records: Iterator[tuple[int, list[str]]],
    path: Path,
    header: bool,
    columns: Collection[Column],
) -> Iterator[Row]:
    """Rows by the names of the header, if there is one, and by position."""
    first = next(records, None)
    if first is None:
        raise DataError(f"{path}, line 1: the file is empty; copy it again")
    width = len(first[1])
    names = [name.strip() for name in first[1]] if header else []
    for column in columns:
        if column not in names and column not in range(width):
            known = ", ".join(map(repr, names)) or f"no header, but positions 0 to {width - 1}"
            raise DataError(
                f"{path}, line 1: no column {column!r}: it has {known}; correct task.columns, or, "
                "where only this file is made so, give it columns in task.splits"
            )
        if isinstance(column, str) and names.count(column) > 1:
            raise DataError(
                f"{path}, line 1: {names.count(column)} columns {column!r}; give the position "
                "of the right one, from 0, in task.columns"
            )
    if not header:
        records = chain([first], records)
    for line, values in records:
        where = f"{path}, line {line}"
        if len(values) == width:
            by_name = zip(names, values, strict=bool(names))
            yield Row(where, {**dict(enumerate(values)), **dict(by_name)})
        else:
            yield Row(where, {}, f"{len(values)} fields instead of {width}")


def _records(path: Path, delimiter: str, quoting: bool) -> Iterator[tuple[int, list[str]]]:
    """Each record's first line and fields; only a quoted field may hold line ends."""
    lines = _lines(path)
    if not quoting:
        for number, line in enumerate(lines, 1):
            yield number, line.rstrip("\r\n").split(delimiter)
        return
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{path}, line {number}: no row with quoted fields begins here ({error}); "
                "mend the quotes, or set task.quoting to false"
            ) from None
        yield number, fields


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            raise DataError(f"{path}, line {number}: the line is blank; remove it")
        yield Row(f"{path}, line {number}", _json_object(line.rstrip("\r\n"), path, number))


def _passages(folder: Path) -> Iterator[Row]:
    """A row for each question of RACE: its number, from 0, follows the passage's id."""
    files = sorted(folder.rglob("*.txt"))
    if not files:
        raise DataError(f"{folder}: no passages (.txt files) in it; copy the folder again")
    for file in files:
        passage = _json_object("".join(_lines(file)), file, 1)
        try:
            questions = zip(
                passage["questions"], passage["options"], passage["answers"], strict=True
            )
            for number, (question, options, answer) in enumerate(questions):
                fields: dict[Column, Any] = {
                    "article": passage["article"],
                    "question": question,
                    "options": options,
                    "answer": answer,
                    "id": f"{passage['id']}/{number}",
                }
                yield Row(f"{file}, line 1, question {number}", fields)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{file}, line 1: not a passage of RACE, with id, article, and as many questions, "
                f"options and answers ({type(error).__name__}: {error}); copy it again"
            ) from None


def _json_object(text: str, path: Path, line: int) -> dict[Column, Any]:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        number = line + error.lineno - 1
        raise DataError(f"{path}, line {number}: not JSON ({error.msg}); mend the line") from None
    except ValueError as error:  # NaN, or a number of thousands of digits
        raise DataError(f"{path}, line {line}: not JSON ({error}); mend the line") from None
    except RecursionError:
        raise DataError(f"{path}, line {line}: JSON too deep; mend the line") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}, line {line}: expected {{…}}, found {text[:40]!r}; mend the line")
    return value


def _refuse_constant(name: str) -> NoReturn:
    """Of NaN, Infinity and -Infinity, which Python's reader takes for numbers."""
    raise ValueError(f"{name} is no value of JSON")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends, without byte order mark and blank last lines."""
    blank: list[str] = []
    try:
        with path.open("rb") as stream:
            for number, data in enumerate(stream, 1):
                line = _decode(data, f"{path}, line {number}")
                blank.append(line.removeprefix("\ufeff") if number == 1 else line)
                if blank[-1].rstrip("\r\n"):
                    yield from blank
                    blank.clear()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give another file") from error


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
