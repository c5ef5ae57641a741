"""The loss on fixed tokens, by which model folders and old checkpoints are proven."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt_dist.checkpoint.folder import open_whole
from gpt_dist.checkpoint.opened import open_model, save_model
from gpt_dist.errors import ModelError
from gpt_dist.model import family_of, probe_loss
from gpt_dist.model.probe import probe_tokens
from tests.checkpoints import make_first_version, refusal, saved_tensors, vouch_for
from tests.distributed.test_checkpoint import save_again_and_train
from tests.distributed.test_layouts import SMALL
from tests.models import FAMILIES, random_weights, small_config, to_hugging_face
from tests.runs import train

CHECKPOINT = "checkpoints/step-00000030"
SETTINGS = SMALL | {"training.max_steps": 30, "model.dropout": 0, "checkpoint.interval": 30}
SETTINGS |= {
    "optimizer.learning_rate": 0.02,
    "schedule.warmup_steps": 0,
    "schedule.decay_steps": 30,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_transformers(family):
    transformers = pytest.importorskip("transformers")
    config = small_config(family)
    tensors = random_weights(config)
    description = family_of(config).describe(config, end_of_text=None)
    reference = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**description)
    ).eval()
    reference.load_state_dict(to_hugging_face(tensors, config), strict=False)
    inputs, labels = probe_tokens(config)
    with torch.no_grad():
        logits = reference(inputs).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert probe_loss(tensors.__getitem__, config) == pytest.approx(float(expected), rel=1e-5)


@pytest.fixture(scope="module")
def first_version(process_group, token_folder, tmp_path_factory) -> Path:
    """The directory of a run whose weights mean something, with a checkpoint of version 1."""
    directory = tmp_path_factory.mktemp("first")
    process_group(2).run(train, SETTINGS | {"data.path": token_folder}, directory)
    make_first_version(directory / CHECKPOINT)
    return directory


def shift_rows(path: Path) -> None:
    """Shift rows as a wrong reader of the layout would, and keep every hash right."""
    file = path / "rank-00000.safetensors"
    tensors = load_file(file)
    name = "weight/model.token_embedding.weight"
    tensors[name] = tensors[name].roll(32)
    save_file(tensors, file)
    vouch_for(path, file.name)


def test_a_first_version_resumes_and_exports_the_same(
    process_group, token_folder, first_version, tmp_path
):
    settings = SETTINGS | {"data.path": token_folder, "training.max_steps": 32}
    directory = shutil.copytree(first_version, tmp_path / "run")
    before = saved_tensors(directory / CHECKPOINT)
    save_model(open_model(directory), tmp_path / "model")
    process_group(2).run(save_again_and_train, settings, directory)
    again = saved_tensors(directory / "checkpoints/step-00000099")
    assert before.keys() == again.keys()
    assert all(torch.equal(before[name], again[name]) for name in before)
    saved, exported = open_model(directory / CHECKPOINT), open_model(tmp_path / "model")
    for name, tensor in exported.tensors.items():
        assert torch.equal(saved.tensors[name][:500], tensor[:500]), name  # without padding


def test_a_first_version_that_computes_something_else_is_refused_on_every_rank(
    process_group, token_folder, first_version, tmp_path
):
    directory = shutil.copytree(first_version, tmp_path / "run")
    shift_rows(directory / CHECKPOINT)
    open_whole(directory / CHECKPOINT)
    settings = SETTINGS | {"data.path": token_folder, "training.max_steps": 31}
    for message in process_group(2).run(refusal, settings, directory):
        assert "its weights gave a loss of" in message
    with pytest.raises(ModelError, match="its weights would give a loss of"):
        save_model(open_model(directory), tmp_path / "model")
    source = settings | {"model.source": directory / CHECKPOINT}
    for message in process_group(2).run(refusal, source, tmp_path / "new"):
        assert "its weights gave a loss of" in message
