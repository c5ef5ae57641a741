"""Write the table of faults in docs/reliability.md from the tests that show its rows.

`@pytest.mark.row(7, case="rank {rank}")` says that a test shows row 7; `{rank}` is its parameter of
that name. The targets of the Makefile that run tests keep their results, and `make fault-table`
puts the outcomes and seconds of all between two marks in that file.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.fault_rows import FAULTS

BEGIN = "<!-- fault table: make fault-table writes the lines from here -->"
END = "<!-- fault table: to here -->"

_ROW = "row of faults "
_FIGURE = "seconds of "
_OUTCOMES = ("failed", "passed", "skipped")


@dataclass(frozen=True)
class Shown:
    """Outcome of one test for one row."""

    row: int
    case: str
    outcome: str
    """One of "failed", "passed" and "skipped"."""

    reason: str = ""
    """Why it was skipped."""

    seconds: tuple[tuple[str, float], ...] = ()
    """Measured times, with what was measured; "" is the whole test."""


def replace_table(text: str, found: Iterable[Shown]) -> str:
    """Return a text with the table between its two marks; raise ValueError where they are not."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"it needs the line {BEGIN} and after it the line {END}, each once")
    head, _, rest = text.partition(BEGIN)
    before, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{make_table(found, before)}\n{END}{tail}"


def make_table(found: Iterable[Shown], before: str = "") -> str:
    """Return the table of all rows, whatever the order of what was found.

    Rows of which nothing was found stay as they are in the table `before`.
    """
    earlier = {line.split(" | ")[0]: line for line in before.splitlines()}
    by_row: dict[int, list[Shown]] = {row: [] for row in FAULTS}
    for one in found:
        by_row[one.row].append(one)
    lines = ["| # | fault | what happens | cases | result | seconds |", "|---|---|---|---|---|---|"]
    for row, (fault, outcome) in FAULTS.items():
        shown = by_row[row]
        cells = [str(row), fault, outcome, _cases(shown), _result(shown), _seconds(shown)]
        line = f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
        lines.append(line if shown else earlier.get(f"| {row}", line))
    return "\n".join(lines) + "\n"


def _cases(shown: list[Shown]) -> str:
    return "; ".join(sorted({one.case for one in shown if one.case}))


def _result(shown: list[Shown]) -> str:
    if not shown:
        return "not run"
    counts = Counter(one.outcome for one in shown)
    parts = [f"{counts[outcome]} {outcome}" for outcome in _OUTCOMES if counts[outcome]]
    reasons = sorted({one.reason for one in shown if one.reason})
    return ", ".join(parts) + (f" ({'; '.join(reasons)})" if reasons else "")


def _seconds(shown: list[Shown]) -> str:
    """Return the range of each measured time, or of whole tests where none measured its own."""
    times: dict[str, list[float]] = {}
    for what, seconds in (pair for one in shown for pair in one.seconds):
        times.setdefault(what, []).append(seconds)
    exact = {what: found for what, found in times.items() if what}
    return "; ".join(
        f"{what or 'whole test'}: {_range(found)}"
        for what, found in sorted((exact or times).items())
    )


def _range(seconds: list[float]) -> str:
    bounds = min(seconds), max(seconds)
    first, last = (f"{bound:.0f}" if bound >= 10 else f"{bound:.1f}" for bound in bounds)
    return first if first == last else f"{first} to {last}"


def read_results(path: Path) -> Iterator[Shown]:
    """Yield what the tests of a pytest run have shown, by the XML file that it wrote."""
    for test in ElementTree.parse(path).iter("testcase"):
        properties = [(one.get("name", ""), one.get("value", "")) for one in test.iter("property")]
        skipped = test.find("skipped")
        is_bad = test.find("failure") is not None or test.find("error") is not None
        outcome = "failed" if is_bad else "passed" if skipped is None else "skipped"
        reason = "" if skipped is None else " ".join(skipped.get("message", "").split())
        own = [
            (name.removeprefix(_FIGURE), float(value))
            for name, value in properties
            if name.startswith(_FIGURE)
        ]
        seconds = (*own, ("", float(test.get("time", 0)))) if outcome == "passed" else ()
        for name, case in properties:
            if name.startswith(_ROW):
                yield Shown(int(name.removeprefix(_ROW)), case, outcome, reason, seconds)


def record(request: pytest.FixtureRequest, what: str, seconds: float) -> None:
    """Note a time of a test, to stand in the table in place of the seconds of the whole test."""
    request.node.user_properties.append((f"{_FIGURE}{what}", seconds))


def rows_of(item: pytest.Item) -> list[tuple[int, str]]:
    """Return the rows that a test shows, each with its case."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return [_read_mark(mark, item.nodeid, parameters) for mark in item.iter_markers("row")]


def _read_mark(mark: pytest.Mark, test: str, parameters: dict[str, object]) -> tuple[int, str]:
    try:
        (number,) = mark.args
        if number not in FAULTS:
            raise KeyError(number)
        return number, str(mark.kwargs.get("case", "")).format(**parameters)
    except (KeyError, ValueError, AttributeError) as error:
        why = f"no row of tests/fault_rows.py, or no parameter of its case ({error!r})"
        raise pytest.UsageError(f"{test}: row{mark.args}: {why}") from None


def mark_rows(item: pytest.Item) -> None:
    """Have the results of a test say which rows it shows."""
    item.user_properties += [(f"{_ROW}{row}", case) for row, case in rows_of(item)]


def main() -> None:
    """Write the table into a document, from the results of some runs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("document", type=Path, help="the file that holds the table")
    parser.add_argument("results", type=Path, nargs="+", help="what pytest --junitxml has written")
    arguments = parser.parse_args()
    try:
        found = [one for path in arguments.results for one in read_results(path)]
        text = replace_table(arguments.document.read_text(), found)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        sys.exit(f"no table is written: {error}")
    arguments.document.write_text(text)
    missing = sorted(set(FAULTS) - {one.row for one in found})
    print(f"{arguments.document}: the table of faults, of {len(found)} results")
    if missing:
        print(f"rows that stay as they were, since no test of them was run: {missing}")


if __name__ == "__main__":
    main()
