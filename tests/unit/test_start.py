"""Check what a run refuses and says before the first step."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from gpt_dist.data.tokens.folder import TokenFolder
from gpt_dist.errors import DataError
from gpt_dist.topology import form_groups
from gpt_dist.train import opening, pretrain
from tests.plans import configure


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("has_instructions", [False, True])
def test_emulated_bf16_is_warned_of(monkeypatch, precision, has_instructions):
    monkeypatch.setattr(opening, "computes_bf16", lambda _: has_instructions)
    device = torch.device("cpu")
    topology = SimpleNamespace(device=device, data_parallel_size=1, tensor_parallel_size=1)
    engine = SimpleNamespace(num_parameters=1, compiled=False)
    text = opening.describe(configure(1, {"training.precision": precision}), topology, engine)
    warns = "training.precision bf16: this cpu has no instructions for it" in text
    assert warns == (precision == "bf16" and not has_instructions)


@pytest.fixture
def folder(token_folder, tmp_path):
    return shutil.copytree(token_folder, tmp_path / "tokens")


def read_changed(launch, device, path):
    """Check a folder that counts as too large to be hashed, and read a block that has changed.

    Returns what was said, and the first id that was read.
    """
    folder, said = TokenFolder(path), io.StringIO()
    with mock.patch.object(pretrain, "HASHED_GIB", -1), contextlib.redirect_stderr(said):
        pretrain._check_hashes(folder, form_groups(launch, device, 1))
    (path / "train/shard-00000.bin").write_bytes(bytes(folder.manifest.splits["train"].tokens * 2))
    try:
        return said.getvalue(), int(folder.split("train").read(20_000, 20_100)[0])
    except DataError as error:
        return said.getvalue() + str(error), None


@pytest.mark.row(30, case="a folder too large to be hashed before training")
def test_a_large_folder_is_compared_with_its_own_checksums(process_group, folder):
    for said, read in process_group(2).run(read_changed, folder):
        assert read is None
        assert (
            "train/shard-00000.bin: changed since its checksums were taken, at byte 32768" in said
        )
        assert "WARNING" not in said


def test_a_large_folder_without_checksums_is_warned_of(process_group, folder):
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text())
    for split in content["splits"].values():
        for shard in split["shards"]:
            (folder / f"{shard['name']}.sums").unlink()
            del shard["sums"]
    manifest.write_text(json.dumps(content))
    (said, read), (other, _) = process_group(2).run(read_changed, folder)
    assert read == 0
    assert f"WARNING: {folder} has 0 GiB, more than -1 a process, and no checksums of train" in said
    assert not other
