"""Fine-tuning runs: the same in every layout, reproducible, resumable, and what they leave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from gpt_dist.checkpoint.folder import step_path
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.config import TaskConfig
from gpt_dist.errors import CheckpointError
from gpt_dist.finetune.task_model import save_task_model
from gpt_dist.rendezvous import Launch
from tests.checkpoints import forge
from tests.models import write_model_folders
from tests.rows import assert_same, read_rows

WORDS = ["the", "old", "man", "went", "down", "to", "sea", "and", "came", "home", "a", "fish"]
TASKS: dict[str, dict[str, Any]] = {
    "classification": {
        "columns": {"text": "text", "label": "label"},
        "labels": ["no", "yes"],
        "metric": "matthews",
    },
    "entailment": {
        "columns": {"premise": "text", "hypothesis": "other", "label": "label"},
        "labels": ["no", "yes"],
        "metric": "accuracy",
    },
    "similarity": {
        "columns": {"a": "text", "b": "other", "label": "score"},
        "score_range": [0, 5],
        "metric": "pearson",
    },
    "multiple_choice": {
        "columns": {"context": "text", "choices": "choices", "label": "number"},
        "metric": "accuracy",
    },
}

NAMED = {"name": "t", "form": "classification", "format": "jsonl", "splits": {}}


def rows(count: int, first: int) -> list[dict[str, Any]]:
    """Examples for every form; whether `fish` is in the text decides."""
    made = []
    for number in range(first, first + count):
        text = " ".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(3 + number % 9))
        fish = "fish" in text.split()
        choices = [f"{word} {text[:9]}" for word in ("fish", "home", "man")[: 2 + number % 2]]
        made.append(
            {
                "text": text,
                "other": " ".join(WORDS[(number + i) % len(WORDS)] for i in range(4)),
                "label": "yes" if fish else "no",
                "score": 5 * text.count("s") / len(text),
                "choices": choices,
                "number": 0 if fish else 1,
            }
        )
    return made


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory) -> Path:
    """A folder of task files in JSON lines, and a YAML for each form."""
    folder = tmp_path_factory.mktemp("task")
    for name, count, first in (("train", 60, 0), ("dev", 21, 100), ("test", 7, 200)):
        lines = [json.dumps(row) for row in rows(count, first)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    for form, task in TASKS.items():
        unlabelled = {role: column for role, column in task["columns"].items() if role != "label"}
        values = {
            "task": {
                "name": form,
                "form": form,
                "format": "jsonl",
                "splits": {
                    "train": "train.jsonl",
                    "dev": "dev.jsonl",
                    "test": {"path": "test.jsonl", "columns": unlabelled},
                },
                **task,
            },
            "model": {"dropout": 0},
            "objective": {"head_dropout": 0},
            "data": {"path": str(folder)},
            "optimizer": {"learning_rate": 1e-3},
            "schedule": {"warmup_steps": 0, "shape": "linear"},
            "training": {"max_steps": 6, "global_batch_size": 8},
            "validation": {"interval": 3},
            "logging": {"interval": 1},
        }
        (folder / f"{form}.yaml").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """A model folder of each family."""
    return write_model_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def source(sources) -> Path:
    return sources["openai_gpt"]


def finetune(launch: Launch, device: torch.device, path: Path, overrides: dict[str, Any]) -> None:
    """A whole run through the functions that launch/finetune.py calls."""
    from gpt_dist.config.file import load_config
    from gpt_dist.finetune.run import check
    from gpt_dist.finetune.run import finetune as run
    from gpt_dist.topology import form_groups

    inputs = check(load_config(path, [f"{k}={v}" for k, v in overrides.items()]), launch)
    run(inputs, form_groups(launch, device, inputs.config.parallel.tensor_parallel_size))


@pytest.fixture(scope="module")
def reference(process_group, task_folder, source, tmp_path_factory) -> Callable[[str], Path]:
    """The directory of one process's run of each form."""
    directories: dict[str, Path] = {}

    def get(form: str) -> Path:
        if form not in directories:
            directories[form] = tmp_path_factory.mktemp(form)
            overrides = {"model.source": source, "run.directory": directories[form]}
            process_group(1).run(finetune, task_folder / f"{form}.yaml", overrides)
        return directories[form]

    return get


LAYOUTS = [(form, *sizes) for form in TASKS for sizes in ((2, 3, 1), (1, 0, 2))]
LAYOUTS += [
    ("classification", tensor, stage, data)
    for tensor, stage, data in product((1, 2), range(4), (1, 2))
    if (tensor, data) != (1, 1) and (tensor, stage, data) not in ((2, 3, 1), (1, 0, 2))
]


@pytest.mark.parametrize(("form", "tensor", "stage", "data"), sorted(LAYOUTS, key=lambda x: x[1]))
def test_every_layout_is_the_single_process(
    process_group, task_folder, source, reference, tmp_path, form, tensor, stage, data
):
    overrides = {
        "model.source": source,
        "run.directory": tmp_path,
        "parallel.tensor_parallel_size": tensor,
        "parallel.zero_stage": stage,
        "training.micro_batch_size": 4,
    }
    process_group(tensor * data).run(finetune, task_folder / f"{form}.yaml", overrides)
    assert_same(read_rows(tmp_path), read_rows(reference(form)), 1e-5)
    ours, expected = (
        json.loads((path / "results.json").read_text()) for path in (tmp_path, reference(form))
    )
    assert ours["median"]["dev"] == pytest.approx(expected["median"]["dev"], abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_family_is_fine_tuned_the_same_in_every_layout(
    process_group, task_folder, sources, tmp_path, family
):
    for name, processes, parts, stage in (("one", 1, 1, 0), ("shared", 2, 2, 0), ("zero", 2, 1, 3)):
        overrides = {
            "model.source": sources[family],
            "run.directory": tmp_path / name,
            "parallel.tensor_parallel_size": parts,
            "parallel.zero_stage": stage,
            "training.micro_batch_size": 4,
        }
        process_group(processes).run(finetune, task_folder / "classification.yaml", overrides)
        assert_same(read_rows(tmp_path / name), read_rows(tmp_path / "one"), 1e-5)


def test_a_run_is_reproducible_and_an_interrupted_one_the_same(
    process_group, task_folder, source, tmp_path
):
    dropout = {"model.source": source, "model.dropout": 0.1, "objective.head_dropout": 0.1}
    path = task_folder / "classification.yaml"
    for name in ("first", "second"):
        process_group(2).run(finetune, path, dropout | {"run.directory": tmp_path / name})
    halves = dropout | {"run.directory": tmp_path / "halves", "schedule.decay_steps": 6}
    process_group(2).run(finetune, path, halves | {"training.max_steps": 3})
    process_group(2).run(finetune, path, halves)
    expected = read_rows(tmp_path / "first")
    assert_same(read_rows(tmp_path / "second"), expected, 0.0)
    assert_same(read_rows(tmp_path / "halves"), expected, 0.0)
    results = [
        json.loads((tmp_path / name / "results.json").read_text())
        for name in ("first", "second", "halves")
    ]
    assert results[0]["seeds"] == results[1]["seeds"] == results[2]["seeds"]


def test_several_seeds_have_folders_of_their_own_and_a_median(
    process_group, task_folder, source, tmp_path
):
    overrides = {"model.source": source, "run.directory": tmp_path, "run.seeds": [3, 4, 5]}
    process_group(2).run(finetune, task_folder / "entailment.yaml", overrides)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [one["seed"] for one in results["seeds"]] == [3, 4, 5]
    accuracies = sorted(one["scores"]["dev"]["accuracy"] for one in results["seeds"])
    assert results["median"]["dev"]["accuracy"] == accuracies[1]
    assert results["spread"]["dev"]["accuracy"] == pytest.approx(accuracies[2] - accuracies[0])
    assert (tmp_path / "seed-4" / "metrics.jsonl").is_file()
    assert (tmp_path / "model" / "task.json").is_file()


def test_a_checkpoint_whose_task_is_not_understood_is_refused(reference, tmp_path):
    path = step_path(reference("classification") / "checkpoints", 6)
    checkpoint = shutil.copytree(path, tmp_path / path.name)
    forge(checkpoint, ["config", "task", "form"], "riddle")
    with pytest.raises(CheckpointError, match=r"config\.task: form: "):
        save_task_model(Checkpoint(checkpoint), tmp_path / "model")


def test_what_a_run_leaves(reference):
    directory = reference("classification")
    predictions = (directory / "test.tsv").read_text().splitlines()
    assert predictions[0] == "index\tprediction"
    assert [line.split("\t")[0] for line in predictions[1:]] == [str(i) for i in range(7)]
    assert {line.split("\t")[1] for line in predictions[1:]} <= {"no", "yes"}
    best = json.loads((directory / "results.json").read_text())["seeds"][0]["best_step"]
    scores = {
        row["step"]: row["dev_matthews"] for row in read_rows(directory) if "dev_matthews" in row
    }
    trained = {step: value for step, value in scores.items() if step}
    assert trained[best] == max(trained.values())


def refusal(launch: Launch, device: torch.device, path: Path, overrides: dict[str, Any]) -> str:
    from gpt_dist.errors import GptDistError

    try:
        finetune(launch, device, path, overrides)
    except GptDistError as error:
        return str(error)
    return ""


def judge_nothing(_launch: Launch, _device: torch.device) -> str:
    from gpt_dist.data.tasks.examples import EncodedSplit
    from gpt_dist.errors import TrainingError
    from gpt_dist.finetune.predict import Evaluator

    place = np.arange(2)
    split = EncodedSplit(np.zeros(1, np.int32), place, place, np.zeros(1, np.int64), ("0",))
    task = TaskConfig.model_validate(NAMED | TASKS["classification"])
    try:
        Evaluator(lambda *_: torch.tensor([[0.0, torch.nan]]), task, 1, dist.group.WORLD).judge(
            split
        )
    except TrainingError as error:
        return str(error)
    return ""


def test_a_score_that_is_no_number_is_refused(process_group):
    (message,) = process_group(1).run(judge_nothing)
    assert "a score is not a finite number; lower optimizer.learning_rate" in message


def test_a_begun_run_needs_its_source_no_more(process_group, task_folder, source, tmp_path):
    path = task_folder / "classification.yaml"
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    halves = {"model.source": copy, "run.directory": tmp_path / "run", "schedule.decay_steps": 6}
    process_group(2).run(finetune, path, halves | {"training.max_steps": 3})
    shutil.rmtree(copy)
    process_group(2).run(finetune, path, halves)
    whole = {"model.source": source, "run.directory": tmp_path / "whole"}
    process_group(2).run(finetune, path, whole)
    assert_same(read_rows(tmp_path / "run"), read_rows(tmp_path / "whole"), 0.0)
    results = [
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "whole")
    ]
    assert results[0]["seeds"] == results[1]["seeds"]
    assert results[0]["source"] == str(copy)


def test_a_run_goes_on_from_the_source_it_began_with_though_there_is_a_newer(
    process_group, task_folder, source, tmp_path
):
    path = task_folder / "classification.yaml"
    base = {"model.source": source, "run.directory": tmp_path / "base", "validation.interval": 1}
    base |= {"training.max_steps": 1, "schedule.decay_steps": 6}
    process_group(1).run(finetune, path, base)
    checkpoints = tmp_path / "base" / "checkpoints"
    run = {"model.source": checkpoints, "run.directory": tmp_path / "run"}
    run |= {"schedule.decay_steps": 6}
    process_group(1).run(finetune, path, run | {"training.max_steps": 3})
    process_group(1).run(finetune, path, base | {"training.max_steps": 2})
    process_group(1).run(finetune, path, run)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["source"] == str(checkpoints / "step-00000001")
    assert results["source_step"] == 1


def test_one_seed_and_several_do_not_share_a_directory(
    process_group, task_folder, source, tmp_path
):
    path = task_folder / "classification.yaml"
    one = {"model.source": source, "run.directory": tmp_path / "one", "training.max_steps": 1}
    process_group(1).run(finetune, path, one)
    (message,) = process_group(1).run(refusal, path, one | {"run.seeds": [1, 2]})
    assert "holds a run of one seed" in message
    several = one | {"run.directory": tmp_path / "several"}
    process_group(1).run(finetune, path, several | {"run.seeds": [1]})
    (message,) = process_group(1).run(refusal, path, several)
    assert "holds runs of run.seeds" in message


def test_another_experiment_in_the_same_directory_is_refused(
    process_group, task_folder, source, tmp_path
):
    path = task_folder / "classification.yaml"
    first = {"model.source": source, "run.directory": tmp_path}
    process_group(2).run(finetune, path, first)
    before = (tmp_path / "results.json").read_bytes()
    for change, expected in (
        ({"model.transferred_layers": 1}, "model.transferred_layers: null there, 1 here"),
        ({"objective.auxiliary_weight": 0}, "objective.auxiliary_weight: 0.5 there, 0.0 here"),
        ({"training.max_steps": 4}, "training.max_steps: 6 steps made, 4 here"),
        ({"optimizer.learning_rate": 0.5}, "optimizer.learning_rate: 0.001 there, 0.5 here"),
        ({"schedule.shape": "constant"}, 'schedule.shape: "linear" there, "constant" here'),
        ({"training.precision": "bf16"}, 'training.precision: "fp32" there, "bf16" here'),
    ):
        for message in process_group(2).run(refusal, path, first | change):
            assert expected in message
    assert (tmp_path / "results.json").read_bytes() == before
    process_group(2).run(finetune, path, first)
    assert (tmp_path / "results.json").read_bytes() == before


def test_where_the_best_weights_are_damaged_the_next_best_are_taken(
    process_group, task_folder, source, tmp_path
):
    path = task_folder / "similarity.yaml"
    settings = {"model.source": source, "run.directory": tmp_path, "validation.interval": 1}
    process_group(2).run(finetune, path, settings | {"checkpoint.keep": 6})
    rows = read_rows(tmp_path)
    scores = {row["step"]: row["dev_pearson"] for row in rows if "dev_pearson" in row}
    stated = {2: 0.98, 3: 0.99}  # as though those two had done best
    for row in rows:
        if "dev_pearson" in row:
            row["dev_pearson"] = stated.get(row["step"], row["dev_pearson"])
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    (tmp_path / "checkpoints/step-00000003/rank-00000.safetensors").write_bytes(b"")
    process_group(2).run(finetune, path, settings)
    (seed,) = json.loads((tmp_path / "results.json").read_text())["seeds"]
    assert seed["best_step"] == 2
    assert seed["scores"]["dev"]["pearson"] == pytest.approx(scores[2], abs=1e-6)


def test_seeds_that_start_anew_set_the_results_of_the_old_aside(
    process_group, task_folder, source, tmp_path
):
    path = task_folder / "classification.yaml"
    settings = {"model.source": source, "run.directory": tmp_path, "training.max_steps": 1}
    process_group(1).run(finetune, path, settings | {"run.seeds": [1]})
    before = (tmp_path / "results.json").read_bytes()
    anew = settings | {"run.seeds": [2], "training.resume": "never"}
    process_group(1).run(finetune, path, anew)
    assert (tmp_path / "earlier-1/results.json").read_bytes() == before
    assert (tmp_path / "earlier-1/model/task.json").is_file()


def test_a_source_that_later_seeds_need_is_named(process_group, task_folder, source, tmp_path):
    path = task_folder / "classification.yaml"
    base = {"model.source": source, "run.directory": tmp_path / "base", "training.max_steps": 1}
    process_group(1).run(finetune, path, base)
    checkpoints = tmp_path / "base/checkpoints"
    settings = {"model.source": checkpoints, "training.max_steps": 1}
    settings |= {"run.directory": tmp_path / "run"}
    process_group(1).run(finetune, path, settings | {"run.seeds": [1]})
    (checkpoints / "step-00000001").rename(checkpoints / "step-00000002")
    (message,) = process_group(1).run(refusal, path, settings | {"run.seeds": [1, 2]})
    assert f"{checkpoints}/step-00000001, from which seeds of this run began, is gone" in message
