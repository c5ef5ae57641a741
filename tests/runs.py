"""Run pre-training in a test's processes, through the functions that launch/pretrain.py calls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gpt_dist.rendezvous import Launch
from gpt_dist.topology import Topology, form_groups

if TYPE_CHECKING:
    from gpt_dist.checkpoint.save import Saver
    from gpt_dist.train.engine import Engine
    from gpt_dist.train.pretrain import Inputs


def prepare(
    launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path
) -> tuple[Inputs, Topology]:
    """Return the checked inputs of tiny.yaml with other values, and the groups of their layout."""
    from gpt_dist.config.file import load_config
    from gpt_dist.train.pretrain import check

    values = [f"{key}={value}" for key, value in overrides.items()]
    config = load_config(
        Path("configs/pretrain/tiny.yaml"), [*values, f"run.directory={directory}"]
    )
    inputs = check(config, launch)
    return inputs, form_groups(launch, device, config.parallel.tensor_parallel_size)


def train(launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path) -> None:
    """Do a whole pre-training run."""
    from gpt_dist.train.pretrain import pretrain

    pretrain(*prepare(launch, device, overrides, directory))


@dataclass(frozen=True)
class Run:
    """Started run, before its first step."""

    engine: Engine
    saver: Saver
    topology: Topology


def start(launch: Launch, device: torch.device, overrides: dict[str, Any], directory: Path) -> Run:
    """Start a run, or resume it from the newest checkpoint of its directory."""
    from gpt_dist.checkpoint.resume import find_checkpoint
    from gpt_dist.checkpoint.save import Saver
    from gpt_dist.train.objective import LanguageModelObjective
    from gpt_dist.train.start import start_engine

    inputs, topology = prepare(launch, device, overrides, directory)
    config, data = inputs.config, inputs.data
    checkpoint = find_checkpoint(config, topology, data, print)
    engine = start_engine(config, topology, LanguageModelObjective, None, checkpoint)
    return Run(engine, Saver(engine.state(), config, topology, data), topology)
