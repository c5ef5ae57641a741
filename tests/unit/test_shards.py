"""Test that Megatron reads token shards, that faults are named, and that opening is cheap."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep.cli import main
from data_prep.shards import ShardWriter, token_dtype
from data_prep.verify import find_damage
from gpt_dist.data.tokens.folder import TokenFolder
from gpt_dist.data.tokens.shards import ShardEntry
from gpt_dist.errors import DataError

SHA = "0" * 64


def write_shard(prefix: Path, documents: list[np.ndarray], vocab_size: int) -> ShardEntry:
    prefix.parent.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(prefix, token_dtype(vocab_size))
    for ids in documents:
        writer.write(ids.astype(token_dtype(vocab_size)).tobytes())
    writer.add_lengths(np.array([len(ids) for ids in documents]))
    return writer.close("/".join(prefix.parts[-2:]))


def write_manifest(folder: Path, vocab_size: int, train: list[dict]) -> None:
    """Write a manifest around `train` shards, with an empty tokenizer file."""
    (folder / "tokenizer.model").write_bytes(b"")
    tokens = sum(shard["tokens"] for shard in train)
    documents = sum(shard["documents"] for shard in train)
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    manifest = {
        "format": "gpt_dist.tokens",
        "version": 1,
        "vocab_size": vocab_size,
        "dtype": token_dtype(vocab_size).name,
        "special_tokens": {},
        "tokenizer": {"bytes": 0, "sha256": empty},
        "options": {
            "vocab_size": vocab_size,
            "lowercase": True,
            "min_characters": 0,
            "validation_fraction": 0,
            "text_field": "text",
            "tokenizer_sample_mb": 1,
            "seed": 0,
        },
        "totals": {
            "source_bytes": 0,
            "documents_read": documents,
            "documents_kept": documents,
            "decoded_as_latin1": 0,
            "cleaned_bytes": 0,
            "tokens": tokens,
        },
        "sources": [],
        "dropped": {},
        "drops": [],
        "splits": {
            "train": {"tokens": tokens, "documents": documents, "shards": train},
            "validation": {"tokens": 0, "documents": 0, "shards": []},
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write three shards of random documents; `documents.npy` holds the ids in order."""
    rng = np.random.default_rng(0)
    shards, everything = [], []
    for number, count in enumerate([3, 1, 5]):
        documents = [rng.integers(0, 1000, rng.integers(1, 400)) for _ in range(count)]
        shard = write_shard(tmp_path / f"tokens/train/shard-{number:05d}", documents, 1000)
        shards.append(shard.model_dump())
        everything += documents
    write_manifest(tmp_path / "tokens", 1000, shards)
    np.save(tmp_path / "ids.npy", np.concatenate(everything))
    return tmp_path / "tokens"


@pytest.mark.parametrize("vocab_size", [500, 70_000])
def test_megatron_reads_the_same_documents(tmp_path: Path, vocab_size: int) -> None:
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    rng = np.random.default_rng(1)
    documents = [rng.integers(0, vocab_size, n) for n in (1, 700, 3, 0, 90)]
    prefix = tmp_path / "train/shard-00000"
    write_shard(prefix, documents, vocab_size)
    dataset = indexed_dataset.IndexedDataset(str(prefix))
    assert len(dataset) == len(documents)
    assert list(dataset.document_indices) == [0, 1, 2, 3, 4, 5]
    assert dataset.index.dtype == token_dtype(vocab_size)
    for index, ids in enumerate(documents):
        np.testing.assert_array_equal(dataset[index], ids)


def test_reads_span_shards(folder: Path) -> None:
    ids = np.load(folder.parent / "ids.npy")
    stream = TokenFolder(folder).split("train")
    assert stream.num_tokens == len(ids)
    rng = np.random.default_rng(2)
    spans = [sorted(rng.integers(0, len(ids) + 1, 2)) for _ in range(200)]
    for start, stop in [(0, len(ids)), (5, 5), (len(ids), len(ids)), *spans]:
        np.testing.assert_array_equal(stream.read(start, stop), ids[start:stop])


def test_empty_split(folder: Path) -> None:
    stream = TokenFolder(folder).split("validation")
    assert stream.num_tokens == 0
    assert stream.read(0, 0).size == 0


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


def flip_magic(file: Path) -> None:
    file.write_bytes(b"X" + file.read_bytes()[1:])


def fewer_documents(file: Path) -> None:
    """Make an index well-formed for fewer documents, padded to the stated size."""
    data = bytearray(file.read_bytes())
    data[18] -= 2
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train/shard-00001.bin", Path.unlink, "missing"),
        ("train/shard-00002.bin", truncate, r"\d+ bytes instead of \d+"),
        ("train/shard-00000.idx", truncate, r"\d+ bytes instead of \d+"),
        ("train/shard-00000.idx", flip_magic, "not a Megatron index"),
        ("train/shard-00000.idx", fewer_documents, "its header asks for"),
        ("tokenizer.model", Path.unlink, "missing"),
        ("manifest.json", Path.unlink, "not a token folder"),
        ("manifest.json", truncate, "not a manifest"),
    ],
)
def test_damage_is_refused_at_open(folder: Path, name: str, damage, message: str) -> None:
    damage(folder / name)
    with pytest.raises(DataError, match=message) as caught:
        TokenFolder(folder)
    assert "data_prep build" in str(caught.value) or "prepare" in str(caught.value)
    assert name in str(caught.value) or name == "manifest.json"


def test_shard_and_index_that_disagree(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = manifest["splits"]["train"]["shards"]
    shards[0]["idx"], shards[1]["idx"] = shards[1]["idx"], shards[0]["idx"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    first, second = folder / "train/shard-00000.idx", folder / "train/shard-00001.idx"
    content = first.read_bytes()
    shutil.move(second, first)
    second.write_bytes(content)
    with pytest.raises(DataError, match=r"shard-00000.*disagree"):
        TokenFolder(folder)


def test_folder_that_is_missing_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        TokenFolder(tmp_path / "absent")
    with pytest.raises(DataError, match="python -m data_prep build"):
        TokenFolder(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "other", "version": 9}')
    with pytest.raises(DataError, match=r"manifest\.json.*version 2"):
        TokenFolder(tmp_path)


def test_manifest_cannot_point_outside_the_folder(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace("train/shard-00000", "../shard-00000"))
    with pytest.raises(DataError, match="name"):
        TokenFolder(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "../tokenizer.json", "manifest.json"])
def test_manifest_names_the_tokenizer(folder: Path, name: str) -> None:
    (folder / "tokenizer.model").rename(folder / "tokenizer.json")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tokenizer"]["name"] = name
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if name == "tokenizer.json":
        opened = TokenFolder(folder)
        assert opened.tokenizer_path == folder / name
        (folder / name).write_text("other")
        assert list(find_damage(opened)) == [name]
    else:
        with pytest.raises(DataError, match=r"tokenizer\.name"):
            TokenFolder(folder)


def test_ids_beyond_the_vocabulary_name_the_shard(folder: Path) -> None:
    file = folder / "train/shard-00001.bin"
    data = np.fromfile(file, dtype="<u2")
    data[-1] = 1000
    data.tofile(file)
    stream = TokenFolder(folder).split("train")
    with pytest.raises(DataError, match=r"shard-00001\.bin.*corrupt"):
        stream.read(0, stream.num_tokens)


def test_find_damage_names_the_flipped_file(folder: Path) -> None:
    assert list(find_damage(TokenFolder(folder))) == []
    file = folder / "train/shard-00002.bin"
    data = bytearray(file.read_bytes())
    data[7] ^= 1
    file.write_bytes(data)
    assert list(find_damage(TokenFolder(folder))) == ["train/shard-00002.bin"]


def test_verify_in_parallel(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder), "--workers", "2"]) == 0
    assert "every file is undamaged" in capsys.readouterr().out
    for name in ("train/shard-00000.bin", "train/shard-00002.idx"):
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)
    assert main(["verify", str(folder), "--workers", "2"]) == 2
    error = capsys.readouterr().err
    assert "damaged: train/shard-00000.bin, train/shard-00002.idx; copy" in error


def synthetic_folder(folder: Path, tokens: int) -> None:
    """Write a sparse shard of `tokens` zeros with ids 1 to 9 at its end."""
    prefix = folder / "train/shard-00000"
    shard = write_shard(prefix, [np.zeros(1, dtype=np.int64)], 1000).model_dump()
    with prefix.with_suffix(".bin").open("r+b") as stream:
        stream.truncate(2 * tokens)
        stream.seek(2 * (tokens - 9))
        stream.write(np.arange(1, 10, dtype="<u2").tobytes())
    size = {"bytes": 2 * tokens, "sha256": SHA}
    write_manifest(folder, 1000, [shard | {"tokens": tokens, "bin": size}])
    assert prefix.with_suffix(".idx").stat().st_size == shard["idx"]["bytes"]


def bytes_read() -> int:
    """Return the bytes this process has asked the system to read so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def test_opening_costs_the_same_for_any_number_of_tokens(tmp_path: Path) -> None:
    costs = []
    for tokens in (10**6, 10**6, 10**12):
        folder = tmp_path / str(len(costs))
        try:
            synthetic_folder(folder, tokens)
        except OSError as error:
            pytest.skip(f"the file system has no sparse file of 2 TB ({error})")
        before = bytes_read()
        stream = TokenFolder(folder).split("train")
        tail = stream.read(tokens - 512, tokens)
        costs.append(bytes_read() - before)
        np.testing.assert_array_equal(tail[-9:], np.arange(1, 10))
        assert not tail[:-9].any()
    assert abs(costs[2] - costs[1]) < 1000, costs
