"""Pre-training that starts from another model's weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from gpt_dist.checkpoint.opened import open_model, save_model
from gpt_dist.model import GrownVocabulary
from tests.checkpoints import refusal
from tests.distributed.test_layouts import SMALL
from tests.models import random_weights, small_config, write_model_folders
from tests.rows import read_rows
from tests.runs import train


@pytest.fixture(scope="module")
def finished(process_group, token_folder, tmp_path_factory) -> Path:
    """The directory of a short run of ZeRO 3 with tensor parallel 2."""
    directory = tmp_path_factory.mktemp("source")
    settings = SMALL | {"training.max_steps": 3, "data.path": token_folder}
    settings |= {"parallel.zero_stage": 3, "parallel.tensor_parallel_size": 2}
    process_group(2).run(train, settings, directory)
    return directory


@pytest.mark.parametrize("form", ["run", "checkpoint", "folder"])
def test_a_run_begins_where_its_source_ended(process_group, token_folder, finished, tmp_path, form):
    source = finished
    if form == "checkpoint":
        source = finished / "checkpoints/step-00000003"
    if form == "folder":
        source = tmp_path / "folder"
        save_model(open_model(finished), source)
    settings = SMALL | {"training.max_steps": 1, "data.path": token_folder}
    process_group(2).run(train, settings | {"model.source": source}, tmp_path / "run")
    first, last = read_rows(tmp_path / "run")[0], read_rows(finished)[-1]
    assert first["validation_loss"] == pytest.approx(last["validation_loss"], rel=1e-6)


def test_sources_that_do_not_fit_are_refused(process_group, token_folder, finished, tmp_path):
    settings = SMALL | {"training.max_steps": 1, "data.path": token_folder}
    other = write_model_folders(tmp_path)["openai_gpt"]
    damaged = shutil.copytree(finished, tmp_path / "damaged")
    next(damaged.glob("checkpoints/*/rank-00000.safetensors")).write_bytes(b"")
    for source, change, expected in (
        (finished, {"model.num_layers": 3}, "model.num_layers: 3 is not the 2 of model.source"),
        (tmp_path / "absent", {}, "absent: no such folder"),
        (damaged, {}, "no checkpoint in it is whole"),
        (other, {"model.hidden_size": 48}, "are of another tokenizer than"),
    ):
        overrides = settings | {"model.source": source} | change
        (message,) = process_group(1).run(refusal, overrides, tmp_path / "run")
        assert expected in message


@pytest.mark.parametrize(
    ("family", "name"),
    [("openai_gpt", "token_embedding.weight"), ("llama", "head.weight")],
)
def test_new_tokens_are_drawn_and_the_others_kept(family, name):
    before = small_config(family)
    after = before.model_copy(update={"vocab_size": 520})
    tensors = random_weights(before)
    grown = GrownVocabulary(tensors, before, after, unused=[7], seed=1)[name]
    known = tensors[name][:500]
    assert grown.shape == (after.padded_vocab_size, 48)
    kept = [row for row in range(500) if row != 7]
    assert torch.equal(grown[kept], known[kept])
    assert not torch.equal(grown[7], known[7])
    assert float(grown[500:520].std()) == pytest.approx(0.02, rel=0.1)
