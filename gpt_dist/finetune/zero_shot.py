"""Solve tasks with a model that was only pre-trained (Radford et al. 2018, section 5)."""

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
from torch.nn.utils.rnn import pad_sequence

from gpt_dist.checkpoint.opened import OpenedModel
from gpt_dist.config import IGNORED_LABEL, ResolvedModelConfig, TaskConfig
from gpt_dist.data.tasks.reading import TRAIN, Example, dev_splits, read_labelled
from gpt_dist.data.tokenizers.tokenizer import Tokenizer, encode_as_trained
from gpt_dist.data.tokens.shards import Ids
from gpt_dist.errors import ConfigError, ModelError
from gpt_dist.finetune.objective import sequence_losses
from gpt_dist.finetune.predict import Judged, metric_rows, score
from gpt_dist.inference.assemble import Load
from gpt_dist.model import GPT
from gpt_dist.progress import Report


@dataclass(frozen=True, eq=False)
class Questions:
    """Examples of a split as token sequences whose ends a model is to predict."""

    sequences: list[Ids]
    """Each has at most sequence_length + 1 tokens; the last one is only predicted."""
    answer_lengths: NDArray[np.int64]
    """Number of last tokens to predict in each sequence."""
    example_starts: NDArray[np.int64]
    """Example i has the sequences from example_starts[i] up to example_starts[i + 1]."""
    targets: NDArray[Any]
    """Class or choice of each example."""


def evaluate_zero_shot(
    task: TaskConfig,
    folder: Path,
    split: str | None,
    opened: OpenedModel,
    load: Load,
    batch_size: int,
    report: Report,
) -> list[dict[str, Any]]:
    """Return a row of scores for one split, or for every one named dev or dev_….

    All processes call this and get the same; `load` connects them once the data are read. A batch
    holds as many tokens as batch_size windows of the model's whole context. Raises ConfigError
    where the task has no heuristic or a split no labels; DataError for bad input.
    """
    check_zero_shot(task)
    names, likely = [split] if split else dev_splits(task), _likely_class(task)
    encode = partial(encode_questions, task=task, tokenizer=opened.tokenizer, config=opened.config)
    questions = {
        name: encode(read_labelled(folder, task, name))
        for name in dict.fromkeys(names if likely is None else [TRAIN, *names])
    }
    model, opened, topology = load(opened)
    how = batch_size, topology.data_parallel_group
    found = {
        name: log_probabilities(model, one, *how, partial(report, name))
        for name, one in questions.items()
    }
    threshold = None if likely is None else _find_threshold(task, questions[TRAIN], found[TRAIN])
    judged = {}
    for name in names:
        predictions = predict(task, questions[name], found[name], threshold)
        judged[name] = Judged([], predictions, questions[name].targets)
    step = {} if opened.step is None else {"step": opened.step}
    chosen = {} if threshold is None else {"threshold": threshold}
    return [step | row | chosen for row in metric_rows(judged, task)]


def check_zero_shot(task: TaskConfig) -> None:
    """Raise ConfigError, naming the key, for a task that has no heuristic."""
    given, labels = task.zero_shot, task.labels or []
    if task.form == "multiple_choice":
        if given is not None:
            raise ConfigError("task.zero_shot: multiple_choice does not use it; leave it out")
        return
    if task.form != "classification":
        raise ConfigError(f"task.form: {task.form} has no zero-shot heuristic; fine-tune a model")
    if given is None or (given.words is None) == (given.likely_label is None):
        raise ConfigError("task.zero_shot: classification needs words or likely_label; give one")
    if given.words is not None:
        different = {word.strip() for word in given.words} - {""}
        if not labels or not len(different) == len(given.words) == len(labels):
            raise ConfigError(
                f"task.zero_shot.words: {given.words!r} are not {len(labels)} different words, one "
                "for each of task.labels"
            )
    elif given.prompt:
        raise ConfigError("task.zero_shot.prompt: goes with words, not with likely_label")
    elif len(labels) != 2 or given.likely_label not in labels:
        raise ConfigError(
            f"task.zero_shot.likely_label: {given.likely_label!r} is not one of two task.labels, "
            f"which are {', '.join(labels) or 'left out'}"
        )


def encode_questions(
    examples: Sequence[Example], task: TaskConfig, tokenizer: Tokenizer, config: ResolvedModelConfig
) -> Questions:
    """Encode each example as one sequence per word or choice, or as its text alone.

    A text follows the end-of-text token if the model knows it; otherwise the text's first token is
    not predicted. A text too long for the model's context loses its beginning, by the same amount
    before all answers of an example. An answer too long loses its end.
    """
    known = tokenizer.end_of_text < config.vocab_size
    start = np.array([tokenizer.end_of_text] if known else [], dtype=np.int32)
    sequences, lengths, starts = [], [], [0]
    for example in examples:
        text, answers = _encode(example, task, tokenizer)
        answers = [answer[: config.sequence_length] for answer in answers]
        room = config.sequence_length + 1 - max(map(len, answers))
        before = np.concatenate([start, text])[-room:]
        for answer in answers:
            sequences.append(np.concatenate([before, answer]))
            lengths.append(min(len(answer), max(0, len(sequences[-1]) - 1)))
        starts.append(len(sequences))
    targets = np.array([example.label for example in examples])
    return Questions(sequences, np.array(lengths), np.array(starts), targets)


def log_probabilities(
    model: GPT,
    questions: Questions,
    batch_size: int,
    group: ProcessGroup,
    report: Callable[[int, int], None],
) -> NDArray[np.float64]:
    """Return the log-probability, in nats, of each sequence's answer [R].

    All processes of the data-parallel group `group` call this, share the work and get the same.
    ModelError is raised if a probability is not finite, since the model's training diverged.
    """
    device = next(model.parameters()).device
    lengths = np.array([len(sequence) for sequence in questions.sequences])
    asked = np.flatnonzero(questions.answer_lengths)
    # Similar lengths need little padding. The longest come first: memory runs out early or never.
    order = asked[np.argsort(-lengths[asked], kind="stable")][group.rank() :: group.size()]
    total = torch.zeros(len(lengths), dtype=torch.float64, device=device)
    done, tokens = 0, int(lengths[order].sum())
    while len(order):
        fitting = batch_size * model.config.sequence_length // (lengths[order[0]] - 1)
        batch, order = np.split(order, [fitting])
        inputs, labels = (part.to(device) for part in _collate(questions, batch))
        with torch.no_grad():
            losses = sequence_losses(model, model(inputs), labels)
        total[torch.from_numpy(batch).to(device)] = -losses.double()
        done += int(lengths[batch].sum())
        report(done, tokens)
    dist.all_reduce(total, group=group)
    if not total.isfinite().all():
        raise ModelError("the model's probabilities are not finite: its training diverged")
    return total.cpu().numpy()


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
    averages, likely = _averages(questions, log_probabilities), _likely_class(task)
    if likely is not None:
        assert threshold is not None
        return np.where(averages > threshold, likely, 1 - likely)
    compared = averages if task.form == "multiple_choice" else log_probabilities
    parts = np.split(compared, questions.example_starts[1:-1])
    return np.array([part.argmax() for part in parts])


def _find_threshold(
    task: TaskConfig, questions: Questions, log_probabilities: NDArray[np.float64]
) -> float:
    """Return the average log-probability above which texts get task.zero_shot.likely_label.

    It is the percentile of the labelled examples that gives the best task.metric.
    """

    def quality(threshold: float) -> float:
        predictions = predict(task, questions, log_probabilities, threshold)
        return score(task, questions.targets, predictions)[task.metric]

    averages = _averages(questions, log_probabilities)
    return max(np.percentile(averages, range(1, 100)).tolist(), key=quality)


def _encode(example: Example, task: TaskConfig, tokenizer: Tokenizer) -> tuple[Ids, list[Ids]]:
    """Return the tokens of the text before the answers, and of each answer."""
    text, answers = "", example.texts
    if _likely_class(task) is None:
        zero_shot = task.zero_shot
        prompt = zero_shot.prompt if zero_shot else ""
        text = " ".join(" ".join([*example.texts, prompt]).split())
        answers = tuple((zero_shot and zero_shot.words) or example.choices)
    encode = partial(encode_as_trained, tokenizer)
    # An answer is encoded behind the last word, since its first token contains the space between.
    last = text.rpartition(" ")[2]
    size = len(encode(last))
    return encode(text), [encode(f"{last} {answer.strip()}".strip())[size:] for answer in answers]


def _collate(questions: Questions, numbers: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Return inputs and labels [B, T] of some sequences, padded on the right."""
    sequences = [torch.from_numpy(questions.sequences[number]).long() for number in numbers]
    tokens = pad_sequence(sequences, batch_first=True)  # [B, T + 1]
    ends = torch.tensor([len(sequence) for sequence in sequences])[:, None]
    begins = ends - torch.from_numpy(questions.answer_lengths[numbers])[:, None]
    positions = torch.arange(tokens.shape[1])
    asked = (begins <= positions) & (positions < ends)
    return tokens[:, :-1], tokens.where(asked, IGNORED_LABEL)[:, 1:]


def _averages(questions: Questions, log_probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return averages per token; 0 where no token could be predicted."""
    return log_probabilities / np.maximum(questions.answer_lengths, 1)


def _likely_class(task: TaskConfig) -> int | None:
    """Return the number of task.zero_shot.likely_label; None for a task that compares answers."""
    label = task.zero_shot.likely_label if task.zero_shot else None
    return None if label is None or task.labels is None else task.labels.index(label)
