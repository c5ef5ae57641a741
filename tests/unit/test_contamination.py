"""Test that texts of tests are found in a token folder, and only those, against brute force."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_prep.cli import main
from data_prep.contamination.overlap import Contamination, find_contamination, read_contamination
from data_prep.contamination.texts import TaskFiles, read_texts
from data_prep.pool import Pool
from data_prep.progress import Progress
from data_prep.token_parts import TokenPart, read_documents
from gpt_dist.data.tokenizers.folder import open_tokenizer
from gpt_dist.data.tokens.folder import TokenFolder
from gpt_dist.errors import DataError

BOOKS = Path("data_prep/sample_books")
BOOK = BOOKS / "Jack_London___The_Faith_of_Men.txt"
CLEAN = "seventeen purple elephants juggle quantum teapots beneath a singing glacier of marmalade"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "tokens"
    build = ["build", str(BOOKS), "--output", str(folder), "--vocab-size", "2000"]
    assert main([*build, "--workers", "1", "--validation-fraction", "0.2"]) == 0
    return folder


@pytest.fixture
def pool() -> Iterator[Pool]:
    with ThreadPoolExecutor(2) as executor:
        yield Pool(executor, 2)


def search(tokens: Path, pool: Pool, *paths: Path, limit: int = 10, **how) -> Contamination:
    folder, files = TokenFolder(tokens), TaskFiles(paths, **how)
    return find_contamination(folder, files, limit, pool, Progress())


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def documents(tokens: Path) -> list[list[str]]:
    """Return the words of each document, from the ids of whole splits at once."""
    folder, tokenizer = TokenFolder(tokens), open_tokenizer(tokens)
    texts = []
    for split in ("train", "validation"):
        stream = folder.split(split)
        ids = stream.read(0, stream.num_tokens)
        ends = np.flatnonzero(ids == tokenizer.end_of_text) + 1
        texts += [words(tokenizer.decode(part)) for part in np.split(ids, ends) if len(part)]
    return texts


def grams(text: list[str], width: int) -> set[tuple[str, ...]]:
    return {tuple(text[i : i + width]) for i in range(len(text) - width + 1)}


def test_planted_sentences_with_other_case_and_marks(tokens, tmp_path, pool):
    line = " ".join(words(BOOK.read_text())[5000:5030])
    short = " ".join(words(BOOK.read_text())[9000:9009])
    changed = ", ".join(line.upper().split()).replace(", ", "... “", 3)
    rows = [CLEAN + " " + CLEAN, changed, f"{CLEAN} {line} {CLEAN}", short.title() + "!"]
    rows += [CLEAN[:60], "much too short", " ".join([*line.split()[:12], "zebra"])]
    (tmp_path / "test.txt").write_text("\n".join(rows) + "\n")
    (file,) = search(tokens, pool, tmp_path / "test.txt").files
    assert (file.texts, file.not_judged) == (7, 1)
    assert (file.by_grams, file.dirty) == (4, 2)
    assert (file.by_whole, file.exact) == (2, 1)
    assert [text.where.rsplit(" ", 1)[1] for text in file.overlaps] == ["2", "3", "4"]
    whole, inside, exact = file.overlaps
    assert (whole.found, whole.grams) == (18, 18)
    assert inside.found == 18 < inside.grams
    assert exact.exact
    assert exact.found == exact.grams == 0
    assert words(inside.passage) == line.split()[:13]


@pytest.mark.parametrize("limit", [1, 10])
def test_counts_equal_brute_force(tokens, tmp_path, pool, limit):
    """Judge parts of the books, shuffled ones, and phrases that several books share."""
    generator = np.random.default_rng(0)
    corpus = documents(tokens)
    rows = []
    for text in corpus:
        for width in (7, 8, 10, 12, 13, 14, 40):
            begin = generator.integers(len(text) - width)
            rows.append(text[begin : begin + width])
            rows.append(list(generator.permutation(rows[-1])))
    shared = set.intersection(*(grams(text, 4) for text in corpus[:2]))
    rows += [list(gram) * 2 for gram in sorted(shared)[:20]]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(row)}) + "\n" for row in rows))
    (file,) = search(tokens, pool, path, limit=limit).files

    sets = {width: [grams(text, width) for text in corpus] for width in range(8, 14)}
    expected = []
    for number, row in enumerate(rows, 1):
        width = min(len(row), 13)
        if width < 8:
            continue
        own = [tuple(row[i : i + width]) for i in range(len(row) - width + 1)]
        counts = [sum(gram in text for text in sets[width]) for gram in own]
        hits = sum(1 <= count <= limit for count in counts)
        if hits:
            expected.append((number, hits if width == 13 else 0, width < 13))
    found = [(int(one.where.rsplit(" ", 1)[1]), one.found, one.exact) for one in file.overlaps]
    assert found == expected
    assert len(expected) > 40
    assert file.not_judged == sum(len(row) < 8 for row in rows)


def test_grams_in_many_documents_are_ignored(tmp_path, pool):
    line = "it was the best of times it was the worst of times and so on"
    texts = [
        f"{line}. Of the number {n} there is more to say: {'x' * n} {n * 7}" for n in range(12)
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "test.txt").write_text(f"{line}\n{texts[3]}\n")
    options = ["--vocab-size", "340", "--min-characters", "1", "--near-duplicates", "0"]
    build = ["build", str(tmp_path / "corpus.jsonl"), "--output", str(tmp_path / "tokens")]
    assert main([*build, *options, "--workers", "1"]) == 0
    (file,) = search(tmp_path / "tokens", pool, tmp_path / "test.txt").files
    assert (file.dirty, file.common) == (1, 1)
    assert file.overlaps[0].where.endswith("line 2")
    (file,) = search(tmp_path / "tokens", pool, tmp_path / "test.txt", limit=12).files
    assert (file.dirty, file.common) == (2, 0)


def test_long_document_in_pieces(tmp_path, monkeypatch, pool):
    """A document of many blocks gives every gram, and no gram of cut words."""
    monkeypatch.setattr("data_prep.token_parts.BLOCK_TOKENS", 700)
    monkeypatch.setattr("data_prep.token_parts.OVERLAP_TOKENS", 100)
    monkeypatch.setattr("data_prep.contamination.search._PART_TOKENS", 1500)
    text = " ".join(words(BOOK.read_text())[:5000])
    (tmp_path / "one.txt").write_text(text)
    build = ["build", str(tmp_path / "one.txt"), "--output", str(tmp_path / "tokens")]
    options = ["--vocab-size", "600", "--validation-fraction", "0", "--workers", "1"]
    assert main([*build, *options]) == 0
    (tmp_path / "test.txt").write_text(text)
    (file,) = search(tmp_path / "tokens", pool, tmp_path / "test.txt").files
    assert (file.found, file.grams) == (5000 - 12, 5000 - 12)
    # All endings of words, in the place of the words: only a cut could give them.
    cut = [[word[1:] or word for word in text.split()[:13]]] + [
        [text.split()[i][1:], *text.split()[i + 1 : i + 13]] for i in range(1, 4900)
    ]
    (tmp_path / "cut.txt").write_text("\n".join(" ".join(row) for row in cut))
    (file,) = search(tmp_path / "tokens", pool, tmp_path / "cut.txt").files
    known = grams(text.split(), 13)
    assert file.dirty == sum(tuple(row) in known for row in cut)


def test_documents_of_parts_are_those_of_the_whole(tokens):
    folder = TokenFolder(tokens)
    stream = folder.split("train")
    end = open_tokenizer(tokens).end_of_text
    ids = stream.read(0, stream.num_tokens)
    starts = [0, *(np.flatnonzero(ids == end) + 1).tolist()][:-1]
    for size in (stream.num_tokens, 50_000, starts[1], starts[1] + 1):
        found = []
        for begin in range(0, stream.num_tokens, size):
            part = TokenPart(tokens, "train", begin, min(begin + size, stream.num_tokens))
            found += [piece.ids for piece in read_documents(part, end) if not piece.continues]
        assert len(found) == len(starts)
        for start, first in zip(starts, found, strict=True):
            np.testing.assert_array_equal(first[:50], ids[start : start + len(first)][:50])


def test_files_of_every_form(tmp_path):
    forms = {
        "a.tsv": 'id\tsentence\n1\the said "yes\n2\tb c\n',
        "b.csv": 'id,sentence\n1,"he said, ""yes"\n2,b c\n',
        "c.jsonl": '{"id": 1, "sentence": "he said \\"yes"}\n{"id": 2, "sentence": "b c"}\n',
        "d.json": '{"version": "1", "data": [{"id": 1, "sentence": ["he said", "yes"]}, "b c"]}',
        "e.txt": "\ufeffhe said yes\n\nb c",
    }
    for name, content in forms.items():
        (tmp_path / name).write_text(content)
        files = TaskFiles((tmp_path / name,), ("sentence",))
        texts = [words(" ".join(text.parts)) for text in read_texts(tmp_path / name, files)]
        assert texts == [["he", "said", "yes"], ["b", "c"]], name
    files = TaskFiles((tmp_path / "a.tsv",), ("1",), header=False)
    assert next(text.parts[0] for text in read_texts(tmp_path / "a.tsv", files)) == "sentence"
    files = TaskFiles((tmp_path / "a.tsv",))
    assert next(read_texts(tmp_path / "a.tsv", files)).parts == ("1", 'he said "yes')


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.pdf", "x", [], r"a\.pdf: not a file of tests by its suffix; give \.tsv"),
        ("a.tsv", "x\ty\n1\t2\n", ["--column", "text"], "no column text, only x, y"),
        ("a.json", "{", [], "not JSON"),
        ("a.json", '"x"', [], "not an array"),
        ("a.txt", "\n", [], "no texts in it"),
    ],
)
def test_bad_files_are_refused(tokens, tmp_path, capsys, name, content, options, message):
    (tmp_path / name).write_text(content)
    command = ["contamination", str(tokens), str(tmp_path / name), "--workers", "1", *options]
    assert main(command) == 2
    assert re.search(message, capsys.readouterr().err)


def test_command_writes_what_the_report_reads(tokens, tmp_path, capsys):
    result = tmp_path / "found.json"
    (tmp_path / "test.txt").write_text(" ".join(words(BOOK.read_text())[5000:5030]) + "\n")
    command = ["contamination", str(tokens), str(tmp_path / "test.txt"), "--workers", "2"]
    assert main([*command, "--json", str(result)]) == 0
    assert "18 of 18 13-grams in " in capsys.readouterr().out
    folder = TokenFolder(tokens)
    assert read_contamination(result, folder).files[0].dirty == 1
    other = json.loads(result.read_text()) | {"tokens": "0" * 64}
    result.write_text(json.dumps(other))
    with pytest.raises(DataError, match="of another token folder"):
        read_contamination(result, folder)
