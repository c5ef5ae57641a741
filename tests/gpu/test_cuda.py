"""What holds on the CPU holds on GPUs: figures of every layout, repeated bits, resumed runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt_dist.rendezvous import Launch
from tests.distributed.test_layouts import SMALL
from tests.process_group import ProcessGroup
from tests.rows import Rows, read_rows
from tests.runs import start, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Relative; the kernels of a GPU sum in another order than those of the CPU."""


@pytest.fixture(scope="module")
def gpus() -> Iterator[Callable[[int], ProcessGroup]]:
    """Return a function that gives processes with a GPU each, or skips where there are too few."""
    groups: dict[int, ProcessGroup] = {}

    def get(size: int) -> ProcessGroup:
        if size > torch.cuda.device_count():
            pytest.skip(f"needs {size} GPUs")
        if size not in groups or not groups[size].alive:
            groups[size] = ProcessGroup(size, on_gpus=True)
        return groups[size]

    yield get
    for group in groups.values():
        group.close()


def figures(rows: Rows) -> list[tuple[float, float]]:
    return [(row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


def run(group: ProcessGroup, directory: Path, **overrides: Any) -> list[tuple[float, float]]:
    settings = SMALL | {key.replace("__", "."): value for key, value in overrides.items()}
    group.run(train, settings, directory)
    return figures(read_rows(directory))


@pytest.fixture(scope="module")
def on_cpu(process_group, token_folder, tmp_path_factory) -> dict[str, list[tuple[float, float]]]:
    """The figures of one process on the CPU, by precision."""
    settings = {"data__path": token_folder}
    return {
        precision: run(
            process_group(1),
            tmp_path_factory.mktemp("cpu"),
            **settings,
            training__precision=precision,
        )
        for precision in TOLERANCE
    }


def assert_near(found: list[Any], expected: list[Any], tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("compiles", ["false", "true"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("parts", "copies"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_every_layout_gives_the_figures_of_the_cpu(
    gpus, on_cpu, token_folder, tmp_path, parts, copies, zero_stage, compiles, precision
):
    if compiles == "true" and zero_stage == 3:
        pytest.skip("ZeRO 3 is not compiled")
    found = run(
        gpus(parts * copies),
        tmp_path,
        data__path=token_folder,
        parallel__tensor_parallel_size=parts,
        parallel__zero_stage=zero_stage,
        training__compile=compiles,
        training__precision=precision,
    )
    assert_near(found, on_cpu[precision], TOLERANCE[precision])


def test_fp16_gives_the_figures_of_fp32(gpus, on_cpu, token_folder, tmp_path):
    found = run(gpus(1), tmp_path, data__path=token_folder, training__precision="fp16")
    applied = [one for one in found if np.isfinite(one).all()]
    assert len(applied) >= len(found) - 3
    assert_near(applied[:3], on_cpu["fp32"][:3], TOLERANCE["bf16"])


def test_a_deterministic_run_repeats_its_bits_though_it_is_interrupted(
    gpus, token_folder, tmp_path
):
    settings = {
        "data__path": token_folder,
        "model__dropout": 0.1,
        "training__deterministic": "true",
        "training__precision": "bf16",
        "checkpoint__interval": 3,
    }
    whole = run(gpus(1), tmp_path / "whole", **settings)
    decay = {"schedule__decay_steps": SMALL["training.max_steps"]}
    run(gpus(1), tmp_path / "parts", **settings, **decay, training__max_steps=6)
    assert run(gpus(1), tmp_path / "parts", **settings, **decay) == whole


def step_without_waiting(launch: Launch, device: torch.device, settings: Any, path: Path) -> bool:
    """Make steps in which a wait of the host for the device is an error."""
    from gpt_dist.data.batches import TokenBatch

    engine = start(launch, device, settings, path).engine
    tokens = np.arange(2 * 32).reshape(2, 32)
    batch = [TokenBatch(tokens, tokens)] * 4
    engine.train_batch(batch, 1e-3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        _, update = engine.train_batch(batch, 1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return update.applied


@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_step_does_not_wait(gpus, token_folder, tmp_path, precision):
    settings = SMALL | {"data.path": token_folder, "training.precision": precision}
    assert gpus(1).run(step_without_waiting, settings, tmp_path) == [True]
