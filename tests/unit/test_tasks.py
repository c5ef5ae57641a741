"""Test the readers of task files: all official formats, the generic forms, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpt_dist.config import SplitConfig, TaskConfig
from gpt_dist.config.file import load_config
from gpt_dist.data.tasks.checks import check_task
from gpt_dist.data.tasks.reading import Example, read_split, write_submission
from gpt_dist.errors import ConfigError, DataError

CONFIGS = Path(__file__).parents[2] / "configs/finetune"
TASKS = Path(__file__).parents[3] / "shared/data/tasks"
needs_tasks = pytest.mark.skipif(not TASKS.is_dir(), reason="../shared/data/tasks is absent")

GLUE = ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]
OFFICIAL = [*GLUE, "race", "scitail", "snli", "storycloze"]


def make_task(**keys: Any) -> TaskConfig:
    return TaskConfig.model_validate_json(json.dumps(keys), strict=True)


def official(name: str) -> TaskConfig:
    task = load_config(CONFIGS / f"{name}.yaml", []).task
    assert task is not None
    return task


def sentiment(**keys: Any) -> TaskConfig:
    """Return a user's own task: CSV with a header."""
    defaults = {
        "name": "mine",
        "form": "classification",
        "format": "csv",
        "columns": {"text": "review", "label": "stars"},
        "splits": {"train": "train.csv", "dev": "dev.csv", "test": "test.csv"},
        "labels": ["bad", "good"],
        "metric": "accuracy",
    }
    return make_task(**defaults | keys)


def put(folder: Path, name: str, *lines: str, end: str = "\n") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())


def put_passage(folder: Path, name: str, **changes: Any) -> None:
    passage = {
        "id": name.replace("/", "").removeprefix("train"),
        "article": "It rains.\nTom is wet.",
        "questions": ["Who is wet?", "It  _  ."],
        "options": [["Tom", "Ann", "Sue", "Bob"], ["snows", "rains", "hails", "shines"]],
        "answers": ["A", "B"],
    }
    put(folder, name, json.dumps(passage | changes))


def texts(examples: list[Example]) -> list[tuple[str, ...]]:
    return [example.texts for example in examples]


def labels(examples: list[Example]) -> list[int | float | None]:
    return [example.label for example in examples]


def ids(examples: list[Example]) -> list[str]:
    return [example.id for example in examples]


def test_a_yaml_for_each_official_data_set():
    names = [path.stem for path in CONFIGS.glob("*.yaml")]
    assert sorted(name for name in names if not name.startswith("book-")) == sorted(OFFICIAL)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_tasks_are_accepted_once_their_files_are_there(tmp_path, name):
    task = official(name)
    for split, path in task.splits.items():
        if isinstance(path, SplitConfig) or split.startswith("test"):
            continue
        with pytest.raises(DataError, match=r"no such (file|folder) \(task\.splits\.(train|dev)"):
            check_task(tmp_path, task)
        if task.format == "race":
            (tmp_path / path).mkdir(parents=True)
        else:
            put(tmp_path, path)
    check_task(tmp_path, task)


def test_sst2(tmp_path):
    put(tmp_path, "train.tsv", "sentence\tlabel", 'a " quoted  film \t1', '"\t0')
    put(tmp_path, "test.tsv", "index\tsentence", "0\tuneasy mishmash", "1\t")
    task = official("sst2")
    train = read_split(tmp_path, task, "train")
    assert texts(train) == [('a " quoted film',), ('"',)]
    assert labels(train) == [1, 0]
    assert ids(train) == ["0", "1"]
    test = read_split(tmp_path, task, "test")
    assert texts(test) == [("uneasy mishmash",), ("",)]  # every row needs a prediction
    assert labels(test) == [None, None]


def test_cola_has_a_header_in_its_test_file_alone(tmp_path):
    put(tmp_path, "train.tsv", "gj04\t1\t\tMary sang.", 'gj04\t0\t*\t"Sang Mary.')
    put(tmp_path, "test.tsv", "index\tsentence", "7\tBill whistled.")
    task = official("cola")
    train = read_split(tmp_path, task, "train")
    assert texts(train) == [("Mary sang.",), ('"Sang Mary.',)]
    assert labels(train) == [1, 0]
    test = read_split(tmp_path, task, "test")
    assert (ids(test), texts(test)) == (["7"], [("Bill whistled.",)])


def test_mrpc_has_a_byte_order_mark_and_lone_quotes(tmp_path):
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    put(
        tmp_path, "train.tsv", header, '1\t5\t6\t" It rains .\tHe said , " It rains . "', end="\r\n"
    )
    put(tmp_path, "msr_paraphrase_test.txt", header, "0\t1\t2\tYes .\tNo .")
    put(tmp_path, "test.tsv", "index\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t1\t2\tYes .\tNo .")
    task = official("mrpc")
    train = read_split(tmp_path, task, "train")
    assert texts(train) == [('" It rains .', 'He said , " It rains . "')]
    assert labels(train) == [1]
    assert labels(read_split(tmp_path, task, "test_labelled")) == [0]
    assert labels(read_split(tmp_path, task, "test")) == [None]


QQP_HEADER = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
QQP_TORN = [
    '5\t1\t2\t"Was he real? ',  # one row, broken by the line end in a question
    '"\tWhat is the evidence?\t0',
    "6\t3\t4\tHow can I develop android app?\t\t0",
]


def test_qqp_leaves_out_torn_rows_and_empty_questions(tmp_path):
    good = '9\t7\t8\tWhat is "it"?\tWhat\'s it?\t1'
    put(tmp_path, "train.tsv", QQP_HEADER, *QQP_TORN, good)
    put(tmp_path, "test.tsv", "id\tquestion1\tquestion2", "0\tWhy?\tWhat for?")
    task = official("qqp")
    train = read_split(tmp_path, task, "train")
    assert texts(train) == [('What is "it"?', "What's it?")]
    assert ids(train) == ["3"]
    assert ids(read_split(tmp_path, task, "test")) == ["0"]


def test_no_more_rows_are_left_out_than_the_yaml_allows(tmp_path):
    put(tmp_path, "train.tsv", QQP_HEADER, *QQP_TORN, "9\t7\t8\tWhy?\tWhat for?\t1")
    put(tmp_path, "test.tsv", "id\tquestion1\tquestion2", "0\tWhy?")
    task = official("qqp")
    with pytest.raises(DataError, match=r"test\.tsv, line 2: 2 fields instead of 3"):
        read_split(tmp_path, task, "test")
    two = task.model_copy(update={"malformed_rows": 2})
    with pytest.raises(DataError, match=r"train\.tsv, line 4: the b is empty.*malformed_rows"):
        read_split(tmp_path, two, "train")
    none = task.model_copy(update={"malformed_rows": 0})
    with pytest.raises(DataError, match=r"train\.tsv, line 2: 4 fields instead of 6"):
        read_split(tmp_path, none, "train")


def test_stsb(tmp_path):
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
    start = "0\tnews\theadlines\t2015\t0009\tnone\tnone"
    put(
        tmp_path,
        "dev.tsv",
        f"{header}\tscore",
        f'{start}\t"A man.\tA "man".\t5.000',
        f"{start}\tA\tB\t0",
    )
    put(tmp_path, "test.tsv", header, f"{start}\tA\tB")
    task = official("stsb")
    dev = read_split(tmp_path, task, "dev")
    assert texts(dev)[0] == ('"A man.', 'A "man".')
    assert labels(dev) == [5.0, 0.0]
    assert all(isinstance(label, float) for label in labels(dev))
    assert labels(read_split(tmp_path, task, "test")) == [None]


@pytest.mark.parametrize("score", ["", "nan", "inf", "high", "5.1", "-1"])
def test_what_is_no_score_is_refused(tmp_path, score):
    columns = {"a": "x", "b": "y", "label": "z"}
    task = official("stsb").model_copy(update={"columns": columns})
    put(tmp_path, "dev.tsv", "x\ty\tz", "A\tB\t4", f"A\tB\t{score}")
    with pytest.raises(DataError, match=rf"dev\.tsv, line 3: '{score}' is not a score from 0 to 5"):
        read_split(tmp_path, task, "dev")


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [("rte", "sentence1", "sentence2"), ("qnli", "question", "sentence")],
)
def test_rte_and_qnli(tmp_path, name, first, second):
    put(
        tmp_path,
        "dev.tsv",
        f"index\t{first}\t{second}\tlabel",
        '0\t"He left.\tHe "left".\tentailment',
        "1\tA?\tB.\tnot_entailment",
    )
    put(tmp_path, "test.tsv", f"index\t{first}\t{second}", "0\tA\tB")
    task = official(name)
    dev = read_split(tmp_path, task, "dev")
    assert texts(dev)[0] == ('"He left.', 'He "left".')
    assert labels(dev) == [0, 1]
    assert labels(read_split(tmp_path, task, "test")) == [None]


def test_mnli_has_other_columns_in_every_file(tmp_path):
    start = "index\tpromptID\tpairID\tgenre\ts1_bp\ts2_bp\ts1_p\ts2_p\tsentence1\tsentence2"
    row = '0\t1\t1n\tfiction\t( )\t( )\t(ROOT)\t(ROOT)\t"So it goes.\tIt goes.'
    put(tmp_path, "train.tsv", f"{start}\tlabel1\tgold_label", f"{row}\tneutral\tneutral")
    five = "entailment\tneutral\tentailment\tneutral\tcontradiction"
    dev = f"{start}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label"
    put(tmp_path, "dev_matched.tsv", dev, f"{row}\t{five}\tcontradiction", f"{row}\t{five}\t-")
    put(tmp_path, "dev_mismatched.tsv", dev, f"{row}\t{five}\tentailment")
    put(tmp_path, "test_mismatched.tsv", start, row)
    task = official("mnli")
    assert texts(read_split(tmp_path, task, "train")) == [('"So it goes.', "It goes.")]
    assert labels(read_split(tmp_path, task, "train")) == [1]
    assert labels(read_split(tmp_path, task, "dev_matched")) == [2]
    assert labels(read_split(tmp_path, task, "dev_mismatched")) == [0]
    assert labels(read_split(tmp_path, task, "test_mismatched")) == [None]


def test_snli_leaves_out_rows_without_a_gold_label(tmp_path):
    rows = [
        {"gold_label": "-", "sentence1": "A", "sentence2": "B", "pairID": "x#0"},
        {
            "gold_label": "neutral",
            "sentence1": 'A "man"\u2028sits',
            "sentence2": "B",
            "pairID": "x#1",
        },
    ]
    put(tmp_path, "snli_1.0_train.jsonl", *[json.dumps(row, ensure_ascii=False) for row in rows])
    train = read_split(tmp_path, official("snli"), "train")
    assert texts(train) == [('A "man" sits', "B")]
    assert (labels(train), ids(train)) == ([1], ["x#1"])


def test_scitail_has_no_header_and_a_lone_quote_swallows_nothing(tmp_path):
    put(
        tmp_path,
        "tsv_format/scitail_1.0_dev.tsv",
        '"Dew" forms.\tDew forms.\tentails',
        '"Cells\tCells divide.\tneutral',
        "Ice melts.\tIce is warm.\tneutral",
    )
    dev = read_split(tmp_path, official("scitail"), "dev")
    assert texts(dev)[:2] == [('"Dew" forms.', "Dew forms."), ('"Cells', "Cells divide.")]
    assert labels(dev) == [0, 1, 1]


def test_race(tmp_path):
    put_passage(tmp_path, "train/middle/2.txt")
    put_passage(
        tmp_path,
        "train/high/10.txt",
        questions=["Why?"],
        options=[["a", "b", "c", "d"]],
        answers=["D"],
    )
    (tmp_path / "train/high/.DS_Store").write_bytes(b"\xff")
    task = official("race")
    train = read_split(tmp_path, task, "train")
    assert ids(train) == ["high10.txt/0", "middle2.txt/0", "middle2.txt/1"]
    assert train[1].texts == ("It rains. Tom is wet.", "Who is wet?")
    assert train[2].texts[1] == "It _ ."
    assert train[2].choices == ("snows", "rains", "hails", "shines")
    assert labels(train) == [3, 0, 1]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"answers": ["A"]}, "line 1: not a passage"),
        ({"options": [["Tom", "Ann"], "snows"]}, "question 1: 'choices' is 'snows', not a list"),
        ({"answers": ["A", "E"]}, "question 1: unknown label 'E', not one of A, B, C, D"),
        ({"options": [["Tom", "Ann"], ["a", " "]]}, "question 1: the choice is empty"),
        ({"article": " "}, "question 0: the context is empty"),
        ({"options": [["a"], ["b"]]}, "question 0: 'choices' is .'a'., not a list of two"),
        (
            {"options": [list("abcde"), ["b", "c"]]},
            "question 0: 5 choices, but task.labels names 4",
        ),
        ({"options": [["a", "b"], ["b", {"c": 1}]]}, "question 1: 'choices' is .* not a text"),
    ],
)
def test_a_damaged_passage_is_named(tmp_path, changes, problem):
    put_passage(tmp_path, "train/middle/1.txt")
    put_passage(tmp_path, "train/middle/2.txt", **changes)
    with pytest.raises(DataError, match=rf"middle/2\.txt, .*{problem}"):
        read_split(tmp_path, official("race"), "train")


STORY_HEADER = (
    "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
    "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding"
)
STORY_TEST = "cloze_test_test__spring2016 - cloze_test_ALL_test.csv"


def test_story_cloze(tmp_path):
    put(
        tmp_path,
        STORY_TEST,
        STORY_HEADER,
        '138d,Rick grew up.,"He, too, left.","He said ""no"".",Bad.,"He\nis happy.",He joined.,1',
        "bff9,Lavern waits.,A.,B.,C.,Fish.,She wins.,2",
        end="\r\n",
    )
    test = read_split(tmp_path, official("storycloze"), "test")
    assert test[0].texts == ('Rick grew up. He, too, left. He said "no". Bad.',)
    assert test[0].choices == ("He is happy.", "He joined.")
    assert (labels(test), ids(test)) == ([0, 1], ["138d", "bff9"])
    assert test[1].where.endswith("line 4")


def test_a_dev_split_is_carved_by_content(tmp_path):
    name = "cloze_test_val__spring2016 - cloze_test_ALL_val.csv"
    rows = [f"id{n},Story {n}.,A.,B.,C.,One.,Two.,{1 + n % 2}" for n in range(1000)]
    task = official("storycloze")
    put(tmp_path, name, STORY_HEADER, *rows)
    train, dev = (read_split(tmp_path, task, split) for split in ("train", "dev"))
    assert sorted(ids(train) + ids(dev)) == sorted(f"id{n}" for n in range(1000))
    assert 150 < len(dev) < 250  # a fifth, within four standard deviations
    put(tmp_path, name, STORY_HEADER, *reversed(rows[:500]), *rows[500:])
    assert set(ids(read_split(tmp_path, task, "dev"))) == set(ids(dev))


def test_examples_on_one_passage_stay_on_one_side(tmp_path):
    task = sentiment(
        form="multiple_choice",
        format="jsonl",
        columns={"context": "c", "question": "q", "choices": "o", "label": "l"},
        splits={"train": "train.jsonl"},
        dev_fraction=0.5,
        labels=None,
    )
    rows = [
        json.dumps({"c": f"Passage {passage}", "q": f"{number}?", "o": ["a", "b"], "l": 1})
        for passage in range(20)
        for number in range(5)
    ]
    put(tmp_path, "train.jsonl", *rows)
    train, dev = (read_split(tmp_path, task, split) for split in ("train", "dev"))
    assert len(train) + len(dev) == 100
    assert not {text[0] for text in texts(train)} & {text[0] for text in texts(dev)}


def test_a_users_own_csv(tmp_path):
    put(
        tmp_path,
        "train.csv",
        "stars,review",
        'good,"Great, ""really""\nloved it"',
        "bad,Meh",
        "",
        "",
    )
    train = read_split(tmp_path, sentiment(), "train")
    assert texts(train) == [('Great, "really" loved it',), ("Meh",)]
    assert labels(train) == [1, 0]


def test_quoting_can_be_said(tmp_path):
    put(tmp_path, "train.csv", 'stars\t"review"', 'bad\t"two\tfields"')
    quoted = read_split(tmp_path, sentiment(format="tsv", quoting=True), "train")
    assert texts(quoted) == [("two fields",)]
    put(tmp_path, "train.csv", "stars,review", 'good,5" pipe')
    assert texts(read_split(tmp_path, sentiment(quoting=False), "train")) == [('5" pipe',)]


def test_json_lines_with_any_number_of_choices(tmp_path):
    task = sentiment(
        form="multiple_choice",
        format="jsonl",
        columns={"context": ["title", "text"], "choices": "options", "label": "answer"},
        labels=None,
    )
    put(
        tmp_path,
        "train.csv",
        '{"title": "Sums", "text": "2 + 2?", "options": [3, 4], "answer": 1}',
        '{"title": null, "text": "Day?", "options": ["Mo", "Tu", "We"], "answer": "2", "more": {}}',
    )
    train = read_split(tmp_path, task, "train")
    assert texts(train) == [("Sums 2 + 2?",), ("Day?",)]
    assert [example.choices for example in train] == [("3", "4"), ("Mo", "Tu", "We")]
    assert labels(train) == [1, 2]
    put(
        tmp_path, "train.csv", '{"title": "", "text": "Day?", "options": ["Mo", "Tu"], "answer": 2}'
    )
    with pytest.raises(DataError, match=r"line 1: unknown label '2', not one of 0, 1"):
        read_split(tmp_path, task, "train")


def quiz(**keys: Any) -> TaskConfig:
    """Return a multiple-choice task with a column for each choice."""
    defaults = {
        "form": "multiple_choice",
        "columns": {"context": "q", "choices": ["A", "B", "C", "D"], "label": "right"},
        "labels": ["A", "B", "C", "D"],
    }
    return sentiment(**defaults | keys)


def test_blank_last_columns_of_choices_are_choices_that_a_row_has_not(tmp_path):
    header = "q,A,B,C,D,right"
    put(tmp_path, "train.csv", header, "Sum?,3,4,,,B", "Day?,Mo,Tu,We, ,C", "?,a,b,c,d,D")
    train = read_split(tmp_path, quiz(), "train")
    assert [example.choices for example in train] == [("3", "4"), ("Mo", "Tu", "We"), tuple("abcd")]
    assert labels(train) == [1, 2, 3]
    put(tmp_path, "train.csv", header, "Sum?,3,4,,,C")
    with pytest.raises(DataError, match=r"train\.csv, line 2: unknown label 'C', not one of A, B;"):
        read_split(tmp_path, quiz(), "train")


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        ("Sum?,3,,,,A", ("3", "")),
        ("Sum?,3,,4,,A", ("3", "", "4")),
        ("Sum?,,3,4,5,A", ("", "3", "4", "5")),
        ("Sum?,,,,,A", ("", "")),
    ],
)
def test_a_blank_choice_before_others_and_fewer_than_two_are_errors(tmp_path, row, kept):
    put(tmp_path, "train.csv", "q,A,B,C,D,right", row)
    with pytest.raises(DataError, match=r"train\.csv, line 2: the choice is empty"):
        read_split(tmp_path, quiz(), "train")
    unlabelled = {"context": "q", "choices": ["A", "B", "C", "D"]}
    (example,) = read_split(
        tmp_path, quiz(splits={"test": {"path": "train.csv", "columns": unlabelled}}), "test"
    )
    assert example.choices == kept  # every row needs a prediction


JSON = {"format": "jsonl"}


@pytest.mark.parametrize(
    ("keys", "content", "problem"),
    [
        ({}, b"", "line 1: the file is empty"),
        ({}, b"\n\r\n", "line 1: the file is empty"),
        ({}, b"stars,review\n", "no examples in it"),
        ({"ignored_labels": ["?"]}, b"stars,review\n?,Fine\n", "no examples in it"),
        (
            {},
            b"stars,text\ngood,Fine\n",
            "line 1: no single column 'review': it has 'stars', 'text'",
        ),
        (
            {"header": False},
            b"good,Fine\n",
            "line 1: no single column 'review': it has no header, but posit",
        ),
        (
            {},
            b"stars,review,stars\ngood,Fine,1\n",
            "line 1: no single column 'stars': it has .*; correct task.columns, where a number",
        ),
        ({}, b"stars,review\ngood,Fine\ngood\n", "line 3: 1 fields instead of 2"),
        ({}, b"stars,review\ngood,Fine,thanks\n", "line 2: 3 fields instead of 2"),
        ({}, b"stars,review\n\ngood,Fine\n", "line 2: 0 fields instead of 2"),
        (
            {},
            b'stars,review\ngood,"Fi\nne"\nGOOD,"a\nb"\n',
            "line 4: unknown label 'GOOD', not one of bad",
        ),
        (
            {},
            b'stars,review\ngood,"Fine\ngood,Fine\n',
            "line 2: the row's quoted fields cannot be read",
        ),
        ({}, b"stars,review\ngood, \t \n", "line 2: the text is empty"),
        ({}, b"stars,review\ngood,caf\xe9\n", "line 2: not UTF-8"),
        ({}, "stars,review\n".encode("utf-16"), "line 1: not UTF-8"),
        (JSON, b"", "no examples in it"),
        (JSON, b'{"review": "a", "stars": "bad"}\n{"review": "a"\n', "line 2: not JSON"),
        (JSON, b'{"review": "a", "stars": "bad"}\n["a"]\n', "line 2: expected {"),
        (
            JSON,
            b'{"review": NaN, "stars": "bad"}\n',
            r"line 1: not JSON \(.* at column 12\); fix the line",
        ),
        (JSON, b'{"review": "a", "x": [-Infinity]}\n', r"line 1: not JSON \(invalid number"),
        (
            JSON,
            b'{"review": "a", "stars": "bad"}\n \n{"review": "b", "stars": "bad"}\n',
            "line 2: the line is blank; remove it",
        ),
        (JSON, b'{"review": "a"}\n', "line 1: no 'stars', only 'review'"),
        (JSON, b'{"review": "a", "stars": null}\n', "line 1: unknown label ''"),
        (JSON, b'{"review": "a", "stars": true}\n', "line 1: unknown label 'true'"),
        (JSON, b'{"review": ["a"], "stars": "bad"}\n', "line 1: 'review' is .* not a text"),
        (JSON, b'{"review": "\\ud83d", "stars": "bad"}\n', "line 1: not JSON .* hex escape"),
        (JSON, b"[" * 100_000 + b"\n", "line 1: not JSON .recursion limit"),
    ],
)
def test_bad_input_is_named_with_file_and_line(tmp_path, keys, content, problem):
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"train\.csv.*{problem}"):
        read_split(tmp_path, sentiment(**keys), "train")


def test_a_field_may_be_as_long_as_a_book(tmp_path):
    put(tmp_path, "train.csv", "stars,review", f'good,"{"word " * 50_000}"')
    (example,) = read_split(tmp_path, sentiment(), "train")
    assert len(example.texts[0]) == 5 * 50_000 - 1


def test_a_fraction_that_leaves_nothing_is_named(tmp_path):
    put(tmp_path, "train.csv", "stars,review", "good,Fine")
    task = sentiment(splits={"train": "train.csv"}, dev_fraction=1e-9)
    with pytest.raises(ConfigError, match=r"task\.dev_fraction: 1e-09 .* no example for dev"):
        read_split(tmp_path, task, "dev")


def test_a_split_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"dev\.csv: cannot be read \(No such file"):
        read_split(tmp_path, sentiment(), "dev")
    with pytest.raises(ConfigError, match=r"task\.splits: no 'dev_hard'; it has train, dev, test"):
        read_split(tmp_path, sentiment(), "dev_hard")


PAIR = {"text": "review", "hypothesis": "more", "label": "stars"}
FILES = {"train": "train.csv", "dev": "dev.csv"}


def submissions(first: str, second: str | None = None) -> dict[str, Any]:
    """Return splits of which two are predicted, into files of these names."""
    tests = {
        name: {"path": f"{name}.csv", "submission": submission}
        for name, submission in (("test", first), ("test_2", second))
    }
    return {"splits": FILES | tests}


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"splits": {"dev": "dev.csv"}}, "task.splits: no train; it has dev"),
        ({"splits": {"train": "train.csv"}}, "task.splits: no dev or dev_"),
        ({"splits": {"train": "train.csv", "valid": "dev.csv"}}, "task.splits.valid: not train"),
        ({"splits": FILES | {"test_a/b": "t"}}, "task.splits.test_a/b: not .*; rename it"),
        ({"splits": FILES | {"dev_": "d"}}, "task.splits.dev_: not .*; rename it"),
        (
            submissions("out/x.tsv"),
            "test.submission: 'out/x.tsv' is not a plain .tsv name; give one like test.tsv",
        ),
        (submissions(".."), "test.submission: '..' is not a plain .tsv name"),
        (submissions("x\0.tsv"), r"test.submission: 'x.x00.tsv' is not a plain .tsv name"),
        (
            submissions("x.txt"),
            "test.submission: 'x.txt' is not a plain .tsv name; give one like test.tsv",
        ),
        (submissions("x.tsv", "x.tsv"), "test_2.submission: 'x.tsv' is test's too; give each"),
        (submissions("test_2.tsv"), "test_2.submission: 'test_2.tsv' is test's too"),
        ({"dev_fraction": 0.1}, "task.dev_fraction: task.splits names dev too"),
        ({"columns": {"label": "stars"}}, "task.columns: no text, which classification needs"),
        ({"columns": {"text": "review"}}, "task.columns: no label, which .* needs in train"),
        ({"columns": PAIR}, "task.columns.hypothesis: classification has text, label, id"),
        ({"form": "entailment"}, "task.columns.text: entailment has premise, hypothesis"),
        ({"columns": {"text": [], "label": "stars"}}, "task.columns.text: .* is not one column"),
        ({"columns": {"text": "a", "label": ["b", "c"]}}, "task.columns.label: .* not one column"),
        (
            {"format": "jsonl", "columns": {"text": 0, "label": "b"}},
            "task.columns.text: .* names only",
        ),
        (
            {"splits": {"train": "t", "dev": {"path": "d", "columns": {"text": "x"}}}},
            "task.splits.dev.columns: no label",
        ),
        ({"format": "race"}, "task.format: race is multiple_choice"),
        ({"labels": ["good"]}, "task.labels: .* not two different labels"),
        ({"labels": ["good", "good"]}, "task.labels: .* not two different labels"),
        ({"ignored_labels": ["bad"]}, "task.ignored_labels: bad is one of task.labels too"),
        ({"metric": "pearson"}, "task.metric: pearson does not judge classes"),
        ({"labels": None}, "task.metric: accuracy does not judge scores"),
        ({"labels": ["a", "b", "c"], "metric": "f1"}, "task.metric: f1 needs two"),
        ({"score_range": [0, 1]}, "task.score_range: .* not a range of scores"),
        (
            {"labels": None, "metric": "pearson", "score_range": [1, 0]},
            "task.score_range: .* not a range of scores",
        ),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(tmp_path, keys, problem):
    for name in ("train.csv", "dev.csv"):
        put(tmp_path, name)
    check_task(tmp_path, sentiment())
    with pytest.raises(ConfigError, match=problem):
        check_task(tmp_path, sentiment(**keys))


def predict(folder: Path, task: TaskConfig, split: str, predictions: list[Any]) -> tuple[str, str]:
    ids = [str(10 + n) for n in range(len(predictions))]
    path = write_submission(folder, task, split, ids, predictions)
    return path.name, path.read_text()


def test_predictions_are_written_as_glue_wants_them(tmp_path):
    written = predict(tmp_path, official("mnli"), "test_mismatched", [2, 0])
    assert written == ("MNLI-mm.tsv", "index\tprediction\n10\tcontradiction\n11\tentailment\n")
    written = predict(tmp_path, official("cola"), "test", [1])
    assert written == ("CoLA.tsv", "index\tprediction\n10\t1\n")
    written = predict(tmp_path, official("stsb"), "test", [0.0, 3.14159, 5.0])
    assert written == ("STS-B.tsv", "index\tprediction\n10\t0.000\n11\t3.142\n12\t5.000\n")


def test_predictions_of_other_tasks(tmp_path):
    assert predict(tmp_path, official("storycloze"), "test", [1])[1].endswith("10\t2\n")
    assert predict(tmp_path, official("race"), "test_high", [3]) == (
        "test_high.tsv",
        "index\tprediction\n10\tD\n",
    )
    unbounded = official("stsb").model_copy(update={"score_range": None})
    assert predict(tmp_path, unbounded, "test", [-7.25])[1].endswith("10\t-7.25\n")


def test_predictions_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(
        DataError,
        match=r"absent/CoLA\.tsv: cannot be written \(No such file.*; make room or correct its "
        "permissions, and run the same command again",
    ):
        predict(tmp_path / "absent", official("cola"), "test", [1])


@needs_tasks
@pytest.mark.parametrize(
    ("name", "folder", "counts"),
    [
        ("sst2", "SST-2", {"train": 67_349, "dev": 872}),
        ("cola", "CoLA", {"train": 8_551, "dev": 1_043}),
        ("mrpc", "MRPC", {"train": 3_668, "dev": 408, "test_labelled": 1_725}),
        ("rte", "RTE", {"train": 2_490, "dev": 277}),
        ("stsb", "STS-B", {"train": 5_749, "dev": 1_500}),
        ("qnli", "QNLI", {"dev": 5_463}),
        ("race", "RACE", {"train": 5_343, "dev_middle": 1_436, "dev_high": 3_451}),
    ],
)
def test_official_counts(name, folder, counts):
    task = official(name)
    for split, count in counts.items():
        examples = read_split(TASKS / folder, task, split)
        assert len(examples) == count
        assert len(set(ids(examples))) == count
        assert all(text for example in examples for text in example.texts + example.choices)
        if task.labels is not None:
            assert set(labels(examples)) == set(range(len(task.labels)))


@needs_tasks
@pytest.mark.parametrize(
    ("splits", "count"), [(["train"], 1_500), (["dev_middle", "dev_high"], 1_389)]
)
def test_race_has_its_passages_and_every_question_of_them(splits, count):
    task = official("race")
    examples = [ex for name in splits for ex in read_split(TASKS / "RACE", task, name)]
    assert len({example.id.rpartition("/")[0] for example in examples}) == count
    folders = [TASKS / "RACE" / task.splits[name] for name in splits]
    passages = [json.loads(p.read_bytes()) for folder in folders for p in folder.rglob("*.txt")]
    assert len(passages) == count
    assert len(examples) == sum(len(passage["questions"]) for passage in passages)
