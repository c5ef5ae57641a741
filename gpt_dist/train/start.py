"""The start of a run: with drawn weights, those of another model, or those of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpt_dist.checkpoint.fingerprint import (
    LAYERS,
    Fingerprints,
    Place,
    check_equal,
    fingerprint,
)
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.checkpoint.opened import OpenedModel, describe_checkpoint
from gpt_dist.checkpoint.state import restore_rng
from gpt_dist.config import Config
from gpt_dist.errors import CheckpointError, ModelError
from gpt_dist.model import GPT, GrownVocabulary, agrees, load_full_tensors, probe_loss
from gpt_dist.topology import Topology, together
from gpt_dist.train.engine import Engine

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Source:
    """Another model whose weights a run starts from."""

    model: OpenedModel
    unused_tokens: Sequence[int] = ()
    """Ids that no text has held so far: their embeddings are drawn anew."""


def start_engine(
    config: Config,
    topology: Topology,
    objective: Callable[[GPT], nn.Module],
    source: Source | None,
    checkpoint: Checkpoint | None,
) -> Engine:
    """Build the engine of a run that begins, from `source` if given, or that goes on.

    What was held of the files of `source` and `checkpoint` is given up. Raises CheckpointError or
    ModelError, on every rank, where the loaded weights are not the stored ones.
    """
    if config.model.source_path and not (source or checkpoint):
        raise CheckpointError(
            f"{config.run.directory}: its checkpoints are gone since the run was checked; "
            "start again"
        )
    # Equal on all processes: initial weights are drawn whole and sliced.
    torch.manual_seed(config.run.seed)
    model = GPT(
        config.model, topology.tensor_parallel_group, config.training.activation_checkpointing
    )
    loaded = _load_source(model, source, config, topology) if source and not checkpoint else {}
    engine = Engine(objective(model), config, topology)
    # Dropout differs between data-parallel processes and agrees between tensor-parallel peers.
    torch.manual_seed(config.run.seed + 1 + topology.data_parallel_rank)
    if checkpoint:
        engine.state().load(checkpoint)
        restore_rng(checkpoint, topology)
        _check_loss(describe_checkpoint(checkpoint))
        checkpoint.files.release()
    if source:
        source.model.files.release()
    if loaded:
        live = engine.state().live_fingerprints()

        def refuse(name: str) -> ModelError:
            return ModelError(
                f"{config.model.source}: {name} has another fingerprint once it is loaded; please "
                "report this"
            )

        together(lambda: check_equal(live, loaded, refuse))
    return engine


class _Fingerprinted(Mapping[str, Tensor]):
    """Full tensors, and the fingerprints of those that were read, rounded to a precision."""

    def __init__(self, tensors: Mapping[str, Tensor], precision: torch.dtype) -> None:
        self.found: Fingerprints = {}
        self._tensors = tensors
        self._precision = precision

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        rounded = tensor.to(self._precision).float()
        (self.found[f"{LAYERS}/model.{name}"],) = fingerprint([rounded], Place())
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _load_source(model: GPT, source: Source, config: Config, topology: Topology) -> Fingerprints:
    """Copy another model's weights; return their fingerprints in the run's precision."""
    opened = source.model
    opened.files.share(topology)
    _check_loss(opened)
    grown = GrownVocabulary(
        opened.tensors, opened.config, config.model, source.unused_tokens, config.run.seed
    )
    tensors = _Fingerprinted(grown, _PRECISIONS[config.training.precision])
    load_full_tensors(model, tensors, config.model.transferred_layers)
    return tensors.found


def _check_loss(opened: OpenedModel) -> None:
    """Refuse stored weights that do not give the loss that is stated of them, if one is."""

    def check(found: float, stated: float) -> None:
        if not agrees(found, stated, "fp32"):
            raise ModelError(
                f"{opened.tokenizer_folder}: its weights gave a loss of {stated:.6f} on fixed "
                f"tokens, and give {found:.6f} now; take it from a backup"
            )

    if opened.probe_loss is not None:
        found, stated = probe_loss(opened.tensors.__getitem__, opened.config), opened.probe_loss
        together(lambda: check(found, stated))
