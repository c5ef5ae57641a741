"""Pipes, devices and huge files in place of small ones: refused at once, with little memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.config.file import load_config
from gpt_dist.data.tokenizers.byte_pair import read_gpt2
from gpt_dist.data.tokenizers.tokenizer import SentencePieceTokenizer
from gpt_dist.data.tokens.folder import TokenFolder
from gpt_dist.errors import DataError, GptDistError
from gpt_dist.files.entries import FileEntry
from gpt_dist.finetune.results import Results
from gpt_dist.model import ModelFolder
from tests.unit.test_shards import SHA, write_manifest, write_shard

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "checkpoint": ("manifest.json", Checkpoint),
    "token folder": ("manifest.json", TokenFolder),
    "model folder": ("config.json", ModelFolder),
    "results": ("results.json", lambda folder: Results.read(folder / "results.json")),
    "sentencepiece": (
        "tokenizer.model",
        lambda folder: SentencePieceTokenizer(folder / "tokenizer.model"),
    ),
    "merges": (
        "vocab.json",
        lambda folder: read_gpt2(folder / "vocab.json", folder / "merges.txt"),
    ),
    "configuration": ("run.yaml", lambda folder: load_config(folder / "run.yaml", [])),
}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(700 * 2**20)


@pytest.mark.parametrize(
    "make", [pipe, device, pytest.param(huge, marks=pytest.mark.row(32, case="700 MB: {reader}"))]
)
@pytest.mark.parametrize("reader", READERS)
def test_it_is_refused_by_name(tmp_path: Path, reader: str, make: Callable[[Path], None]):
    name, read = READERS[reader]
    make(tmp_path / name)
    if reader == "model folder":
        (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(GptDistError, match=name):
        read(tmp_path)


def test_a_pipe_as_an_index_that_is_stated_to_be_empty_is_refused(tmp_path: Path):
    shard = write_shard(tmp_path / "train/shard-00000", [np.arange(9)], 100)
    index = tmp_path / "train/shard-00000.idx"
    index.unlink()
    os.mkfifo(index)
    empty = shard.model_copy(update={"idx": FileEntry(bytes=0, sha256=SHA)})
    write_manifest(tmp_path, 100, [empty.model_dump()])
    with pytest.raises(DataError, match=r"shard-00000.idx: not a file"):
        TokenFolder(tmp_path)


@pytest.mark.row(32, case="memory for the manifest of a {reader}")
@pytest.mark.parametrize(("reader", "item"), [("checkpoint", "{}"), ("token folder", '{"a": 1}')])
def test_a_hostile_manifest_takes_a_bounded_multiple_of_its_size(tmp_path, reader, item):
    size = 5 * 10**6
    text = f'{{"parameters": [{",".join([item] * (size // (len(item) + 1)))}]}}'
    (tmp_path / "manifest.json").write_text(text)
    module = "checkpoint.format" if reader == "checkpoint" else "data.tokens.folder"
    opener = "Checkpoint" if reader == "checkpoint" else "TokenFolder"
    program = f"""
import resource, sys
from pathlib import Path
from gpt_dist.{module} import {opener}
from gpt_dist.errors import GptDistError
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
try:
    {opener}(Path(sys.argv[1]))
except GptDistError:
    print((peak() - before) / {size})
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert float(done.stdout) < 40
