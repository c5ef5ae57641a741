"""Test that hard-wrapped lines become paragraphs, and that all other lines stay."""

import itertools
import json
import random
import sysconfig
import textwrap
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.cleaning import blocks
from data_prep.cleaning.blocks import Blocks
from data_prep.cleaning.paragraphs import unwrap
from tests.texts import TEXTS, clean_text, cleaned

WRAPPED = """Call me Ishmael. Some years ago, never mind how long precisely, having
little or no money in my purse, and nothing particular to interest me on
shore, I thought I would sail about a little and see the well-
known part of the world.

It is a way I have of driving off the spleen and regulating the cir--
culation.
"""
VERSE = "Tiger, tiger, burning bright\nIn the forests of the night,\nWhat immortal hand or eye"
ENGLISH = "the old farmer followed a lantern to market before we found it again and crossed"
GERMAN = "der alte Fischer ging langsam zum Fluss und dachte an sein langes Leben Kinder"
ARABIC = "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق وقد وهبوا عقلا وضميرا"
CHINESE = "老船长把灯放在窗边望着河面孩子们在院子里唱歌母亲正在厨房里准备晚饭今年的冬天来得很早"


def paragraphs_of(words: str, seed: int = 0, most: int = 120) -> list[str]:
    draw = random.Random(seed)
    texts = (" ".join(draw.choices(words.split(), k=draw.randrange(20, most))) for _ in range(60))
    return [text[0].upper() + text[1:] + "." for text in texts]


def lines_of(text: str) -> list[str]:
    return clean_text(text, lowercase=False).split("\n")


def test_hard_wrapped_lines_become_paragraphs() -> None:
    first, second = lines_of(WRAPPED)
    assert first.startswith("Call me Ishmael.")
    assert "having little" in first
    assert "the well-known part" in first
    assert "the cir--culation." in second
    assert cleaned(WRAPPED).effects["unwrap"] == 4


@pytest.mark.parametrize("letter", ["a", "é", "—"])
@pytest.mark.parametrize("seed", range(8))
def test_blocks_joined_at_once_equal_those_joined_one_by_one(
    seed: int, letter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    odd = ["-", "well-", "gap   gap", "—", "so--", "3.", "* item", "short", "(1)", f"{letter}--"]
    odd += ["\u0663."] if letter == "—" else []  # three, in Arabic
    texts = []
    for paragraph in paragraphs_of(ENGLISH, seed):
        words = paragraph.split(" ")
        if draw.random() < 0.4:
            words[draw.randrange(len(words))] = draw.choice(odd)
        indent = draw.choice(["", "", "", "    "])
        texts.append(textwrap.fill(" ".join(words), draw.choice([60, 72]), initial_indent=indent))
    text = "\n" * (seed % 3) + "".join(one + "\n" * draw.choice([1, 2, 2, 2, 3]) for one in texts)
    monkeypatch.setattr(blocks, "_SECTION", 500)
    at_once = unwrap(text)
    plain = Blocks.plain
    found = []

    def none(self: Blocks, numbers: NDArray[np.intp], *limits: int) -> NDArray[np.bool_]:
        found.append(int(plain(self, numbers, *limits).sum()))
        return np.zeros(len(numbers), np.bool_)

    monkeypatch.setattr(Blocks, "plain", none)
    assert unwrap(text) == at_once
    assert at_once[1] > 100
    assert len(found) > 5
    assert sum(found) > 5


@pytest.mark.parametrize("width", [40, 60, 72, 80, 120])
@pytest.mark.parametrize("words", [ENGLISH, GERMAN, ARABIC], ids=["english", "german", "arabic"])
def test_any_column_is_found(words: str, width: int) -> None:
    paragraphs = paragraphs_of(words)
    wrapped = [textwrap.fill(paragraph, width) for paragraph in paragraphs]
    assert lines_of("\n\n".join(wrapped)) == paragraphs
    indented = [textwrap.fill(paragraph, width, initial_indent="   ") for paragraph in paragraphs]
    assert lines_of("\n".join(indented)) == paragraphs
    assert lines_of("\n".join(paragraphs)) == paragraphs
    assert lines_of("\n".join(wrapped)) != "\n".join(wrapped).split("\n")


@pytest.mark.parametrize("form", ["record", "paragraphs"])
def test_only_text_files_are_unwrapped(form) -> None:
    text = "\n\n".join(textwrap.fill(paragraph) for paragraph in paragraphs_of(ENGLISH))
    assert clean_text(text, form, lowercase=False).split("\n") == text.replace("\n\n", "\n").split(
        "\n"
    )


def test_chinese_lines_are_joined_without_a_space() -> None:
    draw = random.Random(0)
    paragraphs = [
        "".join(draw.choices(CHINESE, k=draw.randrange(80, 400))) + "。" for _ in range(30)
    ]
    wrapped = ["\n".join(textwrap.wrap(paragraph, 36)) for paragraph in paragraphs]
    assert lines_of("\n\n".join(wrapped)) == paragraphs
    assert lines_of("\n".join(paragraphs)) == paragraphs


def test_a_paragraph_a_line_stays() -> None:
    lines = (TEXTS / "one-paragraph-a-line.txt").read_text().splitlines()
    assert lines_of("\n".join(lines)) == lines
    assert len(lines) == 120
    long = ["A sentence that goes on and on. " * 6, "Short.", "Another long line again. " * 8]
    assert lines_of("\n".join(long)) == list(map(str.strip, long))


def test_a_novel_without_blank_lines_has_paragraphs() -> None:
    raw = (TEXTS / "no-blank-lines.txt").read_text()
    lines = lines_of(raw)
    assert 75 <= len(lines) <= 80
    assert max(map(len, lines)) < 1_000
    assert all(line[0].isupper() and line.endswith(".") for line in lines)
    assert " ".join(lines) == " ".join(raw.split())


@pytest.mark.parametrize("name", ["chat", "program"])
def test_chats_and_programs_keep_their_lines(name: str) -> None:
    for row in (TEXTS / f"{name}.jsonl").read_text().splitlines():
        text = json.loads(row)["text"]
        assert unwrap(text) == (text, 0)


def test_real_programs_keep_their_lines() -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [file.read_text("utf-8") for file in sorted(library.glob("[a-m]*.py"))]
    changed = sum(unwrap(text)[1] > 0 for text in texts)
    assert len(texts) > 50
    assert changed == 0


def test_chats_without_punctuation_keep_their_lines() -> None:
    draw = random.Random(0)
    for prefix in ("", "Ann: ", "[12:04] <ann> ", "- "):
        turns = [
            prefix + " ".join(draw.choices(ENGLISH.split(), k=draw.randrange(1, 25)))
            for _ in range(300)
        ]
        assert unwrap("\n".join(turns)) == ("\n".join(turns), 0)


def test_verse_keeps_its_lines() -> None:
    assert clean_text(WRAPPED + "\n" + VERSE).endswith(VERSE.lower())
    numbered = VERSE.replace("bright\n", f"bright{' ' * 40}5\n")
    assert clean_text(WRAPPED + "\n" + numbered).endswith(
        VERSE.lower().replace("ght\n", "ght 5\n", 1)
    )


def test_filled_lines_that_begin_with_a_capital_are_no_verse() -> None:
    said = (
        '"I think that you ought to know of it by now," whispered old\nChristopher Chillingworth.'
    )
    assert lines_of(WRAPPED + "\n" + said)[-1] == said.replace("\n", " ")


LIST = """- the first item of a list, which is longer than the column and therefore goes
  on in the next line
- the second
- the third item, which is also longer than any line of this text and so must
  go on as well"""
CONTENTS = "the beginning of it all .... 1\nthe middle .... 200\na third chapter .... 300"
TABLE = "London        1,200      of 3 kinds\nYork          12         of 2 kinds"


def test_lists_and_tables_keep_their_lines() -> None:
    prose = "\n\n".join(textwrap.fill(paragraph, 76) for paragraph in paragraphs_of(ENGLISH))
    items = lines_of(f"{prose}\n\n{LIST}")[-3:]
    assert items == [" ".join(item.split()) for item in LIST.replace("\n-", "\0-").split("\0")]
    assert lines_of(f"{prose}\n\n{CONTENTS}")[-3:] == CONTENTS.split("\n")
    assert lines_of(f"{prose}\n\n{TABLE}")[-2:] == [
        " ".join(row.split()) for row in TABLE.split("\n")
    ]


def test_line_ends_do_not_matter() -> None:
    assert clean_text(WRAPPED.replace("\n", "\r\n")) == clean_text(WRAPPED)
    assert clean_text(WRAPPED.replace("\n", "\r")) == clean_text(WRAPPED)
    assert clean_text(WRAPPED.replace("\n", " \t\n")) == clean_text(WRAPPED)


def test_every_change_is_counted() -> None:
    text = f"A title   \n\n\n  {VERSE}\n\n"
    assert unwrap(text) == (text, 0)
    assert unwrap(CONTENTS.replace("\n", "  \n") + "\n\n\n") == (
        CONTENTS.replace("\n", "  \n") + "\n\n\n",
        0,
    )
    joined, count = unwrap("\n\nA title  \n\n\n" + WRAPPED + "  \n")
    first, second = WRAPPED.rstrip("\n").split("\n\n")
    paragraphs = [part.replace("-\n", "-").replace("\n", " ") for part in (first, second)]
    assert joined == "\n\nA title\n\n\n" + "\n\n".join(paragraphs) + "\n\n"
    assert count == 4 + 2 + 2
    listed = "\n\n".join(textwrap.fill(p, 76) for p in paragraphs_of(ENGLISH)) + "\n\n"
    assert unwrap(listed + LIST)[1] == unwrap(listed)[1] + 2 + 4


@pytest.mark.parametrize(
    ("end", "begin", "joined"),
    [
        ("shore, all --", "and nobody", "shore, all -- and nobody"),
        ("shore, all -", "and nobody", "shore, all - and nobody"),
        ("shore, all —", "and nobody", "shore, all — and nobody"),
        ("shore, all--", "and nobody", "shore, all--and nobody"),
        ("shore, all!--", "and nobody", "shore, all!--and nobody"),
        ("shore, all—", "and nobody", "shore, all—and nobody"),
        ("shore, twenty-", "four", "shore, twenty-four"),
        ("shore, 1914-", "1918", "shore, 1914-1918"),
        ("shore, all!-", "and nobody", "shore, all!- and nobody"),
    ],
)
def test_a_dash_keeps_its_spaces(end: str, begin: str, joined: str) -> None:
    text = WRAPPED.replace(
        "on\nshore", f"on\nbut nothing particular to interest me in any way on {end}\n{begin}"
    )
    assert joined in unwrap(text)[0]


def test_fenced_code_stays_and_is_no_evidence() -> None:
    fence = "```python\nfor item in items:\n    print(item)  \n    call(item);\n\n    go()\n```"
    text = f"{WRAPPED}\n{fence}\n{WRAPPED}\n{fence}\n"
    joined, count = unwrap(text)
    assert joined.count(fence) == 2
    assert "having little" in joined.split(fence)[0]
    assert "the well-known part" in joined.split(fence)[1]
    assert count == 2 * unwrap(WRAPPED)[1]
    assert unwrap(text + "```\n")[0].startswith(joined)


def test_sentences_become_bounded_paragraphs() -> None:
    lines = [f"sentence number {number} , she said ." for number in range(500)]
    result = cleaned("\n".join(lines).encode(), "sentences")
    paragraphs = result.text.split("\n")
    assert " ".join(paragraphs) == " ".join(lines)
    assert all(1900 < len(paragraph) <= 2000 for paragraph in paragraphs[:-1])
    assert result.effects == {"sentences": 500 - len(paragraphs)}


def test_no_word_is_lost_or_made() -> None:
    for seed, (words, width) in enumerate(itertools.product((ENGLISH, ARABIC), (35, 50, 72))):
        text = "\n\n".join(textwrap.fill(p, width) for p in paragraphs_of(words, seed))
        assert " ".join(lines_of(text)) == " ".join(text.split())
