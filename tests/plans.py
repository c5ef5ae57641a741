"""Predict layouts of small models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt_dist.config import ResolvedConfig
from gpt_dist.config.file import load_config
from gpt_dist.config.resolution import resolve
from planning.gpus import GPUS, Gpu
from planning.machines import GIB, Machine
from planning.operations import Operation

VOCAB_SIZE = 4000


class Timeless(Machine):
    """The CPU, where nothing is tried out."""

    def seconds(self, _: Operation) -> float:
        return 0.0


def machine(gib: float = 80, gpu: Gpu | None = GPUS["H100"]) -> Machine:
    kind = Machine if gpu else Timeless
    return kind("test", gib * GIB, 0.0, per_host=8, gpu=gpu, network=50e9)


def configure(world_size: int, overrides: dict[str, Any], path: str = "tiny") -> ResolvedConfig:
    values = [f"{key}={value}" for key, value in overrides.items()]
    config = load_config(Path(f"configs/pretrain/{path}.yaml"), values)
    return resolve(config, world_size, overrides.get("model.vocab_size", VOCAB_SIZE), samples=1000)
