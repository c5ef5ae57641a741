"""Tasks without fine-tuning: transformers' log-probabilities, on any number of processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_prep.tokenizer import train_sentencepiece
from gpt_dist.checkpoint.opened import OpenedModel, open_model
from gpt_dist.config import ModelConfig, TaskConfig
from gpt_dist.config.file import load_config
from gpt_dist.data.tasks.reading import Example
from gpt_dist.data.tokenizers.byte_pair import BytePairTokenizer
from gpt_dist.data.tokenizers.tokenizer import SentencePieceTokenizer
from gpt_dist.errors import ConfigError, ModelError
from gpt_dist.finetune.zero_shot import (
    check_zero_shot,
    encode_questions,
    evaluate_zero_shot,
    log_probabilities,
    predict,
)
from gpt_dist.model import GPT, load_model
from gpt_dist.progress import silent
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import Topology, form_groups
from tests.models import FAMILIES, sample_texts, write_model_folders
from tests.runs import train

transformers = pytest.importorskip("transformers")

LENGTH = 32
WORDS = ["bad", "very good", "of middling quality"]
SENTENCES = [" ".join(line.split()[:20]) for line in next(sample_texts()).split("\n")[40:80]]


def make_task(form: str, **keys: Any) -> TaskConfig:
    columns: dict[str, Any] = {"text": "text", "label": "label"}
    if form == "multiple_choice":
        columns = {"context": "text", "choices": "choices", "label": "label"}
    defaults = {
        "name": "mine",
        "form": form,
        "format": "jsonl",
        "columns": columns,
        "splits": {"train": "train.jsonl", "dev": "dev.jsonl"},
        "labels": None if form == "multiple_choice" else ["0", "1"],
        "metric": "accuracy",
    }
    return TaskConfig.model_validate_json(json.dumps(defaults | keys), strict=True)


BY_WORDS = make_task(
    "classification",
    labels=["0", "1", "2"],
    zero_shot={"prompt": "it was", "words": WORDS},
)
BY_THRESHOLD = make_task("classification", metric="matthews", zero_shot={"likely_label": "0"})
CHOICES = make_task("multiple_choice")
TASKS = pytest.mark.parametrize("task", [BY_WORDS, BY_THRESHOLD, CHOICES])


def make_examples(task: TaskConfig) -> list[Example]:
    """Some longer than the model's context, and so is one of the choices."""
    long = " ".join(SENTENCES[:4])
    if task.form != "multiple_choice":
        return [Example((text,), (), 0, "") for text in (*SENTENCES[:9], "so", long)]
    choices = (*SENTENCES[20:23], "no", long)
    return [
        Example((text, "what then?")[: 1 + number % 2], choices[: 2 + number], 0, "")
        for number, text in enumerate((*SENTENCES[:3], long))
    ]


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_model_folders(tmp_path_factory.mktemp("models"))


def solve(
    launch: Launch,
    device: torch.device,
    folder: Path,
    task: TaskConfig,
    batch_size: int = 8,
    tensor_parallel_size: int = 1,
    examples: list[Example] | None = None,
) -> tuple[list[float], list[int], list[int]]:
    """Log-probabilities, lengths of the answers, predictions."""
    opened = open_model(folder)
    topology = form_groups(launch, device, tensor_parallel_size)
    model = load_model(opened.tensors, opened.config, topology.tensor_parallel_group).eval()
    examples = examples or make_examples(task)
    questions = encode_questions(examples, task, opened.tokenizer, opened.config)
    group = topology.data_parallel_group
    found = log_probabilities(model, questions, batch_size, group, lambda *_: None)
    threshold = float(np.median(found / questions.answer_lengths))
    predictions = predict(task, questions, found, threshold)
    return found.tolist(), questions.answer_lengths.tolist(), predictions.tolist()


def reference(folder: Path, task: TaskConfig, examples: list[Example]) -> list[list[float]]:
    """Per example the log-probabilities of each answer's tokens, by transformers, one by one."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for example in examples:
        text = " ".join(example.texts)
        if task is BY_THRESHOLD:
            text, joined = "", [text]
        elif task is BY_WORDS:
            text, joined = f"{text} it was", [f"{text} it was {word}" for word in WORDS]
        else:
            joined = [f"{text} {choice}" for choice in example.choices]
        before = [tokenizer.eos_token_id, *(tokenizer(text)["input_ids"] if text else [])]
        answers = [tokenizer(each)["input_ids"][len(before) - 1 :][:LENGTH] for each in joined]
        kept = before[-(LENGTH + 1 - max(map(len, answers))) :]
        for answer in answers:
            ids = torch.tensor([kept + answer])
            with torch.no_grad():
                scores = model(ids[:, :-1]).logits[0].log_softmax(-1)
            tokens = scores.gather(1, ids[0, 1:, None])[-len(answer) :, 0]
            found.append(tokens.double().tolist())
    return found


@TASKS
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_transformers(process_group, model_folders, task, family):
    folder = model_folders[family]
    tokens = reference(folder, task, make_examples(task))
    for size in (1, 2):
        for found, lengths, _ in process_group(size).run(solve, folder, task, 8, size):
            assert lengths == [len(each) for each in tokens]
            averages = np.array(found) / lengths
            assert averages == pytest.approx([np.mean(each) for each in tokens], rel=1e-5)


@TASKS
def test_batches_and_processes_change_nothing(process_group, model_folders, task):
    (alone,) = process_group(1).run(solve, model_folders["openai_gpt"], task)
    for batch_size, tensor_parallel_size in ((1, 1), (3, 1), (100, 1), (3, 2)):
        for found, lengths, predictions in process_group(2).run(
            solve, model_folders["openai_gpt"], task, batch_size, tensor_parallel_size
        ):
            assert found == pytest.approx(alone[0], rel=1e-5)
            assert (lengths, predictions) == alone[1:]


def test_other_examples_change_nothing(process_group, model_folders):
    examples = make_examples(CHOICES)
    (together,) = process_group(1).run(solve, model_folders["gpt2"], CHOICES)
    (alone,) = process_group(1).run(solve, model_folders["gpt2"], CHOICES, 8, 1, examples[1:2])
    first = len(examples[0].choices)
    assert alone[0] == pytest.approx(together[0][first:][: len(alone[0])], rel=1e-5)


def test_what_is_compared(process_group, model_folders):
    """Words by their whole log-probability, choices by the average, texts with the threshold."""
    folder = model_folders["openai_gpt"]
    for task in (BY_WORDS, CHOICES):
        examples = make_examples(task)
        tokens = iter(reference(folder, task, examples))
        measure = sum if task is BY_WORDS else np.mean
        expected = [
            int(np.argmax([measure(next(tokens)) for _ in example.choices or WORDS]))
            for example in examples
        ]
        (found,) = process_group(1).run(solve, folder, task)
        assert found[2] == expected
    averages = [
        np.mean(each) for each in reference(folder, BY_THRESHOLD, make_examples(BY_THRESHOLD))
    ]
    (found,) = process_group(1).run(solve, folder, BY_THRESHOLD)
    assert found[2] == [int(average <= np.median(averages)) for average in averages]


def test_long_contexts_keep_their_end(model_folders):
    opened = open_model(model_folders["openai_gpt"])
    ends = [" ".join(SENTENCES[:8]), " ".join(SENTENCES[4:8])]
    examples = [Example((text,), ("yes", "not at all"), 0, "") for text in ends]
    questions = encode_questions(examples, CHOICES, opened.tokenizer, opened.config)
    first, second, *others = [sequence.tolist() for sequence in questions.sequences]
    assert [first, second] == others
    assert len(second) == LENGTH + 1
    short, long = questions.answer_lengths[:2]
    assert first[:-short] == second[:-long]


def test_a_tokenizer_made_of_lower_case_gets_lower_case(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train_sentencepiece((text.lower() for text in sample_texts()), 500))
    tokenizer, config = SentencePieceTokenizer(path), ModelConfig(vocab_size=500)
    capital, small = (
        encode_questions([example], CHOICES, tokenizer, config)
        for example in (
            Example(("An ODD film.",), ("It is BAD", "so"), 0, ""),
            Example(("an odd film.",), ("it is bad", "so"), 0, ""),
        )
    )
    assert capital.sequences[0].tolist() == small.sequences[0].tolist()
    assert tokenizer.decode(capital.sequences[0]) == "an odd film. it is bad"


def test_a_byte_level_tokenizer_without_end_of_text():
    """The space before an answer is its own; the first token of a text is given."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    tokenizer = BytePairTokenizer(backend)
    config = ModelConfig(sequence_length=LENGTH, vocab_size=tokenizer.vocab_size)
    example = Example(("he ate",), ("the pie", "it"), 0, "")
    questions = encode_questions([example], CHOICES, tokenizer, config)
    joined = tokenizer.encode("he ate the pie").tolist()
    assert questions.sequences[0].tolist() == joined
    length = int(questions.answer_lengths[0])
    assert tokenizer.decode(joined[-length:]) == " the pie"
    texts = [Example(("he ate the pie",), (), 0, ""), Example(("z",), (), 0, "")]
    questions = encode_questions(texts, BY_THRESHOLD, tokenizer, config)
    assert [sequence.tolist() for sequence in questions.sequences] == [
        joined,
        tokenizer.encode("z").tolist(),
    ]
    assert questions.answer_lengths.tolist() == [len(joined) - 1, 0]


def put(folder: Path, split: str, labels: list[int], **fields: list[Any]) -> None:
    rows = [
        {"label": str(label), **dict(zip(fields, values, strict=True))}
        for label, *values in zip(labels, *fields.values(), strict=True)
    ]
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluate(
    launch: Launch,
    device: torch.device,
    model: Path,
    task: TaskConfig,
    data: Path,
    split: str | None,
) -> list[dict[str, Any]]:
    def load(opened: OpenedModel) -> tuple[GPT, OpenedModel, Topology]:
        topology = form_groups(launch, device, 1)
        gpt = load_model(opened.tensors, opened.config, topology.tensor_parallel_group).eval()
        return gpt, opened, topology

    return evaluate_zero_shot(task, data, split, open_model(model), load, 8, silent)


def test_the_threshold_is_the_best_of_train_alone(process_group, model_folders, tmp_path):
    folder = model_folders["openai_gpt"]
    examples = [Example((text,), (), 0, "") for text in SENTENCES]
    averages = np.array([np.mean(each) for each in reference(folder, BY_THRESHOLD, examples)])
    cut = np.percentile(averages, 71.5)
    labels = (averages <= cut).astype(int).tolist()  # 0 is the likely label
    put(tmp_path, "train", labels, text=SENTENCES)
    put(tmp_path, "dev", [1 - label for label in labels], text=SENTENCES)
    for size in (1, 2):
        for (row,) in process_group(size).run(evaluate, folder, BY_THRESHOLD, tmp_path, "train"):
            assert row["matthews"] == row["accuracy"] == 1
        for (row,) in process_group(size).run(evaluate, folder, BY_THRESHOLD, tmp_path, "dev"):
            assert (row["matthews"], row["accuracy"]) == (-1, 0)
            below, above = averages[averages <= cut].max(), averages[averages > cut].min()
            assert below <= row["threshold"] <= above


def test_the_command_on_a_checkpoint_under_a_launcher(process_group, token_folder, tmp_path):
    overrides = {
        "data.path": token_folder,
        "training.max_steps": 2,
        "training.global_batch_size": 2,
        "validation.max_samples": 2,
    }
    process_group(1).run(train, overrides, tmp_path / "run")
    put(tmp_path, "first", [0, 1], text=SENTENCES[:2], choices=[SENTENCES[2:4], ["yes", "no"]])
    put(tmp_path, "other", [0], text=["well"], choices=[["yes", "no"]])
    splits = {"dev_first": "first.jsonl", "dev_other": "other.jsonl"}
    task = make_task("multiple_choice", splits=splits)
    config = tmp_path / "task.yaml"
    config.write_text(json.dumps({"task": task.model_dump(), "data": {"path": str(tmp_path)}}))
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    shared = subprocess.run(
        [*torchrun, "launch/evaluate.py", str(tmp_path / "run"), "--zero-shot", str(config)],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert shared.returncode == 0, shared.stderr
    rows = [json.loads(line) for line in shared.stdout.splitlines()]
    (alone,) = process_group(1).run(evaluate, tmp_path / "run", task, tmp_path, None)
    assert rows == alone
    assert {row["step"] for row in rows} == {2}
    assert {row["split"]: row["examples"] for row in rows} == {
        "dev_first": 2,
        "dev_other": 1,
        "dev": 3,
    }


@pytest.mark.parametrize(
    ("form", "keys", "problem"),
    [
        ("classification", {}, "task.zero_shot: classification needs words"),
        ("classification", {"zero_shot": {"prompt": "very"}}, "task.zero_shot: classification"),
        (
            "classification",
            {"zero_shot": {"words": ["a", "b"], "likely_label": "0"}},
            "task.zero_shot: classification",
        ),
        ("classification", {"zero_shot": {"words": ["a"]}}, "task.zero_shot.words: "),
        ("classification", {"zero_shot": {"words": ["a", "a "]}}, "task.zero_shot.words: "),
        ("classification", {"zero_shot": {"words": ["a", " "]}}, "task.zero_shot.words: "),
        (
            "classification",
            {"zero_shot": {"words": ["a", "b"]}, "labels": None, "metric": "pearson"},
            "task.zero_shot.words: ",
        ),
        (
            "classification",
            {"zero_shot": {"likely_label": "2"}},
            "task.zero_shot.likely_label: '2' is not one of two task.labels, which are 0, 1",
        ),
        (
            "classification",
            {"zero_shot": {"likely_label": "2"}, "labels": ["0", "1", "2"]},
            "task.zero_shot.likely_label: ",
        ),
        (
            "classification",
            {"zero_shot": {"likely_label": "0", "prompt": "very"}},
            "task.zero_shot.prompt: ",
        ),
        (
            "multiple_choice",
            {"zero_shot": {"words": ["a", "b"]}},
            "task.zero_shot: multiple_choice",
        ),
        ("entailment", {}, "task.form: entailment has no zero-shot heuristic"),
        ("similarity", {"zero_shot": {"words": ["a", "b"]}}, "task.form: "),
    ],
)
def test_tasks_without_a_heuristic_are_refused(form, keys, problem):
    with pytest.raises(ConfigError, match=f"^{problem}"):
        check_zero_shot(make_task(form, **keys))


def test_a_split_without_labels_is_refused(model_folders, tmp_path):
    (tmp_path / "test.jsonl").write_text('{"text": "so", "choices": ["a", "b"]}\n')
    opened = open_model(model_folders["openai_gpt"])
    columns = {"context": "text", "choices": "choices"}
    splits = {"test": {"path": "test.jsonl", "columns": columns}}
    task = make_task("multiple_choice", splits=splits)
    with pytest.raises(ConfigError, match=r"^--split: test of mine has no labels"):
        evaluate_zero_shot(task, tmp_path, "test", opened, pytest.fail, 8, silent)


def diverge(launch: Launch, device: torch.device, folder: Path) -> str:
    """Return the error for a model whose weights are not finite."""
    opened = open_model(folder)
    topology = form_groups(launch, device, 1)
    model = load_model(opened.tensors, opened.config, topology.tensor_parallel_group).eval()
    torch.nn.init.constant_(model.position_embedding.weight, math.nan)
    examples = make_examples(CHOICES)
    questions = encode_questions(examples, CHOICES, opened.tokenizer, opened.config)
    with pytest.raises(ModelError) as error:
        log_probabilities(model, questions, 8, topology.data_parallel_group, lambda *_: None)
    return str(error.value)


def test_a_diverged_model_is_refused(process_group, model_folders):
    for message in process_group(2).run(diverge, model_folders["openai_gpt"]):
        assert message == "the model's probabilities are not finite: its training diverged"


def test_a_misspelt_key_is_named_with_the_right_one(tmp_path):
    config = tmp_path / "task.yaml"
    lines = Path("configs/finetune/sst2.yaml").read_text()
    config.write_text(lines.replace("prompt: very", "promt: very"))
    with pytest.raises(
        ConfigError, match=r"zero_shot.promt: .* did you mean task.zero_shot.prompt?"
    ):
        load_config(config, [])
