"""Test cleaning on crafted lines and on real books."""

import sys
from pathlib import Path

import ftfy
import pytest
from data_prep.clean import clean, decode, normalise_space, repair, standardise_punctuation

BOOKS = Path(__file__).parents[3] / "shared/data"
needs_books = pytest.mark.skipif(not BOOKS.is_dir(), reason="../shared/data is absent")

WRAPPED = """Call me Ishmael. Some years ago, never mind how long precisely, having
little or no money in my purse, and nothing particular to interest me on
shore, I thought I would sail about a little and see the well-
known part of the world.

It is a way I have of driving off the spleen and regulating the cir--
culation.
"""


def text_of(data: str | bytes, lowercase: bool = True) -> str:
    return clean(data.encode() if isinstance(data, str) else data, "book", lowercase).text


def test_hard_wrapped_lines_become_paragraphs() -> None:
    first, second = text_of(WRAPPED, lowercase=False).split("\n")
    assert first.startswith("Call me Ishmael.")
    assert "having little" in first
    assert "the well-known part" in first
    assert "the cir--culation." in second


def test_long_lines_stay_paragraphs() -> None:
    lines = ["A sentence that goes on and on. " * 6, "Short.", "Another long line again. " * 8]
    assert text_of("\n".join(lines), lowercase=False) == "\n".join(map(str.strip, lines))


def test_verse_keeps_its_lines() -> None:
    verse = "Tiger, tiger, burning bright\nIn the forests of the night,\nWhat immortal hand or eye"
    assert text_of(WRAPPED + "\n" + verse).endswith(verse.lower())


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("“It’s …” he said—‘no’ – 1–2", "\"it's ...\" he said--'no' - 1-2"),
        ("an _emphatic_ word, _two words_; snake_case", "an emphatic word, two words; snake_case"),
        ("tab\tand\u00a0no-break \u2003 em space ", "tab and no-break em space"),
        ("nul\x00 and \x07bell \ufeffand zero\u200bwidth", "nul and bell and zerowidth"),
        ("fish &amp; chips, AT&T", "fish & chips, at&t"),
        ("page\fbreak", "page break"),
        ("schÃ¶n and â€œquotedâ€\x9d", 'schön and "quoted"'),
        ("_\n\nleft alone", "left alone"),
        ("\n \n\t\n", ""),
    ],
)
def test_crafted_lines(raw: str, cleaned: str) -> None:
    assert text_of(raw) == cleaned


@pytest.mark.parametrize(
    ("data", "latin1"),
    [
        ("caf\u00e9 \u201cx\u201d".encode(), False),
        ("\ufeffcaf\u00e9 \u201cx\u201d".encode(), False),
        ("caf\u00e9 \u201cx\u201d".encode("utf-16"), False),
        ("caf\u00e9 \u201cx\u201d".encode("cp1252"), True),
    ],
)
def test_encodings(data: bytes, latin1: bool) -> None:
    result = clean(data, "book", lowercase=True)
    assert result.text == 'café "x"'
    assert result.latin1 is latin1


def test_one_bad_byte_costs_nothing_else() -> None:
    assert text_of("déjà vu\n\n".encode() + b"bad \xff byte") == "déjà vu\nbad ÿ byte"


def test_line_ends_do_not_matter() -> None:
    assert text_of(WRAPPED.replace("\n", "\r\n")) == text_of(WRAPPED)
    assert text_of(WRAPPED.replace("\n", "\r")) == text_of(WRAPPED)


def test_a_word_without_end_is_cut() -> None:
    lines = text_of("x" * 10_000).split("\n")
    assert list(map(len, lines)) == [4096, 4096, 1808]


def test_sentences_become_bounded_paragraphs() -> None:
    lines = [f"sentence number {number} , she said ." for number in range(500)]
    text = clean("\n".join(lines).encode(), "sentences", lowercase=True).text
    assert text.replace("\n", " ") == " ".join(lines)
    assert all(1900 < len(paragraph) <= 2000 for paragraph in text.split("\n")[:-1])


HEADER = "The Project Gutenberg EBook of Moby\n\nTitle: Moby\n\n"
START = "*** START OF THIS PROJECT GUTENBERG EBOOK MOBY ***\n\nProduced by A. Volunteer\n\n"
OLD_START = "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n"
END = "\n*** END OF THIS PROJECT GUTENBERG EBOOK MOBY ***\n\nlicence text\n"
OLD_END = "\nEnd of Project Gutenberg's Moby, by Herman Melville\n\nlicence text\n"
NOTE = "[Transcriber's Note: spelling was\nleft as it is.]\n\n"


@pytest.mark.parametrize("end", [END, OLD_END, "\nEnd of the Project Gutenberg EBook of Moby\n"])
@pytest.mark.parametrize("start", [HEADER + START, HEADER + OLD_START, HEADER + START + NOTE, ""])
def test_gutenberg_wrapping_goes(start: str, end: str) -> None:
    assert text_of(start + WRAPPED + end) == text_of(WRAPPED)


TITLE = "The Project Gutenberg Etext of A Small Book, by A. Writer\n#1 in our series\n\n"
PROMISE = "This header should be the first thing seen when anyone starts to\nview the etext.\n\n"
FIELDS = "Title: A Small Book\n\nAuthor: A. Writer\n\n\n"
LAST_LINE = "\nEnd of the Project Gutenberg Etext of A Small Book, by A. Writer\n\n"
SMALL_PRINT = (
    "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\n"
    'Why is this "Small Print!" statement here? You know: lawyers.\n\nThey tell us.\n'
)


@pytest.mark.parametrize("end", [LAST_LINE + SMALL_PRINT, "\n" + SMALL_PRINT])
@pytest.mark.parametrize("paragraphs", [1, 40, 400])
def test_small_print_at_the_end_is_no_header(end: str, paragraphs: int) -> None:
    body = "\n\n".join(f"Paragraph {n}: {WRAPPED[:200]}" for n in range(paragraphs))
    text = text_of(TITLE + PROMISE + FIELDS + body + "\n" + end + OLD_START)
    assert text == text_of(body)
    assert text.count("\n") == paragraphs - 1


def test_small_print_at_the_beginning_of_a_short_book_ends_the_header() -> None:
    assert text_of(TITLE + PROMISE + SMALL_PRINT + OLD_START + WRAPPED) == text_of(WRAPPED)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (HEADER + START + END, "nothing but Project Gutenberg's notices"),
        (TITLE + FIELDS + LAST_LINE, "nothing but Project Gutenberg's notices"),
        ("\n \n", "empty"),
        ("words", None),
    ],
)
def test_an_empty_text_has_its_reason(text: str, fault: str | None) -> None:
    result = clean(text.encode(), "book", lowercase=True)
    assert result.fault == fault
    assert (result.text == "") is (fault is not None)


PROSE = [
    "Produced by a small studio in the north, the record was released in the spring.",
    "Created from a single block of granite, the fountain stands in the square.",
    "Transcribed by hand for three centuries, the chronicle has many errors.",
    "Transcriber's notes fill the margins of the oldest copy.",
    "Credits: three of them are needed to pass.",
]


@pytest.mark.parametrize("paragraph", PROSE)
def test_prose_that_begins_as_a_credit_stays(paragraph: str) -> None:
    text = f"{paragraph}\n\n{WRAPPED}\n\n{paragraph}"
    assert text_of(text).count(paragraph.lower()) == 2
    assert text_of(HEADER + START + text + END) == text_of(WRAPPED)


def test_a_transcriber_s_note_goes_from_any_document() -> None:
    assert text_of(NOTE + WRAPPED) == text_of(WRAPPED)


@needs_books
@pytest.mark.parametrize(
    ("name", "begin", "end"),
    [
        (
            "1399-0.txt",
            "anna karenina\nby leo tolstoy\n",
            'i have the power to put into it."',
        ),
        ("pg11.txt", "alice's adventures in wonderland\nlewis carroll\n", "the end"),
        ("pg1232.txt", "the prince\nby nicolo machiavelli\n", "but in macedonia or rome."),
    ],
)
def test_real_gutenberg_files(name: str, begin: str, end: str) -> None:
    text = text_of((BOOKS / "books-raw" / name).read_bytes())
    assert text.startswith(begin)
    assert text.endswith(end)
    assert "gutenberg" not in text
    assert "produced by" not in text[:2000]


def test_a_program_is_no_text() -> None:
    program = Path(sys.executable).resolve().read_bytes()[:100_000]
    assert clean(program, "book", lowercase=True).fault == "binary"
    few = b"A page, a NUL \0 and a form feed.\x0c" * 9
    result = clean(few, "book", lowercase=False)
    assert result.fault is None
    assert "\0" not in result.text


@needs_books
def test_thoreau_is_latin1() -> None:
    (file,) = (BOOKS / "books").glob("Henry_David_Thoreau*")
    result = clean(file.read_bytes(), "book", lowercase=True)
    assert result.latin1
    assert "musketaquid" in result.text
    assert not any("\x7f" <= character <= "\x9f" for character in result.text)
    assert "ã" not in result.text


MOJIBAKE = ["schÃ¶n", "Ã  la carte", "voilÃ ", "â€” dash", "â€™s", "it\x92s", "caf√©", "Â£5"]
ODD = [
    "&eacute;t&eacute;",
    "&AMP;",
    "ﬁsh",
    "ǆ",
    "e\u0301",
    "Ｆｕｌｌ",
    "\x1b[31mred",
    "½ lb",
    "5° £6",
]
HARMLESS = ["café", "“É.”", "’Tis—“so”…", "à la", "Â", "A Â b", "Ã ", "É“", "naïve “œuvre”", "AT&T"]


@pytest.mark.parametrize("lines", [MOJIBAKE, ODD, HARMLESS], ids=["mojibake", "odd", "harmless"])
def test_gate_changes_nothing_on_crafted_lines(lines: list[str]) -> None:
    for line in lines:
        assert_same_as_ftfy_everywhere(line)
        assert_same_as_ftfy_everywhere(f"some words {line} and more")


@needs_books
def test_gate_changes_nothing_on_real_books() -> None:
    raw = sorted((BOOKS / "books-raw").iterdir())
    mixed = [next((BOOKS / "books").glob(name)) for name in ("Henry_David*", "James_Feni*France*")]
    for file in raw[1:] + mixed:
        text, _ = decode(file.read_bytes())
        assert_same_as_ftfy_everywhere(text.replace("\r\n", "\n"))


def assert_same_as_ftfy_everywhere(text: str) -> None:
    everywhere = "\n".join(map(ftfy.fix_text, text.split("\n")))
    assert standardised(repair(text)) == standardised(everywhere)


def standardised(text: str) -> str:
    return normalise_space(standardise_punctuation(text))
