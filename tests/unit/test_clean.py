"""Test the steps of cleaning: each changes what it names, is counted, and can be left out."""

import json
import sys
from pathlib import Path

import ftfy
import pytest

from data_prep.cleaning.characters import collapse_blanks, plain_blanks, plain_punctuation
from data_prep.cleaning.encodings import decode
from data_prep.cleaning.repair import repair
from data_prep.reading.documents import Form
from data_prep.steps import RECIPES, Steps
from tests.texts import SHARED, TEXTS, clean_text, cleaned

needs_books = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")

PERSIAN = "می‌خواهم"
FAMILY = "👩\u200d👧"


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("“It’s …” he said—‘no’ – 1–2", "\"it's ...\" he said--'no' - 1-2"),
        ("an _emphatic_ word, _two words_; snake_case", "an emphatic word, two words; snake_case"),
        ("tab\tand\u00a0no-break \u2003 em space ", "tab and no-break em space"),
        ("nul\x00 and \x07bell \ufeffand zero\u200bwidth", "nul and bell and zerowidth"),
        ("fish &amp; chips, AT&T", "fish & chips, at&t"),
        ("page\fbreak", "page\nbreak"),
        ("next\x85line\x85\x85¿Qué é\x85end", "next\nline\n¿qué é\nend"),
        ("it\x92s so\x85 or not", "it's so... or not"),
        ("Ã\x85ngstrÃ¶m\x85and", "ångström\nand"),
        ("schÃ¶n and â€œquotedâ€\x9d", 'schön and "quoted"'),
        ("_\n\nleft alone", "left alone"),
        ("a soft hy\xad\nphen and an\xadother", "a soft hyphen and another"),
        ("ΣΊΣΥΦΟΣ and ÀÉ", "σίσυφος and àé"),
        (f"{PERSIAN} {FAMILY} ക്\u200d।", f"{PERSIAN} {FAMILY} ക്\u200d।"),
        ("a\u200dnd a\u200cnd \u200fright", "and and right"),
        ("ไทย\u200bไทย a\u200bb", "ไทย\u200bไทย ab"),
        ("他说：“今晚会下雨！”——（Ｆｕｌｌ）…", "他说：“今晚会下雨！”——（ｆｕｌｌ）…"),
        ("e\u0301t\u00e9", "été"),
    ],
)
def test_crafted_lines(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


@pytest.mark.parametrize(
    ("step", "raw", "count", "without"),
    [
        ("line_ends", "a\r\nb\rc", 2, None),
        ("breaks", "a\fb\u2028c", 2, "a b c"),
        ("breaks", "a\x85b", 1, "a...b"),
        ("repair", "schÃ¶n", 1, "schã¶n"),
        ("compose", "e\u0301", 1, "e\u0301"),
        ("invisible", "some\u200e more words\x01", 2, "some\u200e more words\x01"),
        ("blanks", "a  b\n\n c", 3, None),
        ("punctuation", "“a”…", 3, "“a”…"),
        ("italics", "_a_ b_c", 2, "_a_ b_c"),
        ("space_mark", "a▁b ▁c 中文▁", 3, "a▁b ▁c 中文▁"),
        ("long_words", "x" * 9000, 2, "x" * 9000),
        ("lowercase", "ABc Éé", 3, "ABc Éé"),
    ],
)
def test_each_step_is_counted_and_can_be_left_out(
    step: str, raw: str, count: int, without: str | None
) -> None:
    assert cleaned(raw, "record").effects[step] == count
    left_out = cleaned(raw, "record", **{step: False})
    assert step not in left_out.effects
    if without is not None:
        assert left_out.text == (without if step == "lowercase" else without.lower())


@pytest.mark.parametrize("content", ["  a\r\n\n\tb \r\fc\u2028—“É”…_d_\n\n", "x" * 5000])
@pytest.mark.parametrize("form", ["text", "record", "paragraphs", "sentences"])
def test_the_plain_recipe_changes_line_ends_alone(content, form) -> None:
    plain = content.replace("\r\n", "\n").replace("\r", "\n")
    assert cleaned(content, form, "plain").text == plain
    assert cleaned(("\ufeff" + content).encode(), form, "plain").text == plain
    assert cleaned(content, form, "plain").effects.keys() <= {"line_ends"}


def test_recipes_name_steps() -> None:
    assert RECIPES["books"] == Steps()
    on = {name for name, value in RECIPES["plain"] if value is True}
    assert on == {"guess", "line_ends", "space_mark"}
    assert cleaned("a▁b", recipe="plain").text == "a_b"
    assert cleaned("a▁b", recipe="plain").effects == {"space_mark": 1}


def test_texts_of_rows_keep_their_lines() -> None:
    for name in ("chat", "program"):
        rows = (TEXTS / f"{name}.jsonl").read_text().splitlines()
        for text in (json.loads(row)["text"] for row in rows):
            assert cleaned(text, "record", "plain").text == text
            lines = [line for line in text.splitlines() if line]
            assert clean_text(text, "record").splitlines() == [
                " ".join(line.split()).lower() for line in lines
            ]


CODE = "```python\ndef f(x):\n\tif x:\n        return  x\n\n    return 1\n```"


@pytest.mark.parametrize("form", ["text", "record"])
def test_fenced_code_keeps_its_blanks(form: Form) -> None:
    text = f"  Some  prose\n\n{CODE}\n\n   more\tprose\n  {CODE}\n \n"
    assert clean_text(text, form) == f"some prose\n{CODE}\nmore prose\n  {CODE}"
    assert cleaned(text, form).effects["blanks"] == 12


@pytest.mark.parametrize(
    "text", ["```\n  a\n", "  a ``` b\n```\n", "```a\n  b\n```c\n", "```a\n" * 9**6]
)
def test_fences_that_enclose_nothing_are_text(text: str) -> None:
    assert "\n " not in clean_text(text)


def test_chinese_paragraphs_and_persian_joiners_stay() -> None:
    for name, count in (("chinese-paragraphs.txt", 200), ("persian-joiners.txt", 40)):
        raw = (TEXTS / name).read_text()
        text = clean_text(TEXTS / name)
        assert text.split("\n") == [line for line in raw.split("\n") if line]
        assert text.count("\n") == count - 1


def test_a_word_without_end_is_cut() -> None:
    lines = clean_text("x" * 10_000).split("\n")
    assert list(map(len, lines)) == [4096, 4096, 1808]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("\n \n", "empty"),
        ("", "empty"),
        ("words", None),
        ("\u200b", "emptied by the step invisible"),
    ],
)
def test_an_empty_text_has_its_reason(text: str, fault: str | None) -> None:
    result = cleaned(text)
    assert result.fault == fault
    assert (result.text == "") is (fault is not None)


def test_a_program_file_is_no_text() -> None:
    program = Path(sys.executable).resolve().read_bytes()[:100_000]
    for recipe in RECIPES:
        assert cleaned(program, recipe=recipe).fault is not None
        assert cleaned(program, recipe=recipe).text == ""
    few = b"A page, a NUL \0 and a form feed.\x0c" * 9
    assert cleaned(few).fault is None
    assert "\0" not in cleaned(few).text


@pytest.mark.parametrize("raw", [" ", "_", "\n", "\r", "x", "-\n", "[", "&#", "'", "\u200d"])
def test_hostile_repetition_takes_little_time(raw: str) -> None:
    text = "a" + raw * 200_000 + "b"
    result = cleaned(text, page_marks=True)
    assert result.text.startswith("a")
    assert result.text.endswith("b")


MOJIBAKE = ["schÃ¶n", "Ã  la carte", "voilÃ ", "â€” dash", "â€™s", "it\x92s", "caf√©", "Â£5"]
ODD = ["&eacute;t&eacute;", "&AMP;", "ﬁsh", "ǆ", "\x1b[31mred", "½ lb", "5° £6", "Привет", "пїЅ"]
HARMLESS = ["café", "“É.”", "’Tis—“so”…", "à la", "Â", "A Â b", "Ã ", "É“", "naïve “œuvre”", "AT&T"]


@pytest.mark.parametrize("lines", [MOJIBAKE, ODD, HARMLESS], ids=["mojibake", "odd", "harmless"])
def test_gate_changes_nothing_on_crafted_lines(lines: list[str]) -> None:
    for line in lines:
        assert_same_as_ftfy_everywhere(line)
        assert_same_as_ftfy_everywhere(f"some words {line} and more")


@needs_books
def test_gate_changes_nothing_on_real_books() -> None:
    raw = sorted((SHARED / "books-raw").iterdir())
    mixed = [next((SHARED / "books").glob(name)) for name in ("Henry_David*", "James_Feni*France*")]
    for file in raw[1:] + mixed:
        assert_same_as_ftfy_everywhere(decode(file.read_bytes()).text.replace("\r\n", "\n"))


def assert_same_as_ftfy_everywhere(text: str) -> None:
    everywhere = ftfy.fix_text(text, fix_character_width=False, normalization=None)
    assert standardised(repair(text)[0]) == standardised(everywhere)


def standardised(text: str) -> str:
    return collapse_blanks(plain_blanks(plain_punctuation(text)[0])[0])[0]
