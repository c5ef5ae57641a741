"""Test the token sequences of the four forms, their batches, and the order of training samples."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from gpt_dist.config import Form, TaskConfig
from gpt_dist.data.tasks.examples import EncodedSplit, TaskSamples, collate, encode_split
from gpt_dist.data.tasks.reading import Example, read_split
from gpt_dist.data.tasks.transforms import Transformation
from gpt_dist.data.tokenizers.folder import open_tokenizer
from gpt_dist.errors import ConfigError, DataError

DATA = Path(__file__).parents[3] / "shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")

START, DELIMITER, EXTRACT = 1, 2, 3


class Words:
    """Tokenizer for which word wN is token N, and any other word is 9 and its number of letters."""

    vocab_size = 1000
    lowercases = False
    end_of_text, start, delimiter, extract = 0, START, DELIMITER, EXTRACT

    def encode(self, text: str) -> np.ndarray:
        ids = [int(w[1:]) if w[0] == "w" else 900 + len(w) for w in text.split()]
        return np.array(ids, dtype=np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(f"w{index}" for index in ids)


def words(first: int, count: int) -> str:
    return " ".join(f"w{index}" for index in range(first, first + count))


def sequences(form: Form, length: int, texts: tuple[str, ...], choices: tuple[str, ...] = ()):
    found = Transformation(form, Words(), length).sequences(Example(texts, choices, 0, "0"))
    assert all(len(sequence) <= length for sequence in found)
    assert all(sequence.dtype == np.int32 for sequence in found)
    return [sequence.tolist() for sequence in found]


def test_classification_cuts_the_end():
    assert sequences("classification", 12, ("w10 w11",)) == [[START, 10, 11, EXTRACT]]
    (long,) = sequences("classification", 12, (words(10, 50),))
    assert long == [START, *range(10, 20), EXTRACT]


def test_entailment():
    assert sequences("entailment", 12, ("w10 w11", "w20")) == [
        [START, 10, 11, DELIMITER, 20, EXTRACT]
    ]


@pytest.mark.parametrize("length", [6, 7, 32, 33, 512])
@pytest.mark.parametrize("first", [1, 5, 14, 300])
@pytest.mark.parametrize("second", [1, 4, 15, 300])
def test_two_texts_keep_all_that_the_released_code_keeps(length, first, second):
    (found,) = sequences("entailment", length, (words(10, first), words(500, second)))
    cut = found.index(DELIMITER)
    kept = [found[1:cut], found[cut + 1 : -1]]
    assert (found[0], found[-1]) == (START, EXTRACT)
    for tokens, start, count in ((kept[0], 10, first), (kept[1], 500, second)):
        assert tokens == list(range(start, start + len(tokens)))
        assert len(tokens) >= min(count, length // 2 - 2)
    if first + second + 3 <= length:
        assert (len(kept[0]), len(kept[1])) == (first, second)
    else:
        assert len(found) == length


def test_similarity_has_both_orders():
    assert sequences("similarity", 12, ("w10 w11", "w20")) == [
        [START, 10, 11, DELIMITER, 20, EXTRACT],
        [START, 20, DELIMITER, 10, 11, EXTRACT],
    ]


@pytest.mark.parametrize("count", [2, 4, 7])
def test_multiple_choice_has_a_sequence_for_each_choice(count):
    choices = tuple(f"w{20 + number}" for number in range(count))
    assert sequences("multiple_choice", 16, ("w10 w11",), choices) == [
        [START, 10, 11, DELIMITER, 20 + number, EXTRACT] for number in range(count)
    ]


def test_multiple_choice_cuts_the_context_alone_and_alike_for_all_choices():
    texts, choices = (words(10, 100), words(200, 5)), (words(300, 4), words(400, 1))
    short, long = range(10, 18), [*range(200, 205), DELIMITER]
    assert sequences("multiple_choice", 20, texts, choices) == [
        [START, *short, *long, *range(300, 304), EXTRACT],
        [START, *short, *long, 400, EXTRACT],
    ]


def test_no_room_for_the_answer_is_refused(tmp_path):
    path = tmp_path / "train.jsonl"
    texts = {"text": words(10, 100), "ask": words(200, 5), "is": 0}
    rows = [texts | {"say": [words(300, longest), "w400"]} for longest in (11, 12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TaskConfig(
        name="Quiz",
        form="multiple_choice",
        format="jsonl",
        columns={"context": "text", "question": "ask", "choices": "say", "label": "is"},
        splits={"train": path.name, "dev": path.name},
        metric="accuracy",
    )
    fits, too_long = read_split(tmp_path, task, "train")
    transformation = Transformation(task.form, Words(), 20)
    assert [len(sequence) for sequence in transformation.sequences(fits)] == [20, 10]
    with pytest.raises(DataError) as refused:
        transformation.sequences(too_long)
    assert str(refused.value) == (
        f"{path}, line 2: question and longest choice are 17 tokens, which leaves no room for the "
        "context in model.sequence_length 20; shorten them, or use a longer one"
    )


def test_a_context_too_short_for_two_texts_is_refused():
    with pytest.raises(ConfigError, match=r"model\.sequence_length: 5 tokens"):
        Transformation("entailment", Words(), 5)


def test_text_is_lower_cased_for_a_tokenizer_of_lower_case():
    example, lower = Example(("W10 W11",), (), 0, "0"), Words()
    lower.lowercases = True
    sequence = Transformation("classification", lower, 12).sequences(example)[0]
    assert sequence.tolist() == [START, 10, 11, EXTRACT]


@needs_data
def test_questions_of_race_with_the_released_tokenizer():
    task = TaskConfig(
        name="RACE",
        form="multiple_choice",
        format="race",
        splits={"train": "dev/middle", "dev": "dev/middle"},
        labels=list("ABCD"),
        metric="accuracy",
    )
    examples = read_split(DATA / "tasks/RACE", task, "dev")[:300]
    tokenizer = open_tokenizer(DATA / "openai-gpt")
    transformation = Transformation(task.form, tokenizer, 200)
    for example in examples:
        for sequence, choice in zip(
            transformation.sequences(example), example.choices, strict=True
        ):
            ids = sequence.tolist()
            answer = [tokenizer.delimiter, *tokenizer.encode(choice), tokenizer.extract]
            question = tokenizer.encode(example.texts[1]).tolist()
            before = ids[: -len(answer)]
            assert len(ids) <= 200
            assert ids[-len(answer) :] == answer
            assert before[len(before) - len(question) :] == question


def encode_sample() -> EncodedSplit:
    """Encode three examples of two, three and two choices."""
    examples = [
        Example(("w10 w11 w12",), ("w20", "w21 w22"), 1, "a"),
        Example(("w13",), ("w23", "w24", "w25"), 2, "b"),
        Example(("w14 w15",), ("w26", "w27"), 0, "c"),
    ]
    return encode_split(examples, Transformation("multiple_choice", Words(), 16))


def test_a_split_in_memory():
    split = encode_sample()
    assert len(split) == 3
    assert split.ids == ("a", "b", "c")
    assert split.lengths.tolist() == [8, 5, 6]
    assert split.targets is not None
    assert split.targets.dtype == np.int64


def test_a_batch_is_padded_on_the_right_and_knows_whose_rows_are_whose():
    batch = collate(encode_sample(), np.array([1, 0]))
    assert batch.tokens.tolist() == [
        [START, 13, DELIMITER, 23, EXTRACT, 0, 0, 0],
        [START, 13, DELIMITER, 24, EXTRACT, 0, 0, 0],
        [START, 13, DELIMITER, 25, EXTRACT, 0, 0, 0],
        [START, 10, 11, 12, DELIMITER, 20, EXTRACT, 0],
        [START, 10, 11, 12, DELIMITER, 21, 22, EXTRACT],
    ]
    assert batch.labels[0].tolist() == [13, DELIMITER, 23, EXTRACT, -1, -1, -1, -1]
    assert batch.labels[4].tolist() == [10, 11, 12, DELIMITER, 21, 22, EXTRACT, -1]
    assert batch.owners.tolist() == [0, 0, 0, 1, 1]
    assert (batch.tokens[np.arange(5), batch.ends] == EXTRACT).all()
    assert batch.targets.tolist() == [2, 1]
    assert {array.dtype for array in (batch.tokens, batch.labels, batch.ends, batch.owners)} == {
        np.dtype(np.int64)
    }


def test_a_row_is_the_same_in_any_batch():
    split = encode_sample()
    alone, together = collate(split, np.array([2])), collate(split, np.array([0, 2]))
    rows = together.owners == 1
    width = alone.tokens.shape[1]
    assert np.array_equal(together.tokens[rows][:, :width], alone.tokens)
    assert np.array_equal(together.labels[rows][:, :width], alone.labels)
    assert not together.tokens[rows][:, width:].any()


def test_scores_and_missing_labels():
    transformation = Transformation("similarity", Words(), 16)
    scores = encode_split([Example(("w10", "w11"), (), 2.5, "0")], transformation)
    assert scores.targets is not None
    assert (scores.targets.dtype, scores.targets.tolist()) == (np.float32, [2.5])
    unlabelled = encode_split([Example(("w10", ""), (), None, "0")], transformation)
    assert unlabelled.targets is None
    batch = collate(unlabelled, np.array([0]))
    assert batch.targets.tolist() == [0]
    assert batch.owners.tolist() == [0, 0]


LENGTHS = np.random.default_rng(0).integers(4, 200, 1003)


def samples(lengths: np.ndarray, global_batch_size: int, seed: int) -> TaskSamples:
    """Samples of examples that are one sequence of these lengths each."""
    starts = np.append(0, np.cumsum(lengths))
    tokens = np.zeros(starts[-1], np.int32)
    examples = np.arange(len(starts))
    split = EncodedSplit(tokens, starts, examples, None, ("",) * len(lengths))
    return TaskSamples(split, global_batch_size, seed)


@pytest.mark.parametrize(("size", "batch_size"), [(1003, 4), (1003, 32), (64, 8), (5, 8), (1, 1)])
def test_every_epoch_visits_every_example_once_in_an_order_of_its_own(size, batch_size):
    order = samples(LENGTHS[:size], batch_size, seed=1)
    epochs = order.numbers(np.arange(4 * size)).reshape(4, size)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(size))
    if size > 5:
        assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_depends_on_the_seed_and_the_sample_number_alone():
    together = samples(LENGTHS, 32, seed=1).numbers(np.arange(3000))
    again = samples(LENGTHS, 32, seed=1)
    backwards = [again.numbers(np.arange(i, i + 7)) for i in range(2100, -1, -7)]
    assert np.array_equal(np.concatenate(backwards[::-1]), together[:2107])
    assert again.numbers(np.array([2999, 5, 1003])).tolist() == together[[2999, 5, 1003]].tolist()
    assert not np.array_equal(samples(LENGTHS, 32, seed=2).numbers(np.arange(3000)), together)


def test_examples_of_a_global_batch_are_of_like_length():
    order = samples(LENGTHS, 8, seed=1)
    lengths = LENGTHS[order.numbers(np.arange(8 * 376))].reshape(376, 8)
    spread = lengths.max(axis=1) - lengths.min(axis=1)
    assert (spread > 30).sum() <= 3  # only batches where two epochs meet
    assert np.median(spread) <= 5
    means = lengths.mean(axis=1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.15  # batches follow in any order
