"""Test that finished jobs are not done again, and that jobs run in any order."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_prep.build.work import Job, Work, is_done, work_folder
from data_prep.pool import Pool
from gpt_dist.errors import DataError
from gpt_dist.files.entries import Record

done: list[int] = []


class Square(Record):
    square: int


@dataclass(frozen=True, kw_only=True)
class SquareJob(Job[Square]):
    number: int
    result = Square

    def run(self) -> Square:
        if self.number < 0:
            raise DataError("cannot be done")
        done.append(self.number)
        return Square(square=self.number**2)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    done.clear()
    with ThreadPoolExecutor(2) as executor:
        yield Work(tmp_path, Pool(executor, 2))


def jobs(work: Work, *numbers: int) -> list[SquareJob]:
    return [SquareJob(number=n, prefix=work.prefix("squares", n)) for n in numbers]


def test_finished_jobs_are_not_done_again(work: Work) -> None:
    with pytest.raises(DataError):
        work.results(jobs(work, 1, 2, -1), lambda _job: None)
    finished = [job.number for job in jobs(work, 1, 2) if is_done(job.prefix)]
    assert sorted(done) == finished
    results = work.results(jobs(work, 3, 2, 1), lambda _job: None)
    assert [result.square for result in results] == [9, 4, 1]
    assert sorted(done) == [1, 2, 3]


def test_jobs_of_the_same_input_are_done_once(work: Work) -> None:
    told: list[int] = []
    results = work.results(jobs(work, 2, *[3] * 20), lambda job: told.append(job.number))
    assert [result.square for result in results] == [4, *[9] * 20]
    assert sorted(done) == [2, 3]
    assert sorted(told) == [2, *[3] * 20]


def test_a_torn_result_is_made_again(work: Work) -> None:
    (job,) = jobs(work, 5)
    job.prefix.parent.mkdir(parents=True)
    job.prefix.with_suffix(".json").write_text('{"squ')
    assert work.results([job], lambda _job: None) == [Square(square=25)]
    assert done == [5]


def test_a_slow_job_does_not_hold_the_others() -> None:
    def wait(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    with ThreadPoolExecutor(2) as executor:
        pool = Pool(executor, 2)
        order = [result for _, result in pool.as_completed(wait, [1.0, *[0.001] * 20])]
        assert order[-1] == 1.0
        assert list(pool.map(wait, [0.2, 0.001, 0.1])) == [0.2, 0.001, 0.1]


def test_a_job_may_come_later() -> None:
    def later() -> Iterator[int | None]:
        yield 1
        yield from [None] * 3
        yield 2

    with ThreadPoolExecutor(2) as executor:
        found = {result for _, result in Pool(executor, 2).as_completed(abs, later())}
    assert found == {1, 2}


def test_a_work_folder_without_work_is_removed(tmp_path: Path) -> None:
    with work_folder(tmp_path / "tokens") as (folder, _):
        assert list(tmp_path.iterdir()) == [folder]
    assert not list(tmp_path.iterdir())


def test_a_work_folder_goes_with_its_output(tmp_path: Path) -> None:
    with work_folder(tmp_path / "tokens") as (folder, output):
        output.mkdir()
        (output / "manifest.json").write_text("{}")
        (folder / "text/ab").mkdir(parents=True)
        (folder / "text/ab/abc.json").write_text("{}")
    assert list(tmp_path.iterdir()) == [tmp_path / "tokens"]


def test_another_build_s_work_is_left_alone(tmp_path: Path) -> None:
    with work_folder(tmp_path / "tokens") as (folder, _):
        (folder / "begun").write_text("")
        with (
            pytest.raises(DataError, match="another build for the same --output is running"),
            work_folder(tmp_path / "tokens"),
        ):
            pass
        assert (folder / "begun").exists()


def test_work_left_by_a_build_that_was_killed_at_its_end_is_removed(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens/manifest.json").write_text("{}")
    (tmp_path / ".tokens.building/text").mkdir(parents=True)
    with pytest.raises(DataError, match="exists already"), work_folder(tmp_path / "tokens"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]
