"""Assembles a pre-training run: tokens, model, engine, loop."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt_dist.checkpoint.resume import find_checkpoint
from gpt_dist.checkpoint.save import DataSource, Saver
from gpt_dist.config import Config, adopt_source, check_layout, resolve
from gpt_dist.data.tokenizer_files import tokenizer_files
from gpt_dist.data.tokens import TokenFolder, files_of, find_damage
from gpt_dist.data.windows import ShuffledWindows, Windows
from gpt_dist.errors import ConfigError, DataError
from gpt_dist.inference.model import OpenedModel, open_model
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import Topology, device_type
from gpt_dist.train.directory import check_writable
from gpt_dist.train.interruption import Interruption
from gpt_dist.train.loop import Trainer
from gpt_dist.train.metrics import Reporter
from gpt_dist.train.objective import LanguageModelObjective
from gpt_dist.train.start import start_engine

VERIFIED_BYTES = 2**30
"""Token folders up to this size are hashed before training, which takes a second or two."""


@dataclass(frozen=True)
class Inputs:
    """What a run starts from, opened and checked."""

    config: Config
    folder: TokenFolder
    source: OpenedModel | None


def check(config: Config, launch: Launch) -> Inputs:
    """Open the data and complete the configuration; refuse whatever would fail later.

    Needs no process group. Raises ConfigError or DataError.
    """
    check_layout(config, launch.world_size, device_type())
    if config.data.path is None:
        raise ConfigError(
            "data.path: not given; make a token folder by `python -m data_prep build`"
        )
    folder = TokenFolder.open(Path(config.data.path))
    source = open_model(config.model.source_path) if config.model.source_path else None
    if source:
        config = adopt_source(config, source.config)
        _check_tokenizer(config, folder, source)
    windows = Windows(folder.split("train"), config.model.sequence_length)
    ShuffledWindows(windows, config.run.seed)
    config = resolve(config, launch.world_size, folder.vocab_size, len(windows))
    check_writable(Path(config.run.directory))
    if launch.rank == 0:
        _check_hashes(folder)
    return Inputs(config, folder, source)


def pretrain(inputs: Inputs, topology: Topology) -> None:
    """Train a model on a token folder, as a configuration that `check` completed says.

    It starts from scratch or from model.source, or goes on from the checkpoint that
    training.resume leads to.
    """
    config, folder = inputs.config, inputs.folder
    directory = Path(config.run.directory)
    if config.training.deterministic:
        # cuBLAS reads it when it starts; without it, torch refuses its matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.training.deterministic)
    checkpoint = find_checkpoint(config, topology, folder.digest, _warn)
    done = checkpoint.manifest.step if checkpoint else 0
    engine = start_engine(config, topology, LanguageModelObjective, inputs.source, checkpoint)
    if topology.is_main:
        config.save(directory / "config.yaml")
    assert config.training.max_steps is not None
    reporting = Reporter(directory, config.training.max_steps, done) if topology.is_main else None
    with reporting or nullcontext() as reporter:
        if reporter:
            reporter.say(_describe(config, topology, engine.num_parameters))
            if checkpoint or inputs.source:
                reporter.say(
                    f"resumed from {checkpoint.path}"
                    if checkpoint
                    else f"starting from the weights of {config.model.source}"
                )
        length = config.model.sequence_length
        trainer = Trainer(
            engine,
            ShuffledWindows(Windows(folder.split("train"), length), config.run.seed),
            Windows(folder.split("validation"), length),
            config,
            topology,
            Saver(engine.state(), config, topology, data_source(folder), engine.probe_loss),
            Interruption(),
            reporter,
        )
        trainer.run(done)
        trainer.saver.close()
        trainer.interruption.close()
        if reporter:
            reporter.summary()


def data_source(folder: TokenFolder) -> DataSource:
    """What checkpoints record of a token folder."""
    path = folder.tokenizer_path
    return DataSource(folder.digest, path.name, path.read_bytes())


def _check_tokenizer(config: Config, folder: TokenFolder, source: OpenedModel) -> None:
    if tokenizer_files(folder.path) != tokenizer_files(source.tokenizer_folder):
        raise ConfigError(
            f"model.source: the tokens of data.path {folder.path} are of another tokenizer than "
            f"{config.model.source}; prepare them by `python -m data_prep build … --tokenizer "
            f"{source.tokenizer_folder}`"
        )


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
