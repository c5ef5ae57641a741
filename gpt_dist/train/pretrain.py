"""Assembles a pre-training run: tokens, model, engine, loop."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.checkpoint.resume import find_checkpoint
from gpt_dist.checkpoint.save import Saver
from gpt_dist.checkpoint.state import restore_rng
from gpt_dist.config import Config, check_layout, resolve
from gpt_dist.data.tokens import TokenFolder, files_of, find_damage
from gpt_dist.data.windows import ShuffledWindows, Windows
from gpt_dist.errors import ConfigError, DataError
from gpt_dist.model import GPT
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import Topology, device_type
from gpt_dist.train.directory import check_writable
from gpt_dist.train.engine import Engine
from gpt_dist.train.interruption import Interruption
from gpt_dist.train.loop import Trainer
from gpt_dist.train.metrics import Reporter
from gpt_dist.train.objective import LanguageModelObjective

VERIFIED_BYTES = 2**30
"""Token folders up to this size are hashed before training, which takes a second or two."""


def check(config: Config, launch: Launch) -> tuple[Config, TokenFolder]:
    """Open the data and complete the configuration; refuse whatever would fail later.

    Needs no process group. Raises ConfigError or DataError.
    """
    check_layout(config, launch.world_size, device_type())
    if config.data.path is None:
        raise ConfigError(
            "data.path: not given; make a token folder by `python -m data_prep build`"
        )
    folder = TokenFolder.open(Path(config.data.path))
    windows = Windows(folder.split("train"), config.model.sequence_length)
    ShuffledWindows(windows, config.run.seed)
    config = resolve(config, launch.world_size, folder.vocab_size, len(windows))
    check_writable(Path(config.run.directory))
    if launch.rank == 0:
        _check_hashes(folder)
    return config, folder


def pretrain(config: Config, folder: TokenFolder, topology: Topology) -> None:
    """Train a model on a token folder, as a configuration that `check` completed says.

    It starts from scratch, or goes on from the checkpoint that training.resume leads to.
    """
    directory = Path(config.run.directory)
    if config.training.deterministic:
        # cuBLAS reads it when it starts; without it, torch refuses its matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.training.deterministic)
    checkpoint = find_checkpoint(config, topology, folder.digest, _warn)
    done = checkpoint.manifest.step if checkpoint else 0
    engine, num_parameters = build(config, topology, checkpoint)
    if topology.is_main:
        config.save(directory / "config.yaml")
    assert config.training.max_steps is not None
    reporting = Reporter(directory, config.training.max_steps, done) if topology.is_main else None
    with reporting or nullcontext() as reporter:
        if reporter:
            reporter.say(_describe(config, topology, num_parameters))
            if checkpoint:
                reporter.say(f"resumed from {checkpoint.path}")
        length = config.model.sequence_length
        trainer = Trainer(
            engine,
            ShuffledWindows(Windows(folder.split("train"), length), config.run.seed),
            Windows(folder.split("validation"), length),
            config,
            topology,
            Saver(engine.state(), config, topology, folder),
            Interruption(),
            reporter,
        )
        trainer.run(done)
        trainer.saver.close()
        trainer.interruption.close()
        if reporter:
            reporter.summary()


def build(config: Config, topology: Topology, checkpoint: Checkpoint | None) -> tuple[Engine, int]:
    """The engine, with a checkpoint's state if there is one, and its parameters in number."""
    # Equal on all processes: initial weights are drawn whole and sliced.
    torch.manual_seed(config.run.seed)
    model = GPT(
        config.model,
        topology.tensor_parallel_group,
        config.training.activation_checkpointing,
    )
    num_parameters = sum(p.numel() for p in model.parameters())
    engine = Engine(LanguageModelObjective(model), config, topology)
    # Dropout differs between data-parallel processes and agrees between tensor-parallel peers.
    torch.manual_seed(config.run.seed + 1 + topology.data_parallel_rank)
    if checkpoint:
        engine.state().load(checkpoint)
        restore_rng(checkpoint, topology)
    return engine, num_parameters


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _check_hashes(folder: TokenFolder) -> None:
    if sum(entry.bytes for _, entry in files_of(folder.manifest)) > VERIFIED_BYTES:
        return
    for name in find_damage(folder):
        raise DataError(
            f"{folder.path / name}: damaged, its SHA-256 is not the manifest's; copy the token "
            "folder again, or prepare it with `python -m data_prep build`"
        )


def _describe(config: Config, topology: Topology, parameters: int) -> str:
    training = config.training
    return (
        f"{parameters:,} parameters a process, {training.precision}, {topology.device.type}; "
        f"data parallel {topology.data_parallel_size} x tensor parallel "
        f"{topology.tensor_parallel_size}, ZeRO {config.parallel.zero_stage}; "
        f"global batch {training.global_batch_size} x {config.model.sequence_length} tokens, "
        f"{training.max_steps} steps"
    )
