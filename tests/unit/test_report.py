"""Test the report page against independent counts, and with hostile names and texts."""

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from data_prep.cli import main
from data_prep.contamination.overlap import Contamination, FileOverlap, TextOverlap
from data_prep.manifest import BuiltFolder, DropEntry, PassageEffect, StepEffect
from data_prep.page.counts import count_tokens
from data_prep.page.page import make_page
from data_prep.page.samples import draw_sample, script_of
from data_prep.pool import Pool
from data_prep.progress import Progress
from data_prep.shards import read_lengths
from gpt_dist.data.tokenizers.folder import open_tokenizer

BOOKS = Path("data_prep/sample_books")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> &amp; \"'\x1b[31m\u202e"
VOID = {"meta", "br"}


class Checked(HTMLParser):
    """Parser that checks that tags are closed in order, and collects them and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: Counter[str] = Counter()
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes.update(name for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes.update(name for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a folder of the books, one of them twice, and of hostile and foreign texts."""
    folder = tmp_path_factory.mktemp("built")
    copies = folder / "copies"
    copies.mkdir()
    book = BOOKS / "Jack_London___The_Faith_of_Men.txt"
    (copies / "again.txt").write_bytes(book.read_bytes())
    (copies / "<b>bold.txt").write_text(f"{HOSTILE} and so on, at length\n\n" * 30)
    (copies / "russian.txt").write_bytes(("Все счастливые семьи похожи. " * 60).encode("cp1251"))
    (copies / "note.pdf").touch()
    build = ["build", str(BOOKS), str(copies), "--output", str(folder / "tokens")]
    options = ["--vocab-size", "2000", "--workers", "1", "--validation-fraction", "0.1"]
    assert main([*build, *options]) == 0
    return folder / "tokens"


@pytest.fixture(scope="module")
def page(built: Path) -> str:
    assert main(["report", str(built), "--workers", "2"]) == 0
    return built.with_name("tokens-report.html").read_text()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as executor:
        yield Pool(executor, 2)


def all_ids(folder: BuiltFolder) -> np.ndarray:
    files = sorted(folder.path.glob("*/*.bin"))
    return np.concatenate([np.fromfile(file, folder.manifest.dtype) for file in files])


def test_counts_equal_those_of_all_ids(built, monkeypatch, pool):
    monkeypatch.setattr("data_prep.page.counts._PART_TOKENS", 100_000)
    monkeypatch.setattr("data_prep.token_parts.BLOCK_TOKENS", 30_000)
    folder = BuiltFolder(built)
    done = []
    counts = count_tokens(folder, pool, done.append)
    ids = all_ids(folder)
    np.testing.assert_array_equal(counts.tokens, np.bincount(ids, minlength=2000))
    assert sum(done) == len(ids)

    lengths = []
    for split in ("train", "validation"):
        stream = folder.split(split)
        ends = np.flatnonzero(
            stream.read(0, stream.num_tokens) == open_tokenizer(built).end_of_text
        )
        lengths += np.diff(ends, prepend=-1).tolist()
    indexes = sorted(built.glob("*/*.idx"))
    assert np.concatenate([read_lengths(index) for index in indexes]).tolist() == lengths
    assert (counts.lengths.shortest, counts.lengths.longest) == (min(lengths), max(lengths))
    for number, count in enumerate(counts.lengths.bins.tolist()):
        low, high = 2 ** (number / 2), 2 ** ((number + 1) / 2)
        assert count == sum(low <= length < high for length in lengths)


def test_sample_of_a_small_corpus_is_the_whole(built, pool):
    folder, tokenizer = BuiltFolder(built), open_tokenizer(built)
    sample = draw_sample(folder, 0, pool)
    ids = all_ids(folder)
    assert sample.share == 1
    assert sample.texts == int((ids != tokenizer.end_of_text).sum())
    text = tokenizer.decode(ids.tolist())
    assert abs(sample.bytes - len(text.encode())) < 200
    assert abs(sample.words - len(text.split())) < 200
    assert sample.characters["в"] == text.count("в") > 0


def test_samples_depend_on_the_seed_alone(built, monkeypatch, pool):
    monkeypatch.setattr("data_prep.page.samples._WINDOWS", 5)
    monkeypatch.setattr("data_prep.page.samples._WINDOW_TOKENS", 500)
    folder = BuiltFolder(built)
    first, again, other = (draw_sample(folder, seed, pool) for seed in (1, 1, 2))
    assert first == again
    assert first.excerpts != other.excerpts
    one = first.excerpts[0]
    ids = folder.split(one.split).read(one.position, one.position + 500)
    assert open_tokenizer(built).decode(ids.tolist()).startswith(one.text)


def test_page_says_what_happened(built, page):
    checked = Checked(page)
    manifest = BuiltFolder(built).manifest
    ids = all_ids(BuiltFolder(built))
    assert f"{manifest.totals.tokens:,} tokens" in checked.text
    assert f"{manifest.totals.documents_kept:,} of {manifest.totals.documents_read:,}" in page
    assert "the same as sample_books/Jack_London___The_Faith_of_Men.txt" in checked.text
    assert "copies/russian.txt" in checked.text
    assert "not read: .pdf" in checked.text
    assert "Cyrillic" in checked.text
    special = set(manifest.special_tokens.values())
    used = len(set(ids.tolist()) - special)
    assert f"{used:,} of {2000 - len(special):,}" in checked.text
    assert f"{manifest.totals.cleaned_bytes / len(ids):.3f}, of all text" in checked.text
    for step in manifest.effects:
        assert step in checked.text


def test_page_is_self_contained(page):
    checked = Checked(page)
    assert page.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "img", "iframe", "object"} & set(checked.tags)
    assert not {"src", "xlink:href", "onerror"} & set(checked.attributes)
    assert set(re.findall(r'href="(.)', page)) == {"#"}
    assert not re.search(r"url\(|@import|https?:", page)
    assert checked.tags["svg"] >= 4


def test_hostile_text_stays_text(tmp_path, page):
    assert "<b>" not in page
    assert "copies/<b>bold.txt" in Checked(page).text
    (tmp_path / "a.txt").write_text("\n\n".join(f"{HOSTILE} {n}" for n in range(50)))
    tokens = tmp_path / "<i>"
    build = ["build", str(tmp_path / "a.txt"), "--output", str(tokens), "--recipe", "plain"]
    assert main([*build, "--vocab-size", "340", "--workers", "1"]) == 0
    assert main(["report", str(tokens), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    checked = Checked(page)
    assert not {"script", "img", "i"} & set(checked.tags)
    assert "<script>alert(1)</script><img src=x onerror=alert(2)> &amp; \"'" in checked.text
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_page_is_below_500_kb_for_any_manifest(built, pool):
    folder = BuiltFolder(built)
    name = "\U0001f600<&" * 100
    hostile = [f"{number}{name}" for number in range(1000)]
    reasons = dict.fromkeys(hostile[:200], 5)
    drops = [DropEntry(name=name, reason=r, detail=name) for r in (*reasons, *["duplicate"] * 800)]
    effect = StepEffect(documents=10**6, changes=10**9, names=tuple(hostile))
    source = folder.manifest.sources[0].model_copy(update={"encodings": reasons})
    update = {
        "dropped": reasons | {"duplicate": 800},
        "drops": tuple(drops),
        "effects": {f"{step}": effect for step in folder.manifest.options.steps},
        "read_as": {reason: tuple(hostile) for reason in reasons},
        "sources": (source,),
        "passages": PassageEffect(passages=9, bytes=9, names=tuple(hostile)),
    }
    folder.manifest = folder.manifest.model_copy(update=update)
    found = TextOverlap(
        where=name, splits=("train",), grams=9, found=9, exact=False, passage=name[:300]
    )
    counts = dict.fromkeys(FileOverlap.model_fields, 9) | {"file": name, "overlaps": (found,) * 9}
    contamination = Contamination(
        format="gpt_dist.contamination",
        version=1,
        tokens=folder.digest,
        max_documents=10,
        files=(FileOverlap.model_validate(counts),) * 100,
    )
    page = make_page(folder, contamination, 0, pool, Progress())
    Checked(page)
    assert "and 171 more" in page
    assert len(page.encode()) < 500_000


def test_folder_of_version_1(built, tmp_path, pool):
    """Version 1 states less of everything."""
    folder = BuiltFolder(built)
    manifest = json.loads(folder.manifest.model_dump_json())
    for key in ("read_as", "effects", "passages"):
        del manifest[key]
    for key in ("text_bytes", "all_cleaned_bytes"):
        del manifest["totals"][key]
    known = "vocab_size lowercase min_characters validation_fraction text_field seed"
    manifest["options"] = {key: manifest["options"][key] for key in known.split()}
    manifest["options"]["tokenizer_sample_mb"] = 20
    manifest["totals"]["decoded_as_latin1"] = 7
    manifest["version"] = 1
    manifest["sources"] = [
        {key: one[key] for key in ("name", "bytes", "sha256")} for one in manifest["sources"]
    ]
    old = tmp_path / "old"
    old.mkdir()
    for part in built.iterdir():
        if part.name != "manifest.json":
            (old / part.name).symlink_to(part)
    (old / "manifest.json").write_text(json.dumps(manifest))
    page = make_page(BuiltFolder(old), None, 0, pool, Progress())
    assert "version 1" in Checked(page).text
    assert re.search(r"latin-1</td><td[^>]*>7<", page)


def test_scripts_by_name():
    found = {character: script_of(character) for character in "aéЖαあア漢한אनｆ₂5,😀 \n\u0301"}
    assert Counter(found.values())["Latin"] == 3
    assert found["Ж"] == "Cyrillic"
    assert found["α"] == "Greek"
    assert (found["あ"], found["ア"], found["漢"]) == ("Hiragana", "Katakana", "Han")
    assert (found["한"], found["א"], found["न"]) == ("Hangul", "Hebrew", "Devanagari")
    assert (found["5"], found[","], found["😀"]) == ("digits", "punctuation", "symbols, emoji")
    assert (found["\n"], found[" "], found["\u0301"]) == ("line ends", "spaces", "combining marks")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "no/such/folder/page.html"], "cannot be written"),
        (["--contamination", "absent.json"], r"absent\.json: cannot be read"),
    ],
)
def test_bad_arguments_are_refused_at_once(built, capsys, options, message):
    assert main(["report", str(built), *options]) == 2
    captured = capsys.readouterr().err
    assert re.search(message, captured)
    assert "counting" not in captured
