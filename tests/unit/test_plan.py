"""Plans: which layouts are legal, what they need, and what does not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpt_dist.config.file import load_config
from gpt_dist.errors import ConfigError
from gpt_dist.progress import silent
from planning.estimate import Planner
from planning.layouts import check_plannable, legal_layouts
from planning.operations import KINDS
from planning.search import search
from planning.trace import Segment, trace
from tests.plans import configure, machine

TINY, LARGE = Path("configs/pretrain/tiny.yaml"), Path("configs/pretrain/gpt-13b.yaml")


def layouts(path: Path, overrides: list[str], gpus: int, vary: bool = False) -> set[tuple]:
    config = load_config(path, overrides)
    return {
        (
            one.parallel.tensor_parallel_size,
            one.parallel.zero_stage,
            one.training.micro_batch_size,
            one.training.activation_checkpointing,
        )
        for one in legal_layouts(config, gpus, 8, 500, None, vary)
    }


def test_keys_that_are_left_out_are_varied():
    fixed = ["training.micro_batch_size=2", "training.activation_checkpointing=true"]
    # tiny.yaml has 4 heads, and a global batch of 16; ZeRO has nothing to do in one copy.
    assert layouts(TINY, fixed, gpus=4) == {
        *((1, stage, 2, True) for stage in range(4)),
        *((2, stage, 2, True) for stage in range(4)),
        (4, 0, 2, True),
    }
    sizes = {size for _, _, size, _ in layouts(TINY, ["parallel.zero_stage=1"], gpus=4)}
    assert sizes == {1, 2, 4, 8, 16}


def test_the_configuration_alone_is_one_layout():
    assert layouts(LARGE, [], gpus=64) == {(8, 1, 4, True)}
    assert len(layouts(LARGE, [], gpus=64, vary=True)) > 100


def test_an_illegal_configuration_is_refused():
    with pytest.raises(ConfigError, match=r"training\.global_batch_size: 16 is not a multiple"):
        layouts(TINY, ["training.micro_batch_size=3"], gpus=4)
    with pytest.raises(ConfigError, match=r"training\.precision: fp16 is not planned"):
        check_plannable(load_config(TINY, ["training.precision=fp16"]))


DEEP = {"model.num_layers": 7, "training.global_batch_size": 32, "training.micro_batch_size": 4}


@pytest.mark.parametrize(
    ("parts", "stage", "precision", "recomputes"),
    [
        (1, 0, "fp32", "true"),
        (2, 0, "bf16", "false"),
        (1, 1, "bf16", "true"),
        (2, 2, "fp32", "false"),
    ],
)
def test_an_extrapolation_equals_the_full_trace(parts, stage, precision, recomputes):
    layout = {
        "parallel.tensor_parallel_size": parts,
        "parallel.zero_stage": stage,
        "training.precision": precision,
        "training.activation_checkpointing": recomputes,
    }
    config, planner = configure(4, DEEP | layout), Planner(4, machine())
    extrapolated, full = planner.estimate(config), planner.estimate(config, full=True)
    assert full.is_full
    assert not extrapolated.is_full
    assert extrapolated.peak == pytest.approx(full.peak, rel=1e-3)
    assert extrapolated.seconds == pytest.approx(full.seconds, rel=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("parts", "size", "sequence_parallel"), [(1, 8, "false"), (2, 4, "false"), (2, 4, "true")]
)
def test_the_host_does_not_wait_for_the_device_in_a_step(parts, size, sequence_parallel, precision):
    layout = {"parallel.tensor_parallel_size": parts, "training.precision": precision}
    layout |= {"parallel.sequence_parallel": sequence_parallel}
    accumulates = {"training.global_batch_size": 16, "training.micro_batch_size": size}
    traced = trace(configure(2, layout | accumulates), world_size=2, on_gpu=True)
    names = [
        operation.function.__name__
        for segment, operations in traced.items()
        if segment.phase != "start"
        for operation, _ in operations
    ]
    assert any(name.startswith("_fused_adamw") for name in names)
    assert [name for name in names if "local_scalar" in name] == []


@pytest.mark.parametrize(("family", "count"), [("openai_gpt", 10), ("gpt2", 10), ("llama", 8)])
def test_sequence_parallelism_keeps_a_part_of_the_activations(family, count):
    """Of a layer's activations it splits the `count` bytes an element that tensor parallelism
    leaves whole: input and output of two norms, and two masks (Korthikanti et al. 2022, 4.1)."""
    layout = {"parallel.tensor_parallel_size": 4, "training.precision": "bf16"}
    layout |= {"model.family": family, "training.global_batch_size": 2, "model.hidden_size": 1024}
    layout |= {"model.dropout": 0.1}

    def kept(sequence_parallel: str) -> int:
        """Return what a layer keeps for the backward pass."""
        overrides = layout | {"parallel.sequence_parallel": sequence_parallel}
        live = []
        for depth in (2, 3):
            config = configure(4, overrides | {"model.num_layers": depth})
            _, after = trace(config, world_size=4, on_gpu=True)[Segment(0, 0, "head")][0]
            # What was sent counts as a buffer.
            live.append(sum(after[KINDS.index(kind)] for kind in ("activations", "buffers")))
        return live[1] - live[0]

    elements = 2 * configure(4, layout).model.sequence_length * 1024
    saved = count * elements * (1 - 1 / 4)
    assert kept("false") - kept("true") >= 0.98 * saved


def test_weights_and_moments_are_those_of_the_parameters():
    config = configure(1, {"training.precision": "bf16"})
    found = Planner(1, machine()).estimate(config, full=True)
    parameters = found.memory["weights"] / 2
    assert found.memory["masters"] == 4 * parameters
    assert found.memory["moments"] == pytest.approx(8 * parameters, rel=1e-3)


def test_what_does_not_fit_is_said_to_and_comes_last():
    config = load_config(TINY, ["parallel.zero_stage=0", "parallel.tensor_parallel_size=1"])
    legal = list(legal_layouts(config, 1, 1, 500, None, vary=False))
    roomy = search(legal, 1, machine(80), silent)
    assert all(one.fits for one in roomy)
    assert [one.seconds for one in roomy] == sorted(one.seconds for one in roomy)
    middle = sorted(one.peak for one in roomy)[len(roomy) // 2]
    tight = search(legal, 1, machine(middle * 1.01 / 2**30), silent)
    fits = [one.fits for one in tight]
    assert fits == sorted(fits, reverse=True)
    # The one of the middle is within the memory, but not within the margin.
    assert 0 < sum(fits) <= len(legal) // 2
    assert all(one.peak < middle for one in tight if one.fits)


def test_the_command_line():
    layout = ["parallel.tensor_parallel_size=2", "parallel.zero_stage=1"]
    layout += ["training.micro_batch_size=2", "training.activation_checkpointing=false"]
    done = subprocess.run(
        [sys.executable, "launch/plan.py", TINY, *layout, "--gpus", "16", "--gpu", "H100"],
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    assert "5,594,112 parameters on 16 x H100, 1 layout(s)" in done.stdout
    *_, start = done.stdout.splitlines()
    assert start.startswith("torchrun --nnodes 2 --nproc-per-node 8")
    assert "launch/pretrain.py configs/pretrain/tiny.yaml" in start
    assert "parallel.zero_stage=1" in start
