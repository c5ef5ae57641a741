"""Pre-training on a token folder: the checks before it, its plan and its validation."""

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from gpt_dist.checkpoint.opened import OpenedModel
from gpt_dist.checkpoint.save import DataSource
from gpt_dist.config import Config, ResolvedConfig
from gpt_dist.config.resolution import check_layout, resolve
from gpt_dist.data.batches import TokenBatch, micro_batches, prefetch
from gpt_dist.data.tokenizers.folder import tokenizer_files
from gpt_dist.data.tokens.folder import TokenFolder, files_of
from gpt_dist.data.tokens.windows import ShuffledWindows, Windows, split_labels
from gpt_dist.errors import ConfigError, DataError
from gpt_dist.files.shared import SharedFiles
from gpt_dist.model import IGNORED_LABEL
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import Topology, device_type
from gpt_dist.train.directory import check_writable
from gpt_dist.train.engine import Engine
from gpt_dist.train.interruption import Interruption
from gpt_dist.train.loop import Plan, run
from gpt_dist.train.metrics import Row
from gpt_dist.train.objective import LanguageModelObjective
from gpt_dist.train.start import open_source, share_source

VERIFIED_BYTES = 2**30
"""Token folders up to this size are hashed before training, which takes a second or two."""


@dataclass(frozen=True)
class Inputs:
    """Opened and checked inputs of a run; the source is None if its weights are not needed."""

    config: ResolvedConfig
    folder: TokenFolder
    samples: ShuffledWindows
    data: DataSource
    source: OpenedModel | None


def check(config: Config, launch: Launch) -> Inputs:
    """Open the data and complete the configuration; refuse whatever would fail later.

    Needs no process group. Raises ConfigError, DataError, ModelError or CheckpointError.
    """
    check_layout(config, launch.world_size, device_type())
    if config.task or config.run.seeds:
        key = "task" if config.task else "run.seeds"
        raise ConfigError(f"{key}: of fine-tuning; use launch/finetune.py, or leave it out")
    if config.data.path is None:
        raise ConfigError(
            "data.path: not given; make a token folder by `python -m data_prep build`"
        )
    folder, source = TokenFolder.open(Path(config.data.path)), None
    if config.model.source_path:
        config, model, source = open_source(config, [config])
        if tokenizer_files(folder.path) != tokenizer_files(model.tokenizer_folder):
            raise ConfigError(
                f"model.source: the tokens of data.path {folder.path} are of another tokenizer "
                f"than {config.model.source}; prepare them by `python -m data_prep build … "
                f"--tokenizer {model.tokenizer_folder}`"
            )
    windows = Windows(folder.split("train"), config.model.sequence_length)
    samples = ShuffledWindows(windows, config.run.seed)
    resolved = resolve(config, launch.world_size, folder.vocab_size, len(windows))
    check_writable(Path(config.run.directory))
    tokenizer = folder.tokenizer_path
    data = DataSource(folder.digest, tokenizer.name, tokenizer.read_bytes())
    return Inputs(resolved, folder, samples, data, source)


def pretrain(inputs: Inputs, topology: Topology) -> None:
    """Train a model on a token folder, from scratch, from model.source or from a checkpoint."""
    _check_hashes(inputs.folder, topology)
    config, source = share_source(inputs.config, inputs.source, topology)
    held_out = Windows(inputs.folder.split("validation"), config.model.sequence_length)
    plan = Plan(
        objective=LanguageModelObjective,
        samples=inputs.samples,
        validate=partial(validate, windows=held_out, config=config, topology=topology),
        data=inputs.data,
        source=source,
    )
    interruption = Interruption(topology.launch)
    run(config, plan, topology, interruption)
    interruption.close()


def validate(engine: Engine, windows: Windows, config: ResolvedConfig, topology: Topology) -> Row:
    """Return loss and perplexity of the first windows of a split, the same for every layout.

    The loss is in nats per token. Every process must call this; without windows the row is empty.
    """
    count = min(len(windows), config.validation.max_samples or len(windows))
    if count == 0:
        return {}

    def read() -> Iterator[TokenBatch[NDArray[np.int64]]]:
        share = topology.data_parallel_size, topology.data_parallel_rank
        for numbers in micro_batches(0, count, config.training.micro_batch_size, *share):
            batch = split_labels(windows.read(numbers % count))
            batch.labels[numbers >= count] = IGNORED_LABEL
            yield batch

    total = torch.zeros(2, dtype=torch.float64, device=topology.device)
    with closing(prefetch(read())) as batches:
        for batch in batches:
            total[0] += engine.evaluate(batch).double().sum()
            total[1] += int((batch.labels != IGNORED_LABEL).sum())
    dist.all_reduce(total, group=topology.data_parallel_group)
    loss = float(total[0] / total[1])
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return {"validation_loss": loss, "validation_perplexity": perplexity}


def _check_hashes(folder: TokenFolder, topology: Topology) -> None:
    """Hash a folder that is not too large, each process a part; DataError, on all, for damage."""

    def refuse(path: Path, problem: str) -> DataError:
        return DataError(
            f"{path}: {problem}; copy the token folder again, or prepare it with "
            "`python -m data_prep build`"
        )

    entries = dict(files_of(folder.manifest))
    if sum(entry.bytes for entry in entries.values()) <= VERIFIED_BYTES:
        SharedFiles(folder.path, entries, refuse).share(topology, hold=False)
