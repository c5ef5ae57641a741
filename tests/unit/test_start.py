"""Check what a run refuses and says before the first step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gpt_dist.data.tokens.folder import TokenFolder
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


def test_a_folder_that_would_take_long_to_hash_is_warned_of(monkeypatch, capsys, token_folder):
    monkeypatch.setattr(pretrain, "HASHED_GIB", -1)
    launch = SimpleNamespace(world_size=2, rank=0)
    pretrain._check_hashes(TokenFolder(token_folder), SimpleNamespace(launch=launch, is_main=True))
    assert f"WARNING: {token_folder} has 0 GiB, more than -1 a process" in capsys.readouterr().err
