"""Test the results of fine-tuning runs and the tables made of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from gpt_dist.errors import DataError
from gpt_dist.finetune.results import RESULTS_NAME, Results, SeedResult, median_and_spread
from launch.scoreboard import ablation_tables, find_results, score_table

ROOT = Path(__file__).parents[2]
SOURCE = "runs/first/checkpoints/step-00000500"
RACE_PAPER = {"dev": 59.0, "dev_middle": 62.9, "dev_high": 57.4}


def make(task: str, *scores: dict[str, float] | float, **keys: Any) -> Results:
    """Return the results of a run from each seed's accuracies by split (a number is `dev`'s)."""
    by_split = [one if isinstance(one, dict) else {"dev": one} for one in scores]
    facts = {
        "task": task,
        "metric": "accuracy",
        "form": "classification",
        "source": SOURCE,
        "source_step": 500,
        "auxiliary_weight": 0.5,
        "transferred_layers": None,
        "num_layers": 12,
        "hidden_size": 768,
        "parameters": 116_534_784,
        "data_digest": "ab" * 32,
        "train_examples": 2490,
        "examples": dict.fromkeys(by_split[0], 277),
        "max_steps": 234,
        "versions": {"torch": "2.13.0"},
        "paper": {},
    }
    seeds = [
        SeedResult(
            seed=seed,
            best_step=100,
            scores={split: {keys.get("metric", "accuracy"): value} for split, value in one.items()},
        )
        for seed, one in enumerate(by_split)
    ]
    median, spread = median_and_spread(seeds)
    scores_of_seeds = {"seeds": seeds, "median": median, "spread": spread}
    return Results.model_validate(facts | keys | scores_of_seeds)


def cells(runs: list[Results], *columns: str) -> list[tuple[str, ...]]:
    table = score_table({f"run-{number}": run for number, run in enumerate(runs)})
    found = {column.header: list(column.cells) for column in table.columns}
    return list(zip(*(found[name] for name in columns), strict=True))


def rows(table: Table) -> list[tuple[Any, ...]]:
    return list(zip(*(column.cells for column in table.columns), strict=True))


def put(path: Path, results: Results) -> Path:
    path.mkdir(parents=True)
    results.write(path / RESULTS_NAME)
    return path


def test_median_and_spread_are_of_the_seeds():
    scores = [(0.5, 0.25), (0.75, 0.5), (0.625, 0.75)]
    results = make("RTE", *({"dev": dev, "test": test} for dev, test in scores))
    assert results.median == {"dev": {"accuracy": 0.625}, "test": {"accuracy": 0.5}}
    assert results.spread == {"dev": {"accuracy": 0.25}, "test": {"accuracy": 0.5}}


def test_results_come_back_as_written_and_nothing_else_is_left(tmp_path):
    results = make("RTE", 0.1, 1 / 3, 0.7)
    path = put(tmp_path / "run", results) / RESULTS_NAME
    assert Results.read(path) == results
    make("RTE", 0.9).write(path)
    assert Results.read(path).median["dev"]["accuracy"] == 0.9
    assert os.listdir(path.parent) == [RESULTS_NAME]


def change(content: dict[str, Any], **keys: Any) -> bytes:
    return json.dumps(content | keys).encode()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: json.dumps(content).encode()[:-9], "the file: EOF while parsing"),
        (lambda content: json.dumps(content["median"]).encode(), "task: Field required"),
        (lambda content: change(content, format="gpt_dist.tokens"), "format: Input should be"),
        (lambda content: change(content, version=2), "version: Input should be 1"),
        (lambda content: change(content, notes="x"), "notes: Extra inputs"),
        (
            lambda content: change(content, median={"dev": {"accuracy": 0.9}}),
            "median or spread is not that",
        ),
        (lambda content: change(content, metric="f1"), "a split without its f1"),
        (lambda content: change(content, seeds=[]), "seeds: Tuple should have at least 1 item"),
    ],
)
def test_damaged_or_foreign_results_are_named(tmp_path, damage, message):
    path = put(tmp_path / "run", make("RTE", 0.5, 0.6)) / RESULTS_NAME
    path.write_bytes(damage(json.loads(path.read_text())))
    expected = rf"run/results\.json: not results of gpt_dist\.results version 1: .*{message}.*again"
    with pytest.raises(DataError, match=expected):
        find_results([path.parent])


def test_absent_results_and_a_place_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(DataError, match=r"results\.json: cannot be read \(No such file"):
        Results.read(tmp_path / RESULTS_NAME)
    with pytest.raises(DataError, match=r"none/results\.json: cannot be written \(No such file"):
        make("RTE", 0.5).write(tmp_path / "none" / RESULTS_NAME)


def test_runs_are_found_and_others_are_counted(tmp_path):
    rte, sst2 = make("RTE", 0.5), make("SST-2", 0.9)
    put(tmp_path / "a", rte)
    put(tmp_path / "b", sst2)
    (tmp_path / "pretraining").mkdir()
    (tmp_path / "log.txt").write_text("")
    given = [*sorted(tmp_path.iterdir()), tmp_path / "b" / RESULTS_NAME]
    assert find_results(given) == ({"a": rte, "b": sst2}, 2)
    put(tmp_path / "more" / "b", rte)
    names = list(find_results([tmp_path / "b", tmp_path / "more" / "b"])[0])
    assert names == [str(tmp_path / "b"), str(tmp_path / "more" / "b")]


def test_refused_only_where_there_is_no_run_at_all(tmp_path):
    (tmp_path / "pretraining").mkdir()
    with pytest.raises(
        DataError, match=r"no finished fine-tuning run among 1 given.*results\.json"
    ):
        find_results([tmp_path / "pretraining"])
    with pytest.raises(DataError, match="absent: no such directory"):
        find_results([tmp_path / "absent"])


def test_a_row_tells_the_run_beside_the_paper():
    run = make("RTE", 0.581, 0.553, 0.604, paper={"dev": 56.0}, auxiliary_weight=0.0)
    assert rows(score_table({"mine": run})) == [
        (
            *("mine", "RTE", "accuracy", "first/step-00000500", "all", "0", "3"),
            *("58.1 (55.3 to 60.4)", "56.0", "+2.1"),
        ),
    ]


def test_one_seed_has_no_range_and_an_own_task_no_paper():
    run = make("mine", 0.5, source="none", transferred_layers=None, source_step=None)
    columns = ("source", "layers", "seeds", "score", "paper", "difference")
    assert cells([run], *columns) == [("none", "–", "1", "50.0", "–", "–")]


def test_race_has_a_row_for_all_and_one_for_each_part():
    scores = {"dev_high": 0.5, "dev_middle": 0.6, "test_high": 0.1, "dev": 0.53}
    assert cells([make("RACE", scores, paper=RACE_PAPER)], "task", "score", "difference") == [
        ("RACE", "53.0", "−6.0"),
        ("RACE dev_middle", "60.0", "−2.9"),
        ("RACE dev_high", "50.0", "−7.4"),
    ]


def test_a_labelled_test_set_stands_beside_the_paper():
    run = make(
        "MRPC", {"dev": 0.8, "test_labelled": 0.7}, paper={"dev": 82.3, "test_labelled": 82.3}
    )
    assert cells([run], "task", "difference") == [("MRPC", "−2.3"), ("MRPC test_labelled", "−12.3")]
    run = make("mine", {"test": 0.7, "dev": 0.8})
    assert cells([run], "task", "score") == [("mine", "80.0"), ("mine test", "70.0")]


def test_mnli_has_a_row_for_each_of_its_two_sets():
    scores = {"dev_matched": 0.8209, "dev_mismatched": 0.8, "dev": 0.81}
    run = make("MultiNLI", scores, paper={"dev_matched": 82.1, "dev_mismatched": 81.4})
    assert cells([run], "task", "paper", "difference") == [
        ("MultiNLI dev_matched", "82.1", "+0.0"),
        ("MultiNLI dev_mismatched", "81.4", "−1.4"),
    ]


def test_runs_of_a_task_stand_together():
    runs = [make("RTE", 0.5), make("SST-2", 0.9), make("RTE", 0.6)]
    assert cells(runs, "task", "score") == [("RTE", "50.0"), ("RTE", "60.0"), ("SST-2", "90.0")]


def test_ablations_are_averaged_over_the_tasks_that_both_have():
    no_source = {"source": "none", "source_step": None}
    runs = [
        make("RTE", 0.4, **no_source),
        make("RTE", 0.6, 0.5, 0.7),
        make("SST-2", 0.9),
        make("CoLA", 0.3, metric="matthews"),
        make("RTE", 0.7, auxiliary_weight=0),
        make("SST-2", 0.88, auxiliary_weight=0),
        make("RTE", 0.55, transferred_layers=6),
        make("QNLI", 0.1, transferred_layers=6),
    ]
    (table,) = ablation_tables(runs)
    assert table.title == "Ablations of first/step-00000500, 12 × 768"
    assert rows(table) == [
        ("full, λ = 0.5", "RTE, SST-2", "75.0", "–", "–", "74.7"),
        ("pre-trained, λ = 0", "RTE, SST-2", "79.0", "75.0", "+4.0", "75.0"),
        ("6 of 12 layers, λ = 0.5", "RTE", "55.0", "60.0", "−5.0", "–"),
        ("no pre-training, λ = 0.5", "RTE", "40.0", "60.0", "−20.0", "59.9"),
    ]


def test_ablations_take_all_dev_sets_together_and_each_model_for_itself():
    scores = {"dev_middle": 0.7, "dev_high": 0.5, "dev": 0.55}
    runs = [
        make("RACE", scores, paper=RACE_PAPER),
        make("RACE", 0.58, auxiliary_weight=0),
        make("RACE", 0.2, source="tiny", num_layers=2, hidden_size=128),
        make("RACE", 0.1, source="none", source_step=None, num_layers=2, hidden_size=128),
    ]
    first, second = ablation_tables(runs)
    assert [row[2] for row in rows(first)] == ["55.0", "58.0"]
    assert [row[2] for row in rows(second)] == ["20.0", "10.0"]


@pytest.mark.parametrize(
    "other",
    [{"data_digest": "cd" * 32}, {"max_steps": 9}, {"hyperparameters": {"optimizer.betas": 1}}],
)
def test_other_data_or_hyperparameters_are_no_ablation(other):
    runs = [make("RTE", 0.5), make("RTE", 0.9, **other), make("RTE", 0.6, auxiliary_weight=0)]
    (table,) = ablation_tables(runs)
    assert [row[2] for row in rows(table)] == ["50.0", "60.0"]
    assert ablation_tables([runs[1], runs[2]]) == []


def test_without_variants_there_is_no_ablation():
    assert ablation_tables([make("RTE", 0.5), make("SST-2", 0.9, auxiliary_weight=0)]) == []
    assert ablation_tables([make("RTE", 0.5, source="none", source_step=None)]) == []


def test_the_command_prints_markdown_to_paste(tmp_path):
    put(tmp_path / "rte", make("R|TE", 0.58, paper={"dev": 56.0}))
    (tmp_path / "other").mkdir()
    result = subprocess.run(
        [sys.executable, "launch/scoreboard.py", *sorted(tmp_path.iterdir()), "--markdown"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = result.stdout.splitlines()
    assert lines[2].startswith("| run | task | metric | source | layers | λ | seeds | score | pa")
    assert lines[3].count("|") == lines[2].count("|")
    assert lines[4] == (
        r"| rte | R\|TE | accuracy | first/step-00000500 | all | 0.5 | 1 | 58.0 | 56.0 | +2.0 |"
    )
    assert "paper's of test sets" in lines[-1]
    assert result.stderr == "skipped: 1 without results of fine-tuning\n"
