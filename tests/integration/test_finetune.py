"""Test fine-tuning, prediction and the score table through the commands that users type."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_dist.checkpoint.folder import steps
from gpt_dist.config.file import load_config
from gpt_dist.errors import GptDistError
from gpt_dist.finetune.run import check
from gpt_dist.rendezvous import Launch
from tests.launching import launch, launcher_words
from tests.models import write_model_folders
from tests.rows import assert_same, read_rows
from tests.supervising import Supervised

TASK = """
task:
  name: Fish
  form: classification
  format: tsv
  columns: {text: text, label: label}
  splits: {train: train.tsv, dev: dev.tsv}
  labels: [no, yes]
  metric: accuracy
optimizer: {learning_rate: 3e-3}
schedule: {warmup_fraction: 0.1, shape: linear}
training: {max_steps: 30, global_batch_size: 8}
validation: {interval: 10}
logging: {interval: 1}
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    """Write a task that is easy to learn: decide whether a text has a fish in it."""
    folder = tmp_path_factory.mktemp("fish")
    (folder / "fish.yaml").write_text(TASK)
    words = ["the", "old", "man", "went", "down", "to", "sea", "and", "came", "home"]
    for name, first in (("train", 0), ("dev", 1000)):
        lines = ["text\tlabel"]
        for number in range(first, first + 80):
            text = " ".join(words[(number * 3 + i) % len(words)] for i in range(2 + number % 5))
            lines.append(f"{text} fish\tyes" if number % 2 else f"{text}\tno")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_model_folders(tmp_path_factory.mktemp("models"))["gpt2"]


def run(*command: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], input=given, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def finished(task, source, tmp_path_factory) -> Path:
    """Return the directory of a run under deepspeed, with two processes."""
    directory = tmp_path_factory.mktemp("run")
    done = launch(
        "deepspeed",
        *(f"model.source={source}", f"data.path={task}", f"run.directory={directory}"),
        "parallel.zero_stage=2",
        script="finetune",
        config=str(task / "fish.yaml"),
    )
    assert done.returncode == 0, done.stderr
    assert "Fish, seed 42, weights of step" in done.stdout
    assert " train, " in done.stderr
    return directory


def test_a_launcher_with_two_processes_gives_the_losses_of_one(task, source, finished, tmp_path):
    done = launch(
        "python",
        *(f"model.source={source}", f"data.path={task}", f"run.directory={tmp_path}"),
        *("model.dropout=0", "objective.head_dropout=0"),
        script="finetune",
        config=str(task / "fish.yaml"),
    )
    assert done.returncode == 0, done.stderr
    again = launch(
        "torchrun",
        *(f"model.source={source}", f"data.path={task}", f"run.directory={tmp_path / 'two'}"),
        *("model.dropout=0", "objective.head_dropout=0", "parallel.tensor_parallel_size=2"),
        script="finetune",
        config=str(task / "fish.yaml"),
    )
    assert again.returncode == 0, again.stderr
    assert_same(read_rows(tmp_path / "two"), read_rows(tmp_path), 1e-4)
    assert {row["step"] for row in read_rows(finished)} == {
        row["step"] for row in read_rows(tmp_path)
    }


@pytest.mark.faults
def test_a_supervised_run_whose_process_is_killed_ends_as_if_undisturbed(task, source, tmp_path):
    settings = [f"model.source={source}", f"data.path={task}", "parallel.zero_stage=2"]
    settings += ["training.max_steps=300", "validation.interval=50", "checkpoint.interval=50"]
    what = {"script": "finetune", "config": str(task / "fish.yaml")}
    whole, directory = tmp_path / "whole", tmp_path / "run"
    done = launch("deepspeed", *settings, f"run.directory={whole}", **what)
    assert done.returncode == 0, done.stderr
    words = [*launcher_words("deepspeed"), "launch/finetune.py", what["config"], *settings]
    words.append(f"run.directory={directory}")
    supervised = Supervised(directory, ["--back-off", "0.1"], words)
    supervised.wait_until(lambda: steps(directory / "checkpoints"))
    ranks = [one for one in supervised.below if "launch/finetune.py" in one.cmdline()[:3]]
    ranks[-1].kill()
    assert supervised.wait() == 0, supervised.console
    assert supervised.said("start 2 from"), supervised.log
    assert_same(read_rows(directory), read_rows(whole), 0.0)
    assert (directory / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_predictions_of_the_kept_model(finished, task):
    lines = [line.split("\t") for line in (task / "dev.tsv").read_text().splitlines()[1:]]
    given = "".join(json.dumps({"text": text}) + "\n" for text, _ in lines)
    done = run("launch/predict.py", str(finished / "model"), given=given)
    assert done.returncode == 0, done.stderr
    predictions = [json.loads(line) for line in done.stdout.splitlines()]
    right = [one["label"] == label for one, (_, label) in zip(predictions, lines, strict=True)]
    results = json.loads((finished / "results.json").read_text())
    assert sum(right) / len(right) == pytest.approx(results["median"]["dev"]["accuracy"])
    named = run("launch/predict.py", str(finished / "model"), "-", given=given)
    assert (named.returncode, named.stdout) == (0, done.stdout)
    for one in predictions:
        assert sum(one["probabilities"].values()) == pytest.approx(1)
        assert one["probabilities"][one["label"]] == max(one["probabilities"].values())


def test_several_processes_need_a_file(finished, monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    done = run("launch/predict.py", str(finished / "model"), "-", given='{"text": "a"}\n')
    assert done.returncode == 2
    assert "FILE: several processes cannot share the standard input; give a file" in done.stderr


def test_evaluation_gives_the_kept_score(finished, task):
    done = run("launch/evaluate.py", str(finished / "model"), "--task", str(task))
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    expected = json.loads((finished / "results.json").read_text())["median"]["dev"]
    lines = len((task / "dev.tsv").read_text().splitlines()) - 1
    assert row == {"task": "Fish", "split": "dev", "examples": lines, **expected}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('{"text": "a"}\n{"texts": "b"}\n', "line 2: no 'text'"),
        (f'{{"text": {"1" * 5000}}}\n', "line 1: not JSON"),
        ("the old man\n", "line 1"),
        ("", "no examples"),
    ],
)
def test_bad_input_of_a_prediction_is_named_with_its_line(finished, given, expected):
    done = run("launch/predict.py", str(finished / "model"), given=given)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_task_keeps_the_tokens_that_the_first_has_trained(task, source, finished):
    def has_trained_tokens(path: Path) -> bool:
        values = [f"model.source={path}", f"data.path={task}", f"run.directory={finished / 'next'}"]
        inputs = check(load_config(task / "fish.yaml", values), Launch("test", 0, 1, 0, 1))
        assert inputs.source
        return inputs.source.fine_tuned

    assert not has_trained_tokens(source)
    assert has_trained_tokens(finished / "model")
    assert has_trained_tokens(finished / "checkpoints")
    assert has_trained_tokens(finished)


def test_output_that_nobody_reads_to_its_end_is_no_error(finished):
    given = '{"text": "a"}\\n' * 3
    script = f"printf '{given}' | {sys.executable} -u launch/predict.py {finished}/model | true"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert "Traceback" not in done.stderr


def test_a_finished_run_stands_for_its_best_model_and_is_not_consolidated(finished, tmp_path):
    done = run("launch/predict.py", str(finished), given='{"text": "a"}\n')
    assert done.returncode == 0, done.stderr
    done = run("launch/consolidate.py", str(finished), "--output", str(tmp_path / "model"))
    assert done.returncode == 2
    assert f"{finished / 'model'} already" in done.stderr


def test_the_score_table(finished):
    done = run("launch/scoreboard.py", str(finished), "--markdown")
    assert done.returncode == 0, done.stderr
    assert "Fish" in done.stdout
    score = json.loads((finished / "results.json").read_text())["median"]["dev"]["accuracy"]
    assert f"{100 * score:.1f}" in done.stdout


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("model.source=null", "model.source: not given"),
        ("model.source=none", "data.tokenizer: not given"),
        ("model.source=absent", "model.source: absent: no such folder"),
        ("model.num_layers=5", "model.num_layers: 5 is not the 2 of model.source"),
        ("data.path=absent", "absent/train.tsv: no such file"),
        ("task.labels=[no, maybe]", "train.tsv, line 3: unknown label 'yes'"),
        ("task.columns={text: words, label: label}", "line 1: no single column 'words'"),
        ("task.metric=pearson", "task.metric: pearson does not judge classes"),
        ("task.form=similarity", "task.columns.text: similarity has a, b, label, id"),
        ("model.vocab_size=9", "model.vocab_size: 9 is not the"),
        ("model.transferred_layers=9", "model.transferred_layers: 9 is more than the 2"),
    ],
)
def test_a_bad_configuration_is_refused_by_name(task, source, tmp_path, change, expected):
    values = [f"model.source={source}", f"data.path={task}", f"run.directory={tmp_path}", change]
    with pytest.raises(GptDistError, match=re.escape(expected)):
        check(load_config(task / "fish.yaml", values), Launch("test", 0, 1, 0, 1))
