"""Every parallel layout trains as the single process does."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_dist.rendezvous import Launch
from tests.rows import Rows, assert_same, read_rows
from tests.runs import train

STEPS = 12
CLIP_NORM = 0.3
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}


SMALL = {
    "model.num_layers": 2,
    "model.hidden_size": 32,
    "model.num_heads": 4,
    "model.sequence_length": 32,
    "training.max_steps": STEPS,
    "training.global_batch_size": 8,
    "training.micro_batch_size": 2,
    "schedule.warmup_steps": 5,
    "optimizer.learning_rate": 2e-3,
    "optimizer.clip_norm": CLIP_NORM,
    "logging.interval": 1,
    "validation.interval": 6,
    "validation.max_samples": 7,
}


Run = Callable[..., Rows]


@pytest.fixture(scope="module")
def run(process_group, token_folder, tmp_path_factory) -> Run:
    """Train in a layout and return the rows; equal runs are made once."""
    cache: dict[str, Rows] = {}

    def run(data_parallel_size: int = 1, tensor_parallel_size: int = 1, **sections: Any) -> Rows:
        overrides = SMALL | {
            "data.path": token_folder,
            "parallel.tensor_parallel_size": tensor_parallel_size,
            **{key.replace("__", "."): value for key, value in sections.items()},
        }
        key = repr((data_parallel_size, overrides))
        if key not in cache:
            directory = tmp_path_factory.mktemp("run")
            group = process_group(data_parallel_size * tensor_parallel_size)
            group.run(train, overrides, directory)
            cache[key] = read_rows(directory)
        return cache[key]

    return run


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("data_parallel_size", [1, 2])
@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
def test_every_layout_gives_the_single_process_figures(
    run, zero_stage, tensor_parallel_size, data_parallel_size, precision
):
    expected = run(training__precision=precision)
    found = run(
        data_parallel_size,
        tensor_parallel_size,
        parallel__zero_stage=zero_stage,
        training__precision=precision,
    )
    training = [row for row in found if "loss" in row]
    assert len(training) == STEPS
    assert all(row["grad_norm"] > CLIP_NORM for row in training), "clipping is never active"
    assert_same(found, expected, TOLERANCE[precision])


@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_layers_too_large_to_sum_carelessly(run, zero_stage, tensor_parallel_size):
    """Norms over 6e5 elements, and weights that ZeRO 3 really partitions and releases."""
    wide = {"model__hidden_size": 384, "training__max_steps": 4}
    found = run(
        2 // tensor_parallel_size, tensor_parallel_size, parallel__zero_stage=zero_stage, **wide
    )
    assert_same(found, run(**wide, parallel__zero_stage=1), TOLERANCE["fp32"])


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_pre_layer_norm(run, zero_stage):
    expected = run(model__family="gpt2")
    found = run(2, 2, model__family="gpt2", parallel__zero_stage=zero_stage)
    assert_same(found, expected, TOLERANCE["fp32"])


def test_a_process_whose_every_validation_window_is_void(run):
    single = {"training__micro_batch_size": 1, "validation__max_samples": 1}
    single |= {"training__max_steps": 1}
    assert_same(run(2, **single), run(**single), TOLERANCE["fp32"])


@pytest.mark.parametrize("micro_batch_size", [1, 8])
def test_accumulation_changes_nothing(run, micro_batch_size):
    found = run(training__micro_batch_size=micro_batch_size)
    assert_same(found, run(), TOLERANCE["fp32"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_offload_changes_nothing(run, zero_stage, precision):
    settings = {"training__precision": precision, "parallel__zero_stage": zero_stage}
    found = run(2, **settings, parallel__offload_optimizer="true")
    assert_same(found, run(2, **settings), TOLERANCE[precision])


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_activation_checkpointing_repeats_dropout(run, zero_stage):
    settings = {"model__dropout": 0.2, "parallel__zero_stage": zero_stage}
    found = run(1, 2, **settings, training__activation_checkpointing="true")
    assert_same(found, run(1, 2, **settings), TOLERANCE["fp32"])
    assert found[-1] != pytest.approx(run(1, 2, parallel__zero_stage=zero_stage)[-1])


def test_a_compiled_model_gives_the_same_figures(run):
    settings = {"training__max_steps": 4}
    found = run(**settings, training__compile="true")
    assert_same(found, run(**settings), TOLERANCE["fp32"])


def test_compiled_dropout_is_the_same_at_every_tensor_parallel_degree(run):
    settings = {"training__max_steps": 4, "model__dropout": 0.2, "training__compile": "true"}
    assert_same(run(1, 2, **settings), run(**settings), TOLERANCE["fp32"])


@pytest.mark.parametrize(
    ("data_parallel_size", "tensor_parallel_size", "settings"),
    [
        (1, 2, {"model__dropout": 0.2, "training__compile": "true"}),
        (1, 4, {"model__family": "gpt2", "training__deterministic": "true"}),
        (2, 2, {"training__precision": "bf16", "parallel__zero_stage": 3}),
    ],
)
def test_sequence_parallelism_gives_the_single_process_figures(
    run, data_parallel_size, tensor_parallel_size, settings
):
    settings = {"training__max_steps": 4, **settings}
    layout = data_parallel_size, tensor_parallel_size
    found = run(*layout, **settings, parallel__sequence_parallel="true")
    expected = run(**settings | {"parallel__zero_stage": 0})
    assert_same(found, expected, TOLERANCE[settings.get("training__precision", "fp32")])


def test_activation_checkpointing_repeats_dropout_of_split_activations(run):
    settings = {"model__dropout": 0.2, "parallel__sequence_parallel": "true"}
    settings |= {"training__max_steps": 4}
    found = run(1, 2, **settings, training__activation_checkpointing="true")
    assert_same(found, run(1, 2, **settings), TOLERANCE["fp32"])


def test_a_deterministic_run_repeats_bit_for_bit(run, process_group, token_folder, tmp_path):
    settings = {"training__deterministic": "true", "model__dropout": 0.1}
    overrides = SMALL | {"data.path": token_folder, "parallel.tensor_parallel_size": 2}
    overrides |= {key.replace("__", "."): value for key, value in settings.items()}
    process_group(2).run(train, overrides, tmp_path)
    assert_same(read_rows(tmp_path), run(1, 2, **settings), 0.0)


def test_training_learns(run):
    rows = run(training__max_steps=200, training__micro_batch_size=8, optimizer__clip_norm=1)
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert losses[0] == pytest.approx(math.log(500), rel=0.01)
    assert losses[-1] < losses[0] - 0.9


def train_fp16(
    launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path
) -> None:
    """The fp16 arithmetic on the CPU, slow and so refused to users, with DeepSpeed persuaded."""
    from deepspeed.accelerator import get_accelerator

    import gpt_dist.train.pretrain

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(get_accelerator(), "is_fp16_supported", lambda: True)
        patch.setattr(gpt_dist.train.pretrain, "device_type", lambda: "cuda")
        train(launch, device, overrides | {"training.precision": "fp16"}, directory)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_fp16_gives_the_figures_of_fp32(run, process_group, token_folder, tmp_path, zero_stage):
    overrides = {"data.path": token_folder, "parallel.tensor_parallel_size": 2}
    overrides |= {"parallel.zero_stage": zero_stage}
    process_group(2).run(train_fp16, SMALL | overrides, tmp_path)
    assert_same(read_rows(tmp_path), run(), TOLERANCE["bf16"])
