"""Solve tasks with a model that was only pre-trained (Radford et al. 2018, section 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup

from gpt_dist.config import ResolvedModelConfig, TaskConfig
from gpt_dist.data.tasks.reading import DEV, TRAIN, Example, dev_splits, read_split
from gpt_dist.data.tokenizers.tokenizer import Tokenizer, encode_as_trained
from gpt_dist.data.tokens.shards import Ids
from gpt_dist.errors import ConfigError, ModelError
from gpt_dist.finetune.scores import score
from gpt_dist.model import GPT, IGNORED_LABEL
from gpt_dist.progress import Report

_PERCENTILES = range(1, 100)

ScoreRow = dict[str, str | int | float]


@dataclass(frozen=True, eq=False)
class Questions:
    """Examples of a split as token sequences whose ends a model is to predict."""

    sequences: list[Ids]
    """Each has at most sequence_length + 1 tokens; the last one is only predicted."""
    answer_lengths: NDArray[np.int64]
    """Number of last tokens to predict in each sequence."""
    example_starts: NDArray[np.int64]
    """Example i has the sequences from example_starts[i] up to example_starts[i + 1]."""


class ZeroShotTask:
    """Examples of a task, encoded once for all models with one tokenizer and context length."""

    def __init__(
        self,
        task: TaskConfig,
        folder: Path,
        split: str | None,
        tokenizer: Tokenizer,
        config: ResolvedModelConfig,
    ) -> None:
        """Read and encode one split, or every one named dev or dev_….

        Raises:
            ConfigError: The task has no heuristic, or the split has no labels.
            DataError: The input is bad.
        """
        check_zero_shot(task)
        self.task = task
        self._names = [split] if split else dev_splits(task)
        needed = [TRAIN, *self._names] if _by_threshold(task) else self._names
        self._splits = {}
        for name in dict.fromkeys(needed):
            examples = read_split(folder, task, name)
            labels = [example.label for example in examples]
            if labels[0] is None:
                raise ConfigError(f"--split: {name} of {task.name} has no labels; give another")
            questions = encode_questions(examples, task, tokenizer, config)
            self._splits[name] = questions, np.array(labels)

    def evaluate(
        self, model: GPT, batch_size: int, group: ProcessGroup, report: Report
    ) -> list[ScoreRow]:
        """Return a row of scores for each split, and for several together under `dev`.

        All processes of the data-parallel group call this and get the same rows. A batch holds as
        many tokens as batch_size windows of the model's whole context.
        """
        found = {
            name: log_probabilities(model, questions, batch_size, group, partial(report, name))
            for name, (questions, _) in self._splits.items()
        }
        threshold = None
        if _by_threshold(self.task):
            questions, targets = self._splits[TRAIN]
            threshold = find_threshold(self.task, questions, found[TRAIN], targets)
        judged = {}
        for name in self._names:
            questions, targets = self._splits[name]
            judged[name] = targets, predict(self.task, questions, found[name], threshold)
        if len(judged) > 1:
            targets, predictions = zip(*judged.values(), strict=True)
            judged[DEV] = np.concatenate(targets), np.concatenate(predictions)
        chosen = {} if threshold is None else {"threshold": threshold}
        return [
            {
                "task": self.task.name,
                "split": name,
                "examples": len(pair[0]),
                **score(self.task, *pair),
                **chosen,
            }
            for name, pair in judged.items()
        ]


def check_zero_shot(task: TaskConfig) -> None:
    """Raise ConfigError, naming the key, for a task that has no heuristic."""
    given = task.zero_shot
    if task.form == "multiple_choice":
        if given is not None:
            raise ConfigError("task.zero_shot: multiple_choice does not use it; leave it out")
        return
    if task.form != "classification":
        raise ConfigError(
            f"task.form: there is no zero-shot heuristic for {task.form}, only for classification "
            "and multiple_choice"
        )
    if given is None or (given.words is None) == (given.likely_label is None):
        raise ConfigError(
            "task.zero_shot: classification needs words, one for each label, or likely_label; give "
            "one of them"
        )
    labels = task.labels or []
    if given.words is not None:
        different = {word.strip() for word in given.words} - {""}
        if not labels or len(different) != len(labels) or len(given.words) != len(labels):
            raise ConfigError(
                f"task.zero_shot.words: {given.words!r} are not {len(labels)} different words, one "
                "for each of task.labels"
            )
        return
    if given.prompt:
        raise ConfigError("task.zero_shot.prompt: goes with words, not with likely_label")
    if len(labels) != 2 or given.likely_label not in labels:
        raise ConfigError(
            f"task.zero_shot.likely_label: {given.likely_label!r} is not one of two task.labels, "
            f"which are {', '.join(labels) or 'left out'}"
        )


def encode_questions(
    examples: Sequence[Example],
    task: TaskConfig,
    tokenizer: Tokenizer,
    config: ResolvedModelConfig,
) -> Questions:
    """Encode each example as one sequence per word or choice, or as its text alone.

    A text follows the end-of-text token if the model knows it; otherwise the text's first token is
    not predicted. A text too long for the model's context loses its beginning, by the same amount
    before all answers of an example. An answer too long loses its end.
    """
    encoder = _Encoder(task, tokenizer, config)
    sequences, lengths, starts = [], [], [0]
    for example in examples:
        for sequence, length in encoder.sequences(example):
            sequences.append(sequence)
            lengths.append(length)
        starts.append(len(sequences))
    return Questions(sequences, np.array(lengths), np.array(starts))


def log_probabilities(
    model: GPT,
    questions: Questions,
    batch_size: int,
    group: ProcessGroup,
    report: Callable[[int, int], None],
) -> NDArray[np.float64]:
    """Return the log-probability, in nats, of each sequence's answer [R].

    All processes of the data-parallel group `group` call this, share the work and get the same.

    Raises:
        ModelError: A probability is not finite, since the model's training diverged.
    """
    device = next(model.parameters()).device
    lengths = np.array([len(sequence) for sequence in questions.sequences])
    asked = np.flatnonzero(questions.answer_lengths)
    # Similar lengths need little padding. The longest come first: memory runs out early or never.
    order = asked[np.argsort(-lengths[asked], kind="stable")][group.rank() :: group.size()]
    total = torch.zeros(len(lengths), dtype=torch.float64, device=device)
    first, done, tokens = 0, 0, int(lengths[order].sum())
    while first < len(order):
        fitting = batch_size * model.config.sequence_length // (lengths[order[first]] - 1)
        batch = order[first : first + fitting]
        inputs, labels = (part.to(device) for part in _collate(questions, batch))
        total[torch.from_numpy(batch).to(device)] = _answer_log_probabilities(model, inputs, labels)
        first, done = first + len(batch), done + int(lengths[batch].sum())
        report(done, tokens)
    dist.all_reduce(total, group=group)
    if not total.isfinite().all():
        raise ModelError("the model's probabilities are not finite: its training diverged")
    return total.cpu().numpy()


def find_threshold(
    task: TaskConfig,
    questions: Questions,
    log_probabilities: NDArray[np.float64],
    targets: NDArray[Any],
) -> float:
    """Return the average log-probability above which texts get task.zero_shot.likely_label.

    It is the percentile of the labelled examples that gives the best task.metric.
    """
    candidates = np.percentile(_averages(questions, log_probabilities), _PERCENTILES).tolist()

    def quality(threshold: float) -> float:
        predictions = predict(task, questions, log_probabilities, threshold)
        return score(task, targets, predictions)[task.metric]

    return max(candidates, key=quality)


def predict(
    task: TaskConfig,
    questions: Questions,
    log_probabilities: NDArray[np.float64],
    threshold: float | None = None,
) -> NDArray[np.int64]:
    """Return the class or choice of each example.

    Words are compared by their total log-probability, choices by the average over their tokens. A
    text's average is compared with the threshold.
    """
    averages = _averages(questions, log_probabilities)
    if _by_threshold(task):
        assert threshold is not None
        assert task.zero_shot is not None
        assert task.labels is not None
        likely = task.labels.index(str(task.zero_shot.likely_label))
        return np.where(averages > threshold, likely, 1 - likely)
    compared = averages if task.form == "multiple_choice" else log_probabilities
    parts = np.split(compared, questions.example_starts[1:-1])
    return np.array([part.argmax() for part in parts])


class _Encoder:
    """Encoder of examples as sequences."""

    def __init__(self, task: TaskConfig, tokenizer: Tokenizer, config: ResolvedModelConfig) -> None:
        self._task = task
        self._encode = partial(encode_as_trained, tokenizer)
        self._context = config.sequence_length
        known = tokenizer.end_of_text < config.vocab_size
        self._start = np.array([tokenizer.end_of_text] if known else [], dtype=np.int32)

    def sequences(self, example: Example) -> list[tuple[Ids, int]]:
        """Return each sequence with the number of its last tokens to predict."""
        if _by_threshold(self._task):
            before, answers = self._start, [self._encode(example.texts[0])]
        else:
            zero_shot = self._task.zero_shot
            prompt = zero_shot.prompt if zero_shot else ""
            continuations = (zero_shot and zero_shot.words) or example.choices
            text = " ".join(" ".join([*example.texts, prompt]).split())
            before = np.concatenate([self._start, self._encode(text)])
            answers = [self._encode_after(text, answer.strip()) for answer in continuations]
        answers = [answer[: self._context] for answer in answers]
        room = self._context + 1 - max(map(len, answers))
        before = before[-room:]
        sequences = [np.concatenate([before, answer]) for answer in answers]
        return [
            (sequence, min(len(answer), max(0, len(sequence) - 1)))
            for sequence, answer in zip(sequences, answers, strict=True)
        ]

    def _encode_after(self, text: str, answer: str) -> Ids:
        """Return the tokens of an answer after a text; the first contains the space between."""
        last = text.rpartition(" ")[2]
        return self._encode(f"{last} {answer}".strip())[len(self._encode(last)) :]


def _collate(questions: Questions, numbers: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return inputs and labels [B, T] of some sequences, padded on the right."""
    sequences = [questions.sequences[number] for number in numbers]
    inputs = torch.zeros(len(sequences), max(map(len, sequences)) - 1, dtype=torch.int64)
    labels = torch.full_like(inputs, IGNORED_LABEL)
    for row, (sequence, length) in enumerate(
        zip(sequences, questions.answer_lengths[numbers], strict=True)
    ):
        end = len(sequence) - 1
        inputs[row, :end] = torch.from_numpy(sequence[:-1])
        labels[row, end - length : end] = torch.from_numpy(sequence[-length:])
    return inputs, labels


@torch.no_grad()
def _answer_log_probabilities(model: GPT, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probability [B] of the labels in each row [B, T], in fp64."""
    hidden = model(inputs)  # [B, T, D]
    asked = labels != IGNORED_LABEL  # [B, T], N of them
    # Only these positions go through the head, whose output is by far the largest tensor.
    losses = model.token_losses(hidden[asked][None], labels[asked][None])[0]  # [N]
    total = torch.zeros(len(labels), dtype=torch.float64, device=losses.device)
    return total.index_add(0, asked.nonzero()[:, 0], -losses.double())


def _averages(questions: Questions, log_probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return averages per token; 0 where no token could be predicted."""
    return log_probabilities / np.maximum(questions.answer_lengths, 1)


def _by_threshold(task: TaskConfig) -> bool:
    return task.zero_shot is not None and task.zero_shot.likely_label is not None
