"""Every parallel layout trains as the single process does."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt_dist.topology import Launch, form_groups
from tests.process_group import ProcessGroup, read_rows

STEPS = 20
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}


def train(launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path) -> None:
    """A whole pre-training run through the public functions, as launch/pretrain.py makes it."""
    from gpt_dist.config import load_config
    from gpt_dist.train.pretrain import check, pretrain

    values = [f"{key}={value}" for key, value in overrides.items()]
    config, folder = check(
        load_config(Path("configs/pretrain/tiny.yaml"), [*values, f"run.directory={directory}"]),
        launch,
    )
    topology = form_groups(launch, device, config.parallel.tensor_parallel_size)
    pretrain(config, folder, topology)


SMALL = {
    "model.num_layers": 2,
    "model.hidden_size": 32,
    "model.num_heads": 4,
    "model.sequence_length": 32,
    "training.max_steps": STEPS,
    "training.global_batch_size": 8,
    "training.micro_batch_size": 2,
    "schedule.warmup_steps": 5,
    "optimizer.clip_norm": 0.3,
    "logging.interval": 1,
    "validation.interval": 10,
    "validation.max_samples": 7,
}


@pytest.fixture(scope="session")
def single(process_group, token_folder, tmp_path_factory):
    """The rows of the single process, by precision and norm position."""
    cache: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def get(precision: str, norm_position: str) -> list[dict[str, Any]]:
        key = (precision, norm_position)
        if key not in cache:
            directory = tmp_path_factory.mktemp("single")
            overrides = SMALL | {
                "data.path": token_folder,
                "training.precision": precision,
                "model.norm_position": norm_position,
            }
            process_group(1).run(train, overrides, directory)
            cache[key] = read_rows(directory)
        return cache[key]

    return get
