"""Test the dictionary that DeepSpeed gets from each shipped configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt_dist.config.file import load_config
from gpt_dist.config.resolution import resolve
from gpt_dist.train.optimizer import deepspeed_config, is_partitioned

BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
GOLDEN = {
    "tiny": {
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": 0},
        "gradient_clipping": 0.0,
    },
    "gpt1": {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 8,
        "zero_optimization": {"stage": 1},
        **BF16,
    },
    "gpt-1.3b": {
        "train_batch_size": 512,
        "train_micro_batch_size_per_gpu": 8,
        "zero_optimization": {"stage": 1},
        **BF16,
    },
    "gpt-13b": {
        "train_batch_size": 1024,
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": 1},
        **BF16,
    },
}
ALWAYS = {
    "gradient_clipping": 1.0,
    "communication_data_type": "fp32",
    "zero_force_ds_cpu_optimizer": False,
    "steps_per_print": None,
    "wall_clock_breakdown": False,
}


@pytest.mark.parametrize(
    "path", sorted(Path("configs/pretrain").glob("*.yaml")), ids=lambda p: p.stem
)
def test_golden(path):
    config = resolve(load_config(path, []), world_size=8, vocab_size=40_000, samples=1000)
    assert deepspeed_config(config, is_partitioned(config, 8)) == ALWAYS | GOLDEN[path.stem]


def test_unpartitioned_state_is_whole_fp32_without_clipping():
    config = load_config(Path("configs/pretrain/gpt1.yaml"), [])
    resolved = resolve(config, world_size=1, vocab_size=500, samples=100)
    derived = deepspeed_config(resolved, partitioned=False)
    assert derived["zero_optimization"] == {"stage": 0}
    assert derived["gradient_clipping"] == 0
    assert not derived.keys() & {"bf16", "fp16", "data_types"}


@pytest.mark.parametrize(
    ("overrides", "processes", "partitioned"),
    [
        (["parallel.zero_stage=3"], 2, True),
        (["parallel.zero_stage=3"], 1, False),
        (["parallel.zero_stage=0"], 2, False),
        (["training.precision=fp16"], 1, True),
        (["parallel.zero_stage=1", "parallel.offload_optimizer=true"], 1, True),
    ],
)
def test_who_holds_the_state(overrides, processes, partitioned):
    config = load_config(Path("configs/pretrain/gpt1.yaml"), overrides)
    resolved = resolve(config, world_size=processes, vocab_size=500, samples=100)
    assert is_partitioned(resolved, processes) is partitioned


def test_offload_and_fp16():
    overrides = ["parallel.zero_stage=2", "parallel.offload_optimizer=true"]
    config = load_config(
        Path("configs/pretrain/tiny.yaml"), [*overrides, "training.precision=fp16"]
    )
    derived = deepspeed_config(
        resolve(config, world_size=1, vocab_size=500, samples=100), partitioned=True
    )
    assert derived["zero_optimization"] == {
        "stage": 2,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
    }
    assert derived["fp16"] == {"enabled": True, "initial_scale_power": 16}
