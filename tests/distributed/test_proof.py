"""Fingerprints prove that a checkpoint is the live model, and a live model its checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt_dist.checkpoint.folder import open_whole
from gpt_dist.checkpoint.fragments import Fragment, fragments_of
from gpt_dist.checkpoint.opened import open_model, save_model
from gpt_dist.errors import CheckpointError
from gpt_dist.rendezvous import Launch
from tests.checkpoints import forge, layout, refusal, vouch_for
from tests.distributed.test_layouts import SMALL
from tests.runs import start, train

QKV = "model.blocks.0.attention.query_key_value.weight"
BIASES = [f"model.blocks.{number}.attention.projection.bias" for number in range(2)]
PATH = "checkpoints/step-00000002"


def spoil_layers(engine: Any) -> None:
    """Change what forward uses, but not the fp32 weights, which are what is saved."""
    for parameter in engine._engine.module.parameters():
        getattr(parameter, "ds_tensor", parameter).data.normal_()


def spoil_one_layer(engine: Any) -> None:
    """The same on one data-parallel process, for one weight."""
    if torch.distributed.get_rank() == 1:
        dict(engine._engine.module.named_parameters())[BIASES[1]].data[3] += 1


def exchange_fragments(engine: Any) -> Iterator[Fragment]:
    """Take two fragments that are equally long for each other in the optimizer's memory."""
    found = list(fragments_of(engine))
    for first, second in combinations(range(len(found)), 2):
        one, other = found[first], found[second]
        if one.length == other.length > 400 and one.master is other.master:  # no bias, all zeros
            found[first] = replace(one, start=other.start)
            found[second] = replace(other, start=one.start)
            break
    yield from found


def shift_fragments(engine: Any) -> Iterator[Fragment]:
    """Take each fragment for one a few elements further on, as long as it stays in its memory."""
    for one in fragments_of(engine):
        fits = one.start + one.length + 3 <= one.master.numel()
        yield replace(one, start=one.start + 3) if fits else one


def save_something_else(
    launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path, spoil: str
) -> str:
    """Return the refusal of a first save whose bookkeeping of the state is wrong."""
    from gpt_dist.checkpoint.save import Saver
    from gpt_dist.checkpoint.state import TrainingState

    run = start(launch, device, overrides, directory)
    topology = run.topology
    if spoil == "shards":
        topology = replace(topology, tensor_parallel_rank=1 - topology.tensor_parallel_rank)
    target = "gpt_dist.checkpoint.state.fragments_of"
    kinds = {"exchanged": exchange_fragments, "shifted": shift_fragments}
    {"layers": spoil_layers, "layer": spoil_one_layer}.get(spoil, id)(run.engine)
    with mock.patch(target, kinds.get(spoil, fragments_of)):
        state = TrainingState(run.engine._engine, topology)
    saver = Saver(state, run.saver._config, run.topology, run.saver._data)
    try:
        saver.save(1)
        saver.wait()
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("spoil", "change", "named"),
    [
        ("layers", layout(1, 1) | {"training.precision": "bf16"}, "embedding.weight"),
        ("layers", layout(3, 1) | {"training.precision": "bf16"}, "embedding.weight"),
        ("layer", layout(0, 1) | {"training.precision": "bf16"}, BIASES[1]),
        ("layer", layout(2, 1), BIASES[1]),
        ("exchanged", layout(2, 1), ".weight"),
        ("exchanged", layout(3, 1) | {"training.precision": "bf16"}, ".weight"),
        ("shifted", layout(1, 1), ""),
        ("shifted", layout(3, 1), ""),
        ("shards", layout(0, 2), "model.token_embedding.weight"),
        ("shards", layout(3, 2), "model.token_embedding.weight"),
        ("shards", layout(1, 2) | {"training.precision": "bf16"}, "model.token_embedding.weight"),
    ],
)
def test_a_checkpoint_that_is_not_the_model_is_not_published(
    process_group, token_folder, tmp_path, spoil, change, named
):
    settings = SMALL | {"data.path": token_folder} | change
    for message in process_group(2).run(save_something_else, settings, tmp_path, spoil):
        assert "not written" in message
        assert f"{named} is not the same in the model that it was copied from" in message
    assert not list((tmp_path / "checkpoints").iterdir())


def save_not_a_number(
    launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path
) -> str:
    run = start(launch, device, overrides, directory)
    if launch.rank == 1:
        for fragment in run.engine.state().owned.values():
            fragment.tensors()["weight"][-1] = torch.nan
    try:
        run.saver.save(1)
        run.saver.wait()
    except CheckpointError as error:
        return str(error)
    return ""


def test_weights_that_are_not_finite_are_not_published(process_group, token_folder, tmp_path):
    settings = SMALL | {"data.path": token_folder} | layout(1, 1)
    for message in process_group(2).run(save_not_a_number, settings, tmp_path):
        assert "not written (rank 1: weight/" in message
        assert "holds values that are not finite" in message


@pytest.fixture(scope="module")
def split(process_group, token_folder, tmp_path_factory) -> Path:
    """The directory of a run of tensor parallel 2 that has saved step 2."""
    directory = tmp_path_factory.mktemp("split")
    settings = SMALL | layout(0, 2) | {"training.max_steps": 2, "data.path": token_folder}
    process_group(2).run(train, settings, directory)
    return directory


def edit(checkpoint: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of the first file, with every hash right."""
    file = checkpoint / "rank-00000.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    vouch_for(checkpoint, file.name)


def swap_query_and_key(tensors: dict[str, Tensor]) -> None:
    rows = tensors[f"weight/{QKV}"].view(-1, 3, 8, 32)  # heads of 8, hidden size 32
    tensors[f"weight/{QKV}"] = rows[:, [1, 0, 2]].flatten()


def transpose_shard(tensors: dict[str, Tensor]) -> None:
    tensors[f"weight/{QKV}"] = tensors[f"weight/{QKV}"].view(-1, 32).t().flatten()


def change_last_bit(tensors: dict[str, Tensor]) -> None:
    tensors[f"exp_avg_sq/{QKV}"].view(torch.int32)[7] += 1


def exchange_moments(tensors: dict[str, Tensor]) -> None:
    first, second = (f"exp_avg/{name}" for name in BIASES)
    tensors[first], tensors[second] = tensors[second], tensors[first]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (swap_query_and_key, f"weight/{QKV}"),
        (transpose_shard, f"weight/{QKV}"),
        (change_last_bit, f"exp_avg_sq/{QKV}"),
        (exchange_moments, f"exp_avg/{BIASES[0]}"),
    ],
)
def test_a_state_that_is_not_what_was_saved_is_refused_on_every_rank(
    process_group, token_folder, split, tmp_path, change, named
):
    directory = shutil.copytree(split, tmp_path / "run")
    edit(directory / PATH, change)
    open_whole(directory / PATH)
    settings = SMALL | {"training.max_steps": 3, "data.path": token_folder}
    for target in (layout(0, 2), layout(2, 1)):
        for message in process_group(2).run(refusal, settings | target, directory):
            assert f"{named} has another fingerprint than when it was saved" in message
    if "weight/" in named:
        with pytest.raises(CheckpointError, match=f"weight/{QKV} has another fingerprint"):
            save_model(open_model(directory), tmp_path / "model")
        source = settings | {"model.source": directory}
        for message in process_group(2).run(refusal, source, tmp_path / "new"):
            assert f"weight/{QKV} has another fingerprint" in message


def test_shards_that_the_manifest_exchanges_are_refused(
    process_group, token_folder, split, tmp_path
):
    directory = shutil.copytree(split, tmp_path / "run")
    keys = ["parameters", QKV, "fragments"]
    fragments = json.loads((directory / PATH / "manifest.json").read_bytes())
    for key in keys:
        fragments = fragments[key]
    first, second = (one["file"] for one in fragments)
    assert first != second
    forge(directory / PATH, [*keys, 0, "file"], second)
    forge(directory / PATH, [*keys, 1, "file"], first)
    settings = SMALL | {"training.max_steps": 3, "data.path": token_folder} | layout(0, 2)
    for message in process_group(2).run(refusal, settings, directory):
        assert f"weight/{QKV} has another fingerprint" in message


def resume_wrongly(launch: Launch, *arguments: Any) -> list[str]:
    """Return the refusals of resumes that load reversed shards, or do not load the layers."""
    from gpt_dist.checkpoint.state import TrainingState

    fill, messages = TrainingState._fill, []

    def fill_reversed(self: Any, parameter: Any, fragment: Any, kind: Any, full: Any) -> None:
        fill(self, parameter, fragment, kind, full.flip(0))

    def fill_fragment(self: Any, parameter: Any, *arguments: Any) -> None:
        before = parameter.clone()
        fill(self, parameter, *arguments)
        parameter.copy_(before)

    for wrong in (fill_reversed, fill_fragment):
        with mock.patch.object(TrainingState, "_fill", wrong):
            messages.append(refusal(launch, *arguments))
    return messages


def test_a_state_that_is_loaded_wrongly_is_refused(process_group, token_folder, split, tmp_path):
    directory = shutil.copytree(split, tmp_path / "run")
    settings = SMALL | {"training.max_steps": 3, "data.path": token_folder}
    settings |= layout(1, 2) | {"training.precision": "bf16"}
    for values, layers in process_group(2).run(resume_wrongly, settings, directory):
        assert "weight/model.token_embedding.weight has another fingerprint" in values
        assert "layers/model.token_embedding.weight has another fingerprint" in layers


def begin_wrongly(launch: Launch, *arguments: Any) -> str:
    """Return the refusal of a run whose source is loaded into the wrong layers."""
    from gpt_dist.model import load_full_tensors

    def load_shifted(model: Any, tensors: Any, layers: int | None) -> None:
        load_full_tensors(model, tensors, layers)
        model.blocks[1].attention.projection.weight.data.add_(1e-3)

    with mock.patch("gpt_dist.train.start.load_full_tensors", load_shifted):
        return refusal(launch, *arguments)


def test_a_source_that_is_loaded_wrongly_is_refused(process_group, token_folder, split, tmp_path):
    settings = SMALL | {"training.max_steps": 1, "data.path": token_folder, "model.source": split}
    name = "blocks.1.attention.projection.weight"
    for number, change in enumerate((layout(0, 2), {"training.precision": "bf16"})):
        arguments = settings | change, tmp_path / str(number)
        for message in process_group(2).run(begin_wrongly, *arguments):
            assert f"layers/model.{name} has another fingerprint once it is loaded" in message
