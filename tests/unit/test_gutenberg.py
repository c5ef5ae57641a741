"""Test that what Project Gutenberg put around a book goes, and nothing else."""

import json

import pytest

from data_prep.reading.documents import Form
from tests.texts import SHARED, TEXTS, clean_text, cleaned
from tests.unit.test_paragraphs import WRAPPED

HEADER = "The Project Gutenberg EBook of Moby\n\nTitle: Moby\n\n"
START = "*** START OF THIS PROJECT GUTENBERG EBOOK MOBY ***\n\nProduced by A. Volunteer\n\n"
OLD_START = "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n"
END = "\n*** END OF THIS PROJECT GUTENBERG EBOOK MOBY ***\n\nlicence text\n"
OLD_END = "\nEnd of Project Gutenberg's Moby, by Herman Melville\n\nlicence text\n"
NOTE = "[Transcriber's Note: spelling was\nleft as it is.]\n\n"
BOOK = "\n\n".join(f"Paragraph {n}: {WRAPPED[:200]}" for n in range(60))


@pytest.mark.parametrize("end", [END, OLD_END, "\nEnd of the Project Gutenberg EBook of Moby\n"])
@pytest.mark.parametrize("start", [HEADER + START, HEADER + OLD_START, HEADER + START + NOTE, ""])
@pytest.mark.parametrize("indent", ["", "  "])
def test_gutenberg_wrapping_goes(start: str, end: str, indent: str) -> None:
    marks = (start + "\0" + end).replace("\n*", f"\n{indent}*")
    assert clean_text(marks.replace("\0", WRAPPED)) == clean_text(WRAPPED)


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
    text = clean_text(TITLE + PROMISE + FIELDS + body + "\n" + end + OLD_START)
    assert text == clean_text(body)
    assert text.count("\n") == paragraphs - 1


def test_small_print_at_the_end_of_a_file() -> None:
    lines = clean_text(TEXTS / "small-print-at-end.txt").split("\n")
    assert len(lines) == 40
    assert lines[0].startswith("the careful letter feared the market")
    assert lines[-1].endswith("before the patient harbour watched it again.")


def test_small_print_at_the_beginning_of_a_short_book_ends_the_header() -> None:
    text = clean_text(TITLE + PROMISE + SMALL_PRINT + OLD_START + WRAPPED)
    assert text == clean_text(WRAPPED)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (HEADER + START + END, "emptied by the step notes"),
        (TITLE + FIELDS + LAST_LINE, "emptied by the step gutenberg"),
    ],
)
def test_a_step_that_empties_a_book_is_named(text: str, fault: str) -> None:
    assert (cleaned(text).text, cleaned(text).fault) == ("", fault)
    assert cleaned(text, gutenberg=False, notes=False).fault is None


def test_a_book_on_one_line_is_not_lost() -> None:
    text = f"{HEADER[:35]} {' '.join(BOOK.split())}"
    assert clean_text(text, "record") == text.lower()


PROSE = [
    "Produced by a small studio in the north, the record was released in the spring.",
    "Created from a single block of granite, the fountain stands in the square.",
    "Transcribed by hand for three centuries, the chronicle has many errors.",
    "Transcriber's notes fill the margins of the oldest copy.",
    "Credits: three of them are needed to pass.",
    "Gutenberg's press was built by 1450; the Gutenberg Bible followed.",
]


@pytest.mark.parametrize("paragraph", PROSE)
def test_prose_that_begins_as_a_credit_stays(paragraph: str) -> None:
    text = f"{paragraph}\n\n{WRAPPED}\n\n{paragraph}"
    assert clean_text(text).count(paragraph.lower()) == 2


@pytest.mark.parametrize(
    "line",
    [
        "End of Project Gutenberg was feared by many in 2001, but it went on.",
        "End of the Project Gutenberg ebook era, they said, and were wrong.",
        "End of Project Gutenberg's first server: it was sold in 2003.",
        "end of the Project Gutenberg EBook of Moby, where the licence stands.",
    ],
)
def test_a_sentence_about_the_project_s_end_stays(line: str) -> None:
    assert clean_text(f"{WRAPPED}\n{line}\n\n{WRAPPED}").count("call me ishmael") == 2


@pytest.mark.parametrize(
    "line",
    [
        "End of Project Gutenberg’s Etext of Moby",
        "End of the Project Gutenberg Etext Moby",
        "End of this Project Gutenberg of Australia eBook",
        'End of Project Gutenberg\'s "Moby"',
    ],
)
def test_every_form_of_the_last_line_ends_a_book(line: str) -> None:
    assert clean_text(f"{WRAPPED}\n{line}\n\nLicence text.") == clean_text(WRAPPED)


@pytest.mark.parametrize("paragraph", PROSE[:3])
def test_credits_of_a_book_with_marks_go(paragraph: str) -> None:
    book = f"{HEADER}{START}{paragraph}\n\n{WRAPPED}\n\n{paragraph}{END}"
    assert clean_text(book) == clean_text(WRAPPED)


def test_rows_that_begin_as_credits_keep_every_word() -> None:
    rows = (TEXTS / "credits-in-prose.jsonl").read_text().splitlines()
    texts = [json.loads(row)["text"] for row in rows]
    assert len(texts) == 3
    for text in texts:
        result = cleaned(text, "record")
        assert result.text.split() == text.lower().split()
        assert result.effects.keys() == {"blanks", "lowercase"} or "\n" not in text


SPELLING = "Spelling was kept as it is in the printed\nbook, and errors were corrected."
NOTES = {
    "short": f"Transcriber's Note: {SPELLING}\n\n\n",
    "paragraphs": f"Transcriber's Note:\n\n{SPELLING}\n\n{SPELLING}\n\n\n\n",
    "brackets": f"[Transcriber's Note: {SPELLING}\n\nA [second] one.\n\n{SPELLING}]\n\n",
    "box": "+------+\n| Transcriber's Notes: |\n| Spelling was kept.   |\n+------+\n\n",
    "indented": "TRANSCRIBER'S NOTES\n\n    Spelling was kept.\n\n    Pictures were moved.\n\n\n\n",
    "credit": f"Transcriber's Note:\n\n{SPELLING}\n\nProduced by A. V.\n\n{SPELLING}\n\n\n",
    "long": "Transcriber’s Note\n\n" + f"{SPELLING}\n\n" * 30 + "\n\n",
}


@pytest.mark.parametrize("note", NOTES.values(), ids=NOTES)
def test_notes_at_head_and_tail_go(note: str) -> None:
    front = "A TITLE\n\n\n" + "[Illustration]\n\n\n" * 250
    assert clean_text(HEADER + START + note + BOOK + END) == clean_text(BOOK)
    assert clean_text(HEADER + START + BOOK + "\n\n\n" + note + END) == clean_text(BOOK)
    after_front = clean_text(HEADER + START + front + note + BOOK + END)
    assert after_front == clean_text(front + BOOK)


def test_a_long_list_of_corrections_at_the_end_goes() -> None:
    changes = "\n\n\n".join(f'Page {n}: "colour" was "color".' for n in range(300))
    book = HEADER + START + BOOK * 2 + "\n\n\nTRANSCRIBER'S NOTES\n\n\n" + changes + END
    assert clean_text(book) == clean_text(BOOK * 2)


def test_notes_can_stay() -> None:
    text = clean_text(HEADER + START + NOTE + WRAPPED + END, notes=False)
    assert "spelling was" in text
    assert "produced by" in text
    assert "project gutenberg" in clean_text(HEADER + START + WRAPPED + END, gutenberg=False)


MENTIONS = [
    "Transcriber's note: a chat about notes\n\nFirst paragraph of real text.\n\nA second one.",
    "Transcriber's Notes\n\nA story with this title.\n\nIts end.",
    "[Transcriber's note: spelling kept.]\n\nFirst paragraph of real text.",
    "First paragraph of real text.\n\n[Transcriber's note: spelling kept.]",
    "[Transcriber's note: a bracket without an end\n\nFirst paragraph of real text.",
    "Produced by a friend, this page lists books.\n\nMost are of http://gutenberg.net.au today.",
    "Produced by a friend.\n\nThe volunteers of Distributed Proofreaders (pgdp.net) were there.",
]


@pytest.mark.parametrize("form", ["text", "record"])
@pytest.mark.parametrize("text", MENTIONS)
def test_documents_that_mention_notes_or_a_site_keep_every_word(text: str, form: Form) -> None:
    result = cleaned(text, form)
    assert result.text.split() == text.lower().split()
    assert not result.effects.keys() & {"notes", "gutenberg"}


def test_a_credit_that_names_its_maker_is_a_mark() -> None:
    credit = "Produced by A. V. and the Online Distributed\nProofreading Team\n\n"
    assert clean_text(credit + WRAPPED) == clean_text(WRAPPED)
    assert clean_text(credit + "Transcriber's Note: none.\n\n\n" + WRAPPED) == clean_text(WRAPPED)


AUSTRALIAN_FIELDS = """Title:      The Lighthouse
Author:     A. Writer
* A Project Gutenberg of Australia eBook *
eBook No.:  0100001.txt
Language:   English
Date first posted: August 2001

This eBook was produced by: A. Volunteer

Project Gutenberg of Australia eBooks are created from printed editions
which are in the public domain in Australia.

Copyright laws are changing all over the world.

To contact Project Gutenberg of Australia go to http://gutenberg.net.au

-----------------------------------------------------------

A Project Gutenberg of Australia eBook

Title:      The Lighthouse
Author:     A. Writer


"""
BANNER = "Project Gutenberg Australia\na treasure-trove of literature\n\n"
FOOTERS = [
    "\n\nTHE END\n\n\n\nThis site is full of FREE ebooks - Project Gutenberg Australia\n",
    "\n\nTHE END\n\n----------\n\nProject Gutenberg Australia\nhttp://gutenberg.net.au\n",
    "\n\nTHE END\n\nEnd of this Project Gutenberg of Australia eBook\n",
]


@pytest.mark.parametrize("footer", FOOTERS)
@pytest.mark.parametrize("banner", ["", BANNER])
def test_project_gutenberg_australia_goes(banner: str, footer: str) -> None:
    book = clean_text("\n\n" + banner + AUSTRALIAN_FIELDS + BOOK + footer)
    assert book == clean_text(BOOK) + "\nthe end"


PAGES = (
    "He left. [Pg 13] Then {p. 14} he came and\n\n15\n\n[Illustration: A man\nand a dog]\n\nslept."
)


def test_page_marks_go_on_demand() -> None:
    assert clean_text(PAGES, page_marks=True) == "he left. then he came and\nslept."
    kept = clean_text(PAGES)
    assert all(mark in kept for mark in ("[pg 13]", "{p. 14}", "\n15\n", "[illustration: a man"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
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
    text = clean_text(SHARED / "books-raw" / name)
    assert text.startswith(begin)
    assert text.endswith(end)
    assert "gutenberg" not in text
    assert "produced by" not in text[:2000]
