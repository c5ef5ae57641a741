"""Test how the table of faults is made of what tests show, and put into a document."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fault_rows import FAULTS
from tests.fault_table import BEGIN, END, Shown, make_table, replace_table, rows_of

FOUND = [
    Shown(1, "rank 1", "passed", seconds=(("the others ended", 0.26), ("", 9.0))),
    Shown(1, "rank 0", "passed", seconds=(("the others ended", 12.4), ("", 30.0))),
    Shown(1, "rank 0", "failed"),
    Shown(9, "", "skipped", "mounting a file system needs root"),
    Shown(12, "a|b", "passed", seconds=(("", 0.01),)),
]


def row(table: str, number: int) -> list[str]:
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {number} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_are_those_of_the_document_that_promises_them():
    assert list(FAULTS) == list(range(1, 37))
    assert all("|" not in text for texts in FAULTS.values() for text in texts)


def test_what_tests_show_is_put_together_by_row():
    table = make_table(FOUND)
    assert len(table.splitlines()) == 2 + 36
    *text, cases, result, seconds = row(table, 1)
    assert text == ["1", *FAULTS[1]]
    assert cases == "rank 0; rank 1"
    assert result == "1 failed, 2 passed"
    assert seconds == "the others ended: 0.3 to 12"
    assert row(table, 9)[3:] == ["", "1 skipped (mounting a file system needs root)", ""]
    assert row(table, 12)[3:] == ["a/b", "1 passed", "whole test: 0.0"]
    assert row(table, 36)[3:] == ["", "not run", ""]


def test_the_order_of_tests_does_not_matter():
    for seed in range(10):
        assert make_table(random.Random(seed).sample(FOUND, len(FOUND))) == make_table(FOUND)


def test_the_text_around_the_table_stays():
    text = f"# Title\n\n{BEGIN}\nold\n{END}\n\nmore"
    once = replace_table(text, FOUND)
    assert once == f"# Title\n\n{BEGIN}\n\n{make_table(FOUND)}\n{END}\n\nmore"
    assert replace_table(once, FOUND) == once


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}"])
def test_a_document_without_the_marks_is_refused(text):
    with pytest.raises(ValueError, match="each once"):
        replace_table(text, FOUND)


TESTS = """
import pytest

@pytest.mark.row(2, case="rank {rank}, {name}")
@pytest.mark.row(1)
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.row(3))])
@pytest.mark.parametrize("name", ["x"])
def test_shows(rank, name, measured):
    measured("the others ended", rank + 0.5)

@pytest.mark.row(4)
def test_skips():
    pytest.skip("not here")

@pytest.mark.row(5)
@pytest.mark.parametrize("fixture", ["absent"])
def test_fails(fixture):
    assert fixture == "there"

def test_shows_nothing():
    pass
"""
MORE_TESTS = """
import pytest

@pytest.mark.row(5, case="elsewhere")
def test_passes():
    pass

@pytest.mark.row(6)
def test_has_no_fixture(absent):
    pass
"""


@pytest.mark.parametrize("options", [[], ["--numprocesses", "2"]], ids=["", "two workers"])
def test_the_results_of_runs_of_pytest_make_the_table(options, tmp_path):
    document = tmp_path / "table.md"
    document.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    first, second = tmp_path / "first", tmp_path / "second"
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    for folder, tests in ((first, TESTS), (second, MORE_TESTS)):
        folder.mkdir()
        (folder / "test_some.py").write_text(tests)
        results = [str(folder), *options, f"--junitxml={folder}.xml"]
        done = subprocess.run([*command, *results], capture_output=True, text=True)
        assert " passed" in done.stdout, done.stdout + done.stderr
    files = [document, f"{first}.xml", f"{second}.xml"]
    written = subprocess.run(
        [sys.executable, "-m", "tests.fault_table", *files], capture_output=True, text=True
    )
    assert f"{document}: the table of faults, of 9 results" in written.stdout, written.stderr
    assert f"no test of them was run: {[*range(7, 37)]}" in written.stdout
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert row(text, 1)[3:] == ["", "2 passed", "the others ended: 0.5 to 1.5"]
    assert row(text, 2)[3:5] == ["rank 0, x; rank 1, x", "2 passed"]
    assert row(text, 3)[3:] == ["", "1 passed", "the others ended: 1.5"]
    assert row(text, 4)[3:] == ["", "1 skipped (not here)", ""]
    assert row(text, 5)[3:] == ["elsewhere", "1 failed, 1 passed", "whole test: 0.0"]
    assert row(text, 6)[4] == "1 failed"


def test_every_row_is_shown_by_a_test():
    marks = re.compile(r"mark\.row\((\d+)")
    files = [file for file in Path("tests").rglob("*.py") if file.name != Path(__file__).name]
    found = {int(number) for file in files for number in marks.findall(file.read_text())}
    assert found == set(FAULTS)


def test_results_that_are_none_are_refused(tmp_path):
    document, results = tmp_path / "table.md", tmp_path / "results.xml"
    document.write_text(f"{BEGIN}\n{END}\n")
    results.write_text("<testsuite>")
    command = [sys.executable, "-m", "tests.fault_table", document, results]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no table is written" in done.stderr
    assert "Traceback" not in done.stderr


def test_rows_of_which_no_test_was_run_stay():
    first, second = Shown(9, "one", "passed"), Shown(23, "two", "passed")
    text = replace_table(f"{BEGIN}\n{END}", [first])
    assert replace_table(text, [second]) == replace_table(f"{BEGIN}\n{END}", [first, second])


@pytest.mark.parametrize(
    "mark", [pytest.mark.row(37), pytest.mark.row(), pytest.mark.row(1, case="{absent}")]
)
def test_a_wrong_mark_is_refused(mark):
    item = SimpleNamespace(nodeid="test_some", iter_markers=lambda _: [mark.mark])
    with pytest.raises(pytest.UsageError, match=r"test_some: row\("):
        rows_of(item)
