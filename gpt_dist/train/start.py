"""Where the weights of a run come from: drawn, taken from another model, or a checkpoint's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.checkpoint.opened import OpenedModel, check_same
from gpt_dist.checkpoint.state import restore_rng
from gpt_dist.config import ResolvedConfig
from gpt_dist.errors import CheckpointError, ModelError
from gpt_dist.model import (
    GPT,
    GrownVocabulary,
    agrees,
    build_model,
    load_full_tensors,
    probe_loss,
)
from gpt_dist.topology import Topology, together
from gpt_dist.train.engine import Engine
from gpt_dist.train.objective import Objective


@dataclass(frozen=True)
class Source:
    """Another model whose weights a run starts from."""

    model: OpenedModel
    unused_tokens: Sequence[int] = ()
    """Ids that no text has held so far: their embeddings are drawn anew."""


def start_engine(
    config: ResolvedConfig,
    topology: Topology,
    objective: Callable[[GPT], Objective[Any]],
    source: Source | None,
    checkpoint: Checkpoint | None,
) -> Engine:
    """The engine of a run that begins, from `source` if given, or goes on from `checkpoint`.

    Raises CheckpointError or ModelError, on every rank, where the loaded model's loss on fixed
    tokens is not what the stored weights give.
    """
    if config.model.source_path and not (source or checkpoint):
        raise CheckpointError(
            f"{config.run.directory}: its checkpoints are gone since the run was checked; "
            "start again"
        )
    # Equal on all processes: initial weights are drawn whole and sliced.
    torch.manual_seed(config.run.seed)
    model = build_model(
        config.model, topology.tensor_parallel_group, config.training.activation_checkpointing
    )
    source = None if checkpoint else source
    if source:
        opened = source.model
        check_same(opened)
        tensors = GrownVocabulary(
            opened.tensors, opened.config, config.model, source.unused_tokens, config.run.seed
        )
        load_full_tensors(model, tensors, config.model.transferred_layers)
    engine = Engine(objective(model), config, topology)
    # Dropout differs between data-parallel processes and agrees between tensor-parallel peers.
    torch.manual_seed(config.run.seed + 1 + topology.data_parallel_rank)
    if checkpoint:
        engine.state().load(checkpoint)
        restore_rng(checkpoint, topology)
        _prove_checkpoint(engine, config, checkpoint)
    elif source and config.model.transferred_layers is None:
        _prove_source(engine, config, topology, opened, tensors)
    return engine


def _prove_checkpoint(engine: Engine, config: ResolvedConfig, checkpoint: Checkpoint) -> None:
    found, stored = engine.probe_loss(), checkpoint.manifest.probe_loss
    if not agrees(found, stored, config.training.precision):
        raise CheckpointError(
            f"{checkpoint.path}: its weights gave a loss of {stored:.6f} on fixed tokens, and give "
            f"{found:.6f} here; use the versions that wrote it: {checkpoint.manifest.versions}"
        )


def _prove_source(
    engine: Engine,
    config: ResolvedConfig,
    topology: Topology,
    source: OpenedModel,
    tensors: GrownVocabulary,
) -> None:
    found = engine.probe_loss()

    def compare() -> None:
        if not topology.is_main:
            return
        stated, now = source.probe_loss, probe_loss(source.tensors.__getitem__, source.config)
        if stated is not None and not agrees(now, stated, "fp32"):
            raise ModelError(
                f"{config.model.source}: its weights gave a loss of {stated:.6f} on fixed tokens, "
                f"and give {now:.6f} now; take it from a backup"
            )
        expected = probe_loss(tensors.__getitem__, config.model)
        if not agrees(found, expected, config.training.precision):
            raise ModelError(
                f"{config.model.source}: its weights give a loss of {expected:.6f} on fixed "
                f"tokens, but {found:.6f} once loaded; please report this"
            )

    together(compare)
