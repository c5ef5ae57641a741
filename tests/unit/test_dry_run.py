"""Test that a dry run estimates what a build makes, and writes nothing."""

import io
import json
import os
import random
import re
import tarfile
import time
from pathlib import Path

import pytest

from data_prep.build.build import BuildRequest
from data_prep.build.estimate import BuildEstimate, estimate
from data_prep.cli import main
from data_prep.manifest import BuildOptions, BuiltFolder
from data_prep.progress import Progress
from data_prep.reading.documents import ReadOptions
from data_prep.steps import RECIPES

BOOKS = Path("data_prep/sample_books")
VOCAB = 2000


def dry(output: Path, *inputs: Path, **changed) -> BuildEstimate:
    """Estimate a build with the defaults of the command line, some of them changed."""
    options = {
        "vocab_size": VOCAB,
        "lowercase": True,
        "min_characters": 500,
        "validation_fraction": 0.01,
        "text_field": "text",
        "tokenizer_sample_mb": 20,
        "seed": 0,
        "follow_links": True,
        "near_duplicates": 0.85,
        "shard_mb": 512,
    }
    request = BuildRequest(
        inputs=inputs,
        output=output,
        options=BuildOptions.model_validate(options | changed),
        reading=ReadOptions(),
        steps=RECIPES["books"],
        tokenizer=None,
    )
    return estimate(request, 1, Progress())


def assert_close(found: float, expected: float, share: float) -> None:
    assert abs(found - expected) <= share * expected, (found, expected)


def test_sample_books_within_15_percent(tmp_path, monkeypatch):
    """Estimate from a third of the books, and compare with the finished build."""
    monkeypatch.setattr("data_prep.build.sampling.SAMPLE_BYTES", 1_000_000)
    monkeypatch.setattr("data_prep.build.sampling._MIN_PLACES", 4)
    before = sorted(tmp_path.rglob("*"))
    made = dry(tmp_path / "tokens", BOOKS)
    assert sorted(tmp_path.rglob("*")) == before
    assert not made.is_whole
    assert made.sampled.text_bytes < 1_600_000
    build = ["build", str(BOOKS), "--output", str(tmp_path / "tokens"), "--workers", "1"]
    assert main([*build, "--vocab-size", str(VOCAB)]) == 0
    manifest = BuiltFolder(tmp_path / "tokens").manifest
    assert_close(made.tokens.value, manifest.totals.tokens, 0.15)
    assert_close(made.text_bytes.value, manifest.totals.text_bytes, 0.15)
    assert_close(made.clean_bytes.value, manifest.totals.cleaned_bytes, 0.15)
    assert abs(made.documents_kept.value - manifest.totals.documents_kept) <= 3
    size = sum(file.stat().st_size for file in (tmp_path / "tokens").rglob("*.bin"))
    assert_close(made.disk_bytes.value, size, 0.15)


def stories(count: int) -> list[str]:
    """Return texts of 100 to 2,000 random words; every fifth is too short to be kept."""
    draws = random.Random(0)
    words = re.findall(r"\w+", (BOOKS / "Jack_London___The_Faith_of_Men.txt").read_text())
    lengths = [10 if i % 5 == 0 else draws.randrange(100, 2000) for i in range(count)]
    return [" ".join(draws.choices(words, k=length)) for length in lengths]


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"id": "x" * 50, "text": text}) + "\n" for text in texts))


def write_folder(path: Path, texts: list[str]) -> None:
    path.mkdir()
    for number, text in enumerate(texts):
        (path / f"{number}.txt").write_text(text)


def write_tar(path: Path, texts: list[str]) -> None:
    with tarfile.open(path, "w:xz") as archive:
        for number, text in enumerate(texts):
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))


def write_parquet(path: Path, texts: list[str]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    noise = [os.urandom(3000) for _ in texts]
    parquet.write_table(pyarrow.table({"noise": noise, "text": texts}), path, row_group_size=100)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", write_jsonl),
        ("folder", write_folder),
        ("a.tar.xz", write_tar),
        ("a.parquet", write_parquet),
    ],
)
def test_every_kind_of_input(tmp_path, monkeypatch, name, write):
    """Estimate from a tenth of the text."""
    texts = stories(2000)
    total = sum(len(text) for text in texts)
    monkeypatch.setattr("data_prep.build.sampling.SAMPLE_BYTES", total // 10)
    write(tmp_path / name, texts)
    made = dry(tmp_path / "tokens", tmp_path / name, vocab_size=500)
    assert not made.is_whole
    assert made.sampled.text_bytes < total / 5
    assert_close(made.text_bytes.value, total, 0.2)
    assert_close(made.documents_read.value, 2000, 0.2)
    assert_close(made.documents_kept.value, 1600, 0.2)


def test_large_text_is_read_at_several_places(tmp_path, monkeypatch):
    """The second half of a long text is of numbers, which take more tokens."""
    monkeypatch.setattr("data_prep.build.sampling._CHUNK_BYTES", 1 << 14)
    draws = random.Random(0)
    words = " ".join(stories(50))
    half = words * (40_000_000 // len(words))
    digits = " ".join(str(draws.randrange(10**9)) for _ in range(100_000))
    (tmp_path / "a.txt").write_text(half + "\n" + digits * (len(half) // len(digits)))
    begin = time.monotonic()
    made = dry(tmp_path / "tokens", tmp_path / "a.txt", vocab_size=500)
    assert time.monotonic() - begin < 60
    size = (tmp_path / "a.txt").stat().st_size
    assert_close(made.text_bytes.value, size, 0.1)
    assert made.sampled.text_bytes <= 20_000_000
    assert {chunk.texts[0][0][:3].isdecimal() for chunk in made.sampled.chunks["text", 8]} == {
        True,
        False,
    }


def test_duplicates_and_short_texts_of_a_whole_corpus(tmp_path):
    texts = stories(100)
    write_jsonl(tmp_path / "a.jsonl", [*texts, *texts[:10]])
    made = dry(tmp_path / "tokens", tmp_path / "a.jsonl", vocab_size=400)
    assert made.is_whole
    assert (made.documents_read.value, made.documents_read.error) == (110, 0)
    assert made.documents_kept.value == 80


def test_command(tmp_path, capsys):
    command = ["build", str(BOOKS), "--output", str(tmp_path / "tokens"), "--dry-run"]
    assert main([*command, "--vocab-size", "2000", "--workers", "3"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"tokens +│ +[\d,]{7} tokens", out)
    assert "time with 3 workers" in out
    assert out.startswith("Estimate of a token folder")
    assert "Nothing was written." in out
    assert list(tmp_path.iterdir()) == []


def test_what_a_build_refuses_is_refused(tmp_path, capsys):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens/file").touch()
    command = ["build", str(BOOKS), "--dry-run", "--output"]
    assert main([*command, str(tmp_path / "tokens")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "new"), "--min-characters", "99999999"]) == 2
    assert "no document of the sample is kept (9 too short)" in capsys.readouterr().err
