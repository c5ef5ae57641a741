"""`python -m data_prep`: whole builds through the command, from books to a verified folder."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep import publish
from data_prep.clean import clean
from gpt_dist.data.tokenizer import SentencePieceTokenizer
from gpt_dist.data.tokens import TokenFolder
from gpt_dist.errors import DataError

ROOT = Path(__file__).parents[2]
SAMPLES = sorted((ROOT / "data_prep/sample_books").glob("*.txt"))
MPIRUN = Path(sys.executable).parent / "mpirun"


def run(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return subprocess.run(
        [*launcher, sys.executable, "-m", "data_prep", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def build(source: Path, output: Path, *more: object, **options: tuple[str, ...]) -> TokenFolder:
    result = run("build", source, "--output", output, "--vocab-size", 600, *more, **options)
    assert result.returncode == 0, result.stderr
    return TokenFolder.open(output)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def documents_of(folder: TokenFolder, split: str) -> list[str]:
    """The texts of a split, cut at the end-of-text id."""
    tokenizer = SentencePieceTokenizer(folder.tokenizer_path)
    stream = folder.split(split)  # type: ignore[arg-type]
    ids = stream.read(0, stream.num_tokens)
    ends = np.flatnonzero(ids == tokenizer.end_of_text)
    assert ends[-1] == len(ids) - 1
    return [tokenizer.decode(part) for part in np.split(ids, ends + 1)[:-1]]


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight books of 360 KB or less, one duplicate, one too short, one empty, one picture."""
    folder = tmp_path_factory.mktemp("input") / "books"
    folder.mkdir()
    for file in SAMPLES:
        shutil.copy(file, folder)
    shutil.copy(SAMPLES[0], folder / "Z_duplicate.txt")
    (folder / "Z_short.txt").write_text("A few words.")
    (folder / "Z_empty.txt").write_text("\n\n")
    (folder / "cover.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def folder(books: Path) -> TokenFolder:
    return build(books, books.parent / "tokens", "--workers", 2)


def test_every_kept_document_comes_back(folder: TokenFolder) -> None:
    found = documents_of(folder, "train") + documents_of(folder, "validation")
    expected = [clean(file.read_bytes(), "book", lowercase=True).text for file in SAMPLES]
    assert sorted(found) == sorted(expected)


def test_manifest_accounts_for_everything(books: Path, folder: TokenFolder) -> None:
    manifest = folder.manifest
    assert [source.name for source in manifest.sources] == sorted(
        f"books/{file.name}" for file in books.glob("*.txt")
    )
    assert manifest.dropped == {
        "duplicate": 1,
        "empty": 1,
        "too short": 1,
        "not a text, jsonl or archive file": 1,
    }
    assert {drop.name.removeprefix("books/"): drop.reason for drop in manifest.drops} == {
        "Z_duplicate.txt": "duplicate",
        "Z_short.txt": "too short",
        "Z_empty.txt": "empty",
        "cover.png": "not a text, jsonl or archive file",
    }
    assert manifest.totals.documents_read == 12
    assert manifest.totals.documents_kept == 9
    assert manifest.splits["validation"].documents == 1
    assert len(manifest.splits["train"].shards) > 1
    assert str(ROOT) not in (folder.path / "manifest.json").read_text()


@pytest.mark.parametrize("workers", [1, 3])
def test_bytes_do_not_depend_on_the_workers(
    books: Path, folder: TokenFolder, tmp_path: Path, workers: int
) -> None:
    other = build(books, tmp_path / "other name", "--workers", workers)
    assert contents(other.path) == contents(folder.path)


@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this Python")
def test_bytes_do_not_depend_on_mpi(books: Path, folder: TokenFolder, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    launcher = (str(MPIRUN), "--oversubscribe", "-n", "3")
    other = build(books, tmp_path / "tokens", launcher=launcher)
    assert contents(other.path) == contents(folder.path)


def test_archive_gives_the_tokens_of_the_folder(
    books: Path, folder: TokenFolder, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "books.tar.xz", "w:xz", preset=0) as archive:
        for file in sorted(books.iterdir()):
            archive.add(file, file.name)
    other = build(tmp_path / "books.tar.xz", tmp_path / "tokens")
    shards = {name: data for name, data in contents(folder.path).items() if "manifest" not in name}
    assert shards.items() <= contents(other.path).items()
    assert other.manifest.dropped == folder.manifest.dropped


def test_tokenizer_encodes_as_its_parts_do(folder: TokenFolder) -> None:
    import sentencepiece

    tokenizer = SentencePieceTokenizer(folder.tokenizer_path)
    plain = sentencepiece.SentencePieceProcessor(model_file=str(folder.tokenizer_path))
    text = clean(SAMPLES[0].read_bytes(), "book", lowercase=True).text + "\nunseen: ☃ 漢字 ǆ"
    ids = tokenizer.encode(text).tolist()
    assert ids == plain.encode(text.replace("\n", "\n "))
    line_end = plain.piece_to_id("<0x0A>")
    by_paragraph: list[int] = []
    for paragraph in text.split("\n"):
        by_paragraph += [line_end] if by_paragraph else []
        by_paragraph += plain.encode(paragraph)
    assert ids == by_paragraph
    assert tokenizer.decode(ids) == text
    reserved = [tokenizer.end_of_text, tokenizer.start, tokenizer.delimiter, tokenizer.extract]
    assert reserved == [1, 2, 3, 4]
    assert not set(reserved) & set(tokenizer.encode("<|endoftext|> <|start|>").tolist())
    for odd in ("", " ", "a  b", " a", "a ", "\n", "a\n\nb \n c"):
        assert tokenizer.encode(odd).tolist() == plain.encode(odd.replace("\n", "\n "))


def test_verify_names_the_damaged_file(folder: TokenFolder, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder.path, copy)
    assert run("verify", copy).returncode == 0
    shard = copy / "train/shard-00001.bin"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    result = run("verify", copy)
    assert result.returncode == 2
    assert f"error: {copy}: damaged: train/shard-00001.bin;" in result.stderr


def test_bookcorpus_lines(tmp_path: Path) -> None:
    lines = [f"`` it was sentence {n} of them , '' he said .\n" for n in range(40_000)]
    (tmp_path / "books_large_p1.txt").write_text("".join(lines))
    folder = build(tmp_path / "books_large_p1.txt", tmp_path / "tokens", "--vocab-size", 320)
    assert folder.manifest.totals.documents_kept == 2
    texts = documents_of(folder, "train") + documents_of(folder, "validation")
    words = " ".join(texts).replace("\n", " ").split()
    assert sorted(words) == sorted("".join(lines).split())


def test_one_book_has_no_validation_and_says_so(tmp_path: Path) -> None:
    result = run("build", SAMPLES[0], "--output", tmp_path / "tokens", "--vocab-size", 600)
    assert "no validation text" in result.stdout
    assert "deepspeed launch/pretrain.py" in result.stdout
    assert TokenFolder.open(tmp_path / "tokens").split("validation").num_tokens == 0


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", [], "no document is left"),
        ("Too short.", [], "--min-characters"),
        ("Some words of text. " * 50, ["--vocab-size", 50_000], r"too large.*--vocab-size \d+"),
        ("Some words of text. " * 50, ["--vocab-size", 100], r"too small.*--vocab-size \d+"),
    ],
)
def test_unsuitable_text_is_refused_in_one_line(
    tmp_path: Path, text: str, options: list[object], message: str
) -> None:
    source = tmp_path / "in" / "book.txt"
    source.parent.mkdir()
    source.write_text(text)
    result = run("build", source, "--output", tmp_path / "tokens", "--workers", 1, *options)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(message, last), last
    assert list(tmp_path.iterdir()) == [source.parent]


def test_output_that_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens/precious").write_text("kept")
    result = run("build", SAMPLES[0], "--output", tmp_path / "tokens")
    assert result.returncode == 2
    assert "exists already" in result.stderr
    assert contents(tmp_path) == {"tokens/precious": b"kept"}


def test_interruption_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep", "build", *map(str, SAMPLES)]
    command += ["--output", str(tmp_path / "tokens"), "--workers", "2"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob(".tokens.partial-*/work/*")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "error: interrupted" in errors
    assert list(tmp_path.iterdir()) == []


def test_full_disk_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="disk is full"):
        fill_the_disk(tmp_path / "tokens")
    assert list(tmp_path.iterdir()) == []


def fill_the_disk(output: Path) -> None:
    with publish.new_folder(output) as folder:
        (folder / "half").write_text("written")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_manifest_is_plain_json(folder: TokenFolder) -> None:
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert manifest["format"] == "gpt_dist.tokens"
    assert manifest["special_tokens"]["<|extract|>"] == 4
