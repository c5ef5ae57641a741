"""Stored weights prove themselves by a loss on fixed tokens, computed again wherever they go."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt_dist.checkpoint.folder import open_whole
from gpt_dist.checkpoint.format import MANIFEST_NAME, Checkpoint
from gpt_dist.data.tokens.folder import FileEntry, file_sha256
from gpt_dist.errors import CheckpointError
from gpt_dist.model import family_of, probe_loss, probe_tokens
from gpt_dist.rendezvous import Launch
from tests.distributed.test_layouts import SMALL
from tests.models import FAMILIES, random_weights, small_config, to_hugging_face
from tests.runs import start, train


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


def shift_rows(path: Path) -> None:
    """What a wrong reader of the layout would do, with every hash of the checkpoint right."""
    file = path / "rank-00000.safetensors"
    tensors = load_file(file)
    name = "weight/model.token_embedding.weight"
    tensors[name] = tensors[name].roll(32)
    save_file(tensors, file)
    manifest = Checkpoint.open(path).manifest
    entry = FileEntry(bytes=file.stat().st_size, sha256=file_sha256(file))
    changed = manifest.model_copy(update={"files": {**manifest.files, file.name: entry}})
    (path / MANIFEST_NAME).write_text(changed.sealed().model_dump_json())


def refusal(launch: Launch, device: torch.device, *arguments: Any) -> str:
    try:
        start(launch, device, *arguments)
    except CheckpointError as error:
        return str(error)
    return ""


def test_weights_that_compute_something_else_are_refused_on_every_rank(
    process_group, token_folder, tmp_path
):
    settings = SMALL | {"data.path": token_folder, "training.max_steps": 30, "model.dropout": 0}
    settings |= {"optimizer.learning_rate": 0.02, "schedule.warmup_steps": 0}
    process_group(2).run(train, settings, tmp_path / "whole")
    directory = shutil.copytree(tmp_path / "whole", tmp_path / "changed")
    path = directory / "checkpoints/step-00000030"
    shift_rows(path)
    open_whole(path)
    for message in process_group(2).run(refusal, settings, directory):
        assert "its weights gave a loss of" in message
    assert process_group(2).run(refusal, settings, tmp_path / "whole") == ["", ""]


def save_something_else(
    launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path
) -> str:
    """Spoil the snapshot of a weight between the model and the disk."""
    run = start(launch, device, overrides, directory)
    for parameter in run.engine._engine.module.parameters():
        parameter.data.normal_()  # not of the fp32 weights, which are what is saved
    try:
        run.saver.save(1)
        run.saver.wait()
    except CheckpointError as error:
        return str(error)
    return ""


def test_a_checkpoint_that_is_not_the_model_is_not_published(process_group, token_folder, tmp_path):
    settings = SMALL | {"data.path": token_folder, "parallel.zero_stage": 1}
    settings |= {"training.precision": "bf16"}
    for message in process_group(2).run(save_something_else, settings, tmp_path):
        assert "not written" in message
        assert "the model that they were copied from" in message
    assert not list((tmp_path / "checkpoints").iterdir())
