"""Test builds through the command, from books to a verified folder."""

import fcntl
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

from data_prep.cleaning.clean import clean
from data_prep.manifest import BuiltFolder
from data_prep.reading.documents import Document
from data_prep.steps import RECIPES
from gpt_dist.data.tokenizers.folder import open_tokenizer
from gpt_dist.data.tokenizers.tokenizer import SentencePieceTokenizer
from tests.folders import contents

ROOT = Path(__file__).parents[2]
SAMPLES = sorted((ROOT / "data_prep/sample_books").iterdir())
RELEASED = ROOT.parent / "shared/data/openai-gpt"
ALL_TRAIN = ("--validation-fraction", 0)
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


def build(source: Path, output: Path, *more: object, **options: tuple[str, ...]) -> BuiltFolder:
    vocabulary = () if "--tokenizer" in more else ("--vocab-size", 600)
    small = ("--shard-mb", 1)
    result = run("build", source, "--output", output, *vocabulary, *small, *more, **options)
    assert result.returncode == 0, result.stderr
    return BuiltFolder(output)


def clean_text(file: Path) -> str:
    return clean(Document(file.name, file.read_bytes(), "text"), RECIPES["books"]).text


def documents_of(folder: BuiltFolder, split: str) -> list[str]:
    """Return the texts of a split, cut at the end-of-text id."""
    tokenizer = SentencePieceTokenizer(folder.tokenizer_path)
    return [tokenizer.decode(part) for part in ids_of(folder, split)]


def ids_of(folder: BuiltFolder, split: str) -> list[list[int]]:
    """Return the ids of each document of a split, without the end-of-text id."""
    stream = folder.split(split)  # type: ignore[arg-type]
    ids = stream.read(0, stream.num_tokens)
    ends = np.flatnonzero(ids == folder.manifest.special_tokens["<|endoftext|>"])
    assert ends[-1] == len(ids) - 1
    return [part[:-1].tolist() for part in np.split(ids, ends + 1)[:-1]]


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write nine books, a duplicate, a short file, an empty one, a licence, and a picture."""
    folder = tmp_path_factory.mktemp("input") / "books"
    folder.mkdir()
    for file in SAMPLES:
        shutil.copy(file, folder)
    shutil.copy(SAMPLES[0], folder / "Z_duplicate.txt")
    (folder / "Z_short.txt").write_text("A few words.")
    (folder / "Z_empty.txt").write_text("\n\n")
    (folder / "Z_licence.txt").write_text("End of the Project Gutenberg EBook of Moby\n\nLicence")
    (folder / "cover.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def folder(books: Path) -> BuiltFolder:
    return build(books, books.parent / "tokens", "--workers", 2)


def test_every_kept_document_comes_back(folder: BuiltFolder) -> None:
    expected = [clean_text(file) for file in SAMPLES]
    (end,) = documents_of(folder, "validation")  # the end of a document that is cut
    found = [
        f"{text}\n{end}" if f"{text}\n{end}" in expected else text
        for text in documents_of(folder, "train")
    ]
    assert sorted(found) == sorted(expected)


def test_the_digest_is_of_the_tokens_and_the_tokenizer(
    books: Path, folder: BuiltFolder, tmp_path: Path
) -> None:
    """A run goes on with the same books in a renamed folder, with one more file left out."""
    renamed = shutil.copytree(books, tmp_path / "library" / "all")
    (renamed / "map.png").write_bytes(b"")
    again = build(renamed.parent, tmp_path / "again")
    assert again.manifest_digest != folder.manifest_digest
    assert again.digest == folder.digest
    fewer = build(renamed.parent, tmp_path / "fewer", "--validation-fraction", 0.2)
    assert fewer.digest != folder.digest
    other = build(renamed.parent, tmp_path / "other", "--tokenizer-sample-mb", 1)
    assert other.manifest.tokenizer != folder.manifest.tokenizer
    assert other.digest != folder.digest


def test_manifest_accounts_for_everything(books: Path, folder: BuiltFolder) -> None:
    manifest = folder.manifest
    assert [source.name for source in manifest.sources] == sorted(
        f"books/{file.name}" for file in books.glob("*.txt")
    )
    assert manifest.dropped == {
        "duplicate": 1,
        "empty": 1,
        "emptied by the step gutenberg": 1,
        "too short": 1,
        "not read: .png": 1,
    }
    assert {drop.name.removeprefix("books/"): drop.reason for drop in manifest.drops} == {
        "Z_duplicate.txt": "duplicate",
        "Z_short.txt": "too short",
        "Z_empty.txt": "empty",
        "Z_licence.txt": "emptied by the step gutenberg",
        "cover.png": "not read: .png",
    }
    assert manifest.totals.documents_read == 13
    assert manifest.totals.documents_kept == 9
    assert manifest.splits["train"].documents == 9
    assert manifest.splits["validation"].documents == 1
    assert len(manifest.splits["train"].shards) > 1
    assert str(ROOT) not in (folder.path / "manifest.json").read_text()


@pytest.mark.row(20, case="all but the gigabyte, in the manifest")
def test_every_odd_byte_is_counted(tmp_path: Path) -> None:
    texts = [f"Café.\n\n{clean_text(file)[:200_000]}\n".encode() for file in SAMPLES[:4]]
    odd = {
        "crlf": texts[0].replace(b"\n", b"\r\n"),
        "empty": b"",
        "invalid": texts[1] + b"\xff",
        "mark": b"\xef\xbb\xbf" + texts[2],
        "nul": texts[3] + b"one\0two",
    }
    books = tmp_path / "books"
    books.mkdir()
    for name, content in odd.items():
        (books / f"{name}.txt").write_bytes(content)
    folder = build(books, tmp_path / "tokens", "--min-characters", 0)
    manifest = folder.manifest
    assert manifest.dropped == {"empty": 1}
    assert manifest.effects["line_ends"].changes == odd["crlf"].count(b"\r")
    counted = {step: manifest.effects[step].names for step in ("line_ends", "invisible")}
    assert counted == {"line_ends": ("books/crlf.txt",), "invisible": ("books/nul.txt",)}
    assert [*manifest.read_as.values()] == [("books/invalid.txt",)]
    text = "\n".join(documents_of(folder, "train") + documents_of(folder, "validation"))
    assert text.count("café.") == 4
    assert not set(text) & {"\r", "\0", "\ufeff"}
    assert "onetwo" in text


@pytest.mark.row(21, case="{workers} workers")
@pytest.mark.parametrize("workers", [1, 3])
def test_bytes_do_not_depend_on_the_workers(
    books: Path, folder: BuiltFolder, tmp_path: Path, workers: int
) -> None:
    other = build(books, tmp_path / "other name", "--workers", workers)
    assert contents(other.path) == contents(folder.path)


@pytest.mark.row(21, case="mpirun")
@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this Python")
def test_bytes_do_not_depend_on_mpi(books: Path, folder: BuiltFolder, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    launcher = (str(MPIRUN), "--oversubscribe", "-n", "3")
    other = build(books, tmp_path / "tokens", launcher=launcher)
    assert contents(other.path) == contents(folder.path)


@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this Python")
@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["build", SAMPLES[0], "--dry-run", "--vocab-size", 600], "time with 2 workers"),
        (["build", "nosuch"], "error: nosuch: no such file or folder"),
        (["tasks", SAMPLES[0].parent], "Next:  deepspeed launch/finetune.py"),
    ],
)
def test_the_first_rank_alone_speaks(command: list[object], shown: str, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    launcher = (str(MPIRUN), "--oversubscribe", "-n", "3")
    result = run(*command, "--output", tmp_path / "out", launcher=launcher)
    assert (result.stdout + result.stderr).count(shown) == 1, result.stdout + result.stderr
    assert (result.returncode == 0) == ("nosuch" not in command)


def test_processes_that_do_not_find_each_other_are_refused(
    books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mpi4py")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    command = [sys.executable, "-m", "data_prep", "build", str(books)]
    command += ["--output", str(tmp_path / "tokens"), "--vocab-size", "300"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2
    assert "error: 3 processes were launched, but MPI connects 1; with Slurm, use" in found.stderr


def test_archive_gives_the_tokens_of_the_folder(
    books: Path, folder: BuiltFolder, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "books.tar.xz", "w:xz", preset=0) as archive:
        for file in sorted(books.iterdir()):
            archive.add(file, file.name)
    other = build(tmp_path / "books.tar.xz", tmp_path / "tokens")
    shards = {name: data for name, data in contents(folder.path).items() if "manifest" not in name}
    assert shards.items() <= contents(other.path).items()
    assert other.manifest.dropped == folder.manifest.dropped


def test_tokenizer_encodes_as_its_parts_do(folder: BuiltFolder) -> None:
    import sentencepiece

    tokenizer = SentencePieceTokenizer(folder.tokenizer_path)
    plain = sentencepiece.SentencePieceProcessor(model_file=str(folder.tokenizer_path))
    text = clean_text(SAMPLES[0]) + "\nunseen: ☃ 漢字 ǆ"
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


@pytest.mark.row(13, case="a shard, by `verify`")
def test_verify_names_the_damaged_file(folder: BuiltFolder, tmp_path: Path) -> None:
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


def test_a_part_of_one_book_is_held_out(tmp_path: Path) -> None:
    output = tmp_path / "my tokens"
    result = run("build", SAMPLES[0], "--output", output, "--vocab-size", 600)
    assert "1, 1 cut for validation" in result.stdout
    assert "WARNING" not in result.stdout
    assert f"deepspeed launch/pretrain.py configs/pretrain/tiny.yaml 'data.path={output}'" in (
        result.stdout
    )
    folder = BuiltFolder(output)
    share = folder.split("validation").num_tokens / folder.manifest.totals.tokens
    assert share == pytest.approx(0.01, rel=0.2)
    found = re.search(r"held out +│ ([\d.]+) % of the text, 1 % wanted", result.stdout)
    assert found
    assert float(found[1]) == pytest.approx(1, rel=0.2)


def test_a_share_far_from_the_wanted_one_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("Some words of text, and a few more. " * 20)
    options = ("--vocab-size", 300, "--validation-fraction", 0.0005)
    result = run("build", tmp_path / "note.txt", "--output", tmp_path / "tokens", *options)
    share = r"WARNING: [\d.]+ % of the text is held out"
    assert re.search(rf"{share} .* --validation-fraction asks for 0\.05 %;", result.stdout)


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
    assert set(tmp_path.iterdir()) <= {source.parent, tmp_path / ".tokens.building"}


def test_output_that_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens/precious").write_text("kept")
    result = run("build", SAMPLES[0], "--output", tmp_path / "tokens")
    assert result.returncode == 2
    assert "exists already" in result.stderr
    assert contents(tmp_path) == {"tokens/precious": b"kept"}


def test_an_interrupted_build_goes_on(folder: BuiltFolder, books: Path, tmp_path: Path) -> None:
    arguments = ["build", books, "--output", tmp_path / "tokens", "--vocab-size", "600"]
    arguments += ["--shard-mb", "1", "--workers", "1"]
    command = [sys.executable, "-m", "data_prep", *map(str, arguments)]
    work = tmp_path / ".tokens.building"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not list(work.glob("text/*/*.json")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "error: interrupted; run the same command again" in errors
    assert list(tmp_path.iterdir()) == [work]
    assert run(*arguments).returncode == 0
    assert contents(tmp_path / "tokens") == contents(folder.path)
    assert list(tmp_path.iterdir()) == [tmp_path / "tokens"]


def test_two_builds_of_one_output_are_refused(tmp_path: Path) -> None:
    work = tmp_path / ".tokens.building"
    work.mkdir()
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = run("build", SAMPLES[0], "--output", tmp_path / "tokens", "--vocab-size", 600)
    assert result.returncode == 2
    assert "another build for the same --output is running" in result.stderr


def test_an_output_that_is_a_link_to_a_folder_is_resolved(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/tokens")
    made = build(SAMPLES[0], tmp_path / "link")
    assert (tmp_path / "disk/tokens/manifest.json").exists()
    assert made.manifest.totals.documents_kept == 1


def test_shards_have_the_wanted_size(folder: BuiltFolder, books: Path, tmp_path: Path) -> None:
    one = build(books, tmp_path / "tokens", "--shard-mb", 100)
    assert len(one.manifest.splits["train"].shards) == 1
    assert len(folder.manifest.splits["train"].shards) > 1
    assert ids_of(one, "train") == ids_of(folder, "train")


@pytest.fixture(scope="module")
def two_books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("more") / "books"
    folder.mkdir()
    for file in SAMPLES[:2]:
        shutil.copy(file, folder)
    return folder


def test_an_earlier_folder_s_tokenizer_is_used(
    folder: BuiltFolder, two_books: Path, tmp_path: Path
) -> None:
    other = build(two_books, tmp_path / "tokens", "--tokenizer", folder.path, *ALL_TRAIN)
    assert other.manifest.tokenizer == folder.manifest.tokenizer
    assert other.manifest.special_tokens == folder.manifest.special_tokens
    assert other.manifest.options.vocab_size == 600
    assert other.manifest.options.tokenizer_sample_mb is None
    assert contents(other.path)["tokenizer.model"] == folder.tokenizer_path.read_bytes()
    encode = SentencePieceTokenizer(folder.tokenizer_path).encode
    texts = [clean_text(file) for file in SAMPLES[:2]]
    assert sorted(ids_of(other, "train")) == sorted(encode(text).tolist() for text in texts)


@pytest.fixture(scope="module")
def released(two_books: Path) -> BuiltFolder:
    """Build two books in the tokens of the released GPT-1."""
    if not RELEASED.is_dir():
        pytest.skip("../shared/data is absent")
    options = ("--tokenizer", RELEASED, "--workers", 2, *ALL_TRAIN)
    return build(two_books, two_books.parent / "tokens", *options)


def test_the_released_vocabulary_gives_transformers_ids(
    released: BuiltFolder, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    shutil.copy(RELEASED / "encoder_bpe_40000.json", tmp_path / "vocab.json")
    shutil.copy(RELEASED / "vocab_40000.bpe", tmp_path / "merges.txt")
    theirs = transformers.OpenAIGPTTokenizer.from_pretrained(tmp_path)
    texts = [clean_text(file) for file in SAMPLES[:2]]
    expected = sorted(theirs(text)["input_ids"] for text in texts)
    assert sorted(ids_of(released, "train")) == expected
    again = open_tokenizer(released.path)
    assert sorted(again.encode(text).tolist() for text in texts) == expected


def test_reserved_tokens_follow_the_released_vocabulary(released: BuiltFolder) -> None:
    manifest, tokenizer = released.manifest, open_tokenizer(released.path)
    assert released.tokenizer_path == released.path / "tokenizer.json"
    assert tokenizer.vocab_size == 40478
    assert released.vocab_size == manifest.options.vocab_size == tokenizer.full_vocab_size == 40482
    assert manifest.special_tokens == {
        "<|endoftext|>": tokenizer.end_of_text,
        "<|start|>": tokenizer.start,
        "<|delimiter|>": tokenizer.delimiter,
        "<|extract|>": tokenizer.extract,
    }
    assert sorted(manifest.special_tokens.values()) == [40478, 40479, 40480, 40481]
    assert run("verify", released.path).returncode == 0


def test_megatron_reads_the_released_vocabulary_s_shards(released: BuiltFolder) -> None:
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    (shard,) = released.manifest.splits["train"].shards
    dataset = indexed_dataset.IndexedDataset(str(released.path / shard.name))
    assert [document[:-1].tolist() for document in dataset] == ids_of(released, "train")
    assert {int(document[-1]) for document in dataset} == {40478}


def test_a_given_tokenizer_s_bytes_do_not_depend_on_the_workers(
    released: BuiltFolder, two_books: Path, tmp_path: Path
) -> None:
    options = ("--tokenizer", released.path, "--workers", 1, *ALL_TRAIN)
    other = build(two_books, tmp_path / "tokens", *options)
    assert contents(other.path) == contents(released.path)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({}, [], "has no tokenizer"),
        ({"tokenizer.json": "{"}, [], r"tokenizer\.json: not a readable tokenizer"),
        ({"tokenizer.model": "a"}, [], r"tokenizer\.model: cannot be read"),
        ({}, ["--vocab-size", 600], "--vocab-size: 600 .* leave one of them out"),
        ({}, ["--seed", 0], "--seed: 0 .* leave one of them out"),
    ],
)
def test_an_unsuitable_tokenizer_is_refused(
    tmp_path: Path, files: dict[str, str], options: list[object], message: str
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for name, content in files.items():
        (given / name).write_text(content)
    result = run(
        "build", SAMPLES[0], "--output", tmp_path / "tokens", "--tokenizer", given, *options
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert re.search(message, result.stderr), result.stderr
    assert list(tmp_path.iterdir()) == [given]


def test_manifest_is_plain_json(folder: BuiltFolder) -> None:
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert manifest["format"] == "gpt_dist.tokens"
    assert manifest["special_tokens"]["<|extract|>"] == 4
