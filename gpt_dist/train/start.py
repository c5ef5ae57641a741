"""The start of a run: with drawn weights, those of model.source, or those of a checkpoint."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_dist.checkpoint.fingerprint import LAYERS, Fingerprints, Place, check_equal, fingerprint
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.checkpoint.opened import OpenedModel, describe_checkpoint, inspect_model, share_model
from gpt_dist.checkpoint.resume import find_begun
from gpt_dist.checkpoint.state import restore_rng
from gpt_dist.config import AnyConfig, Config, ResolvedConfig
from gpt_dist.config.resolution import adopt_source
from gpt_dist.errors import CheckpointError, DataError, ModelError
from gpt_dist.model import GPT, GrownVocabulary, agrees, load_full_tensors, probe_loss
from gpt_dist.topology import Topology, together
from gpt_dist.train.engine import PRECISIONS, Engine
from gpt_dist.train.objective import Objective


def open_source(
    config: Config, runs: Sequence[Config]
) -> tuple[Config, OpenedModel, OpenedModel | None]:
    """Open model.source, or the model of runs that have begun with it; its weights are not hashed.

    `runs` are those of `config`, one a seed. Returns the configuration with the source's sizes and
    exact path (the newest checkpoint of a run is another tomorrow); the model; and again the model
    if its weights are needed, None where every run resumes from a checkpoint. Raises ModelError,
    CheckpointError or DataError for a bad source, ConfigError where the configuration contradicts
    it.
    """
    given = config.model.source_path
    assert given is not None, "there is a source"
    begun = [find_begun(run) for run in runs]
    checkpoint = next(filter(None, begun), None)
    saved = describe_checkpoint(checkpoint) if checkpoint else None
    # A run that began from RUN's newest checkpoint goes on from that, though RUN has a newer one.
    recorded = saved.config.source_path if saved else None
    if recorded and not recorded.is_relative_to(given):
        recorded = None
    path = recorded or given
    if saved and all(begun):
        return adopt_source(_with_source(config, path), saved.config), saved, None
    if recorded and not recorded.exists():
        raise ModelError(
            f"model.source: {path}, from which seeds of this run began, is gone, and others have "
            "not begun; give another run.directory, and a source that stays (checkpoint.keep_every)"
        )
    try:
        opened = inspect_model(path)
        if config.task:
            _ = opened.tokenizer  # which may be absent or unsuitable
    except (ModelError, CheckpointError, DataError) as error:
        raise type(error)(f"model.source: {error}") from None
    config = _with_source(config, opened.tokenizer_folder)
    return adopt_source(config, opened.config), opened, opened


def share_source(
    config: AnyConfig, source: OpenedModel | None, topology: Topology
) -> tuple[AnyConfig, OpenedModel | None]:
    """Have all processes hash and hold the source of runs together; collective.

    Also returns the configuration with the source's exact path, which is another where the newest
    checkpoint of a run is damaged. Raises ModelError or CheckpointError, on every process.
    """
    if source is None:
        return config, None
    try:
        source = share_model(source, topology)
    except (ModelError, CheckpointError) as error:
        raise type(error)(f"model.source: {error}") from None
    return _with_source(config, source.tokenizer_folder), source


def start_engine(
    config: ResolvedConfig,
    topology: Topology,
    objective: Callable[[GPT], Objective[Any]],
    source: OpenedModel | None,
    checkpoint: Checkpoint | None,
) -> Engine:
    """Build the engine of a run that begins, from `source` if given, or that resumes.

    The held files of `source` and `checkpoint` are released. Raises CheckpointError or ModelError,
    on every rank, where the loaded weights differ from the stored ones.
    """
    if config.model.source_path and not (source or checkpoint):
        raise CheckpointError(
            f"{config.run.directory}: its checkpoints are gone since the run was checked; "
            "start again"
        )
    # Equal on all processes: initial weights are drawn whole and sliced.
    torch.manual_seed(config.run.seed)
    model = GPT(
        config.model,
        topology.tensor_parallel_group,
        config.training.activation_checkpointing,
        config.parallel.sequence_parallel,
    )
    loaded = _load_source(model, source, config, topology) if source and not checkpoint else {}
    engine = Engine(objective(model), config, topology)
    _seed_dropout(config, topology)
    if checkpoint:
        load_checkpoint(engine, checkpoint, config, topology)
    if source:
        source.files.release()
    if loaded:
        live = engine.state().live_fingerprints()

        def refuse(name: str) -> ModelError:
            return ModelError(
                f"{config.model.source}: {name} has another fingerprint once it is loaded; please "
                "report this"
            )

        together(lambda: check_equal(live, loaded, refuse))
    return engine


def load_checkpoint(
    engine: Engine, checkpoint: Checkpoint, config: ResolvedConfig, topology: Topology
) -> None:
    """Put an engine in the state of a checkpoint, whose files are released; collective.

    Raises CheckpointError or ModelError, on every rank, where what is loaded is not what was saved.
    """
    engine.state().load(checkpoint)
    _seed_dropout(config, topology)
    restore_rng(checkpoint, topology)
    _check_loss(describe_checkpoint(checkpoint))
    checkpoint.files.release()


def _seed_dropout(config: ResolvedConfig, topology: Topology) -> None:
    """Have dropout differ between data-parallel processes, and agree between their peers."""
    torch.manual_seed(config.run.seed + 1 + topology.data_parallel_rank)


class _Fingerprinted(GrownVocabulary):
    """Full tensors, and the fingerprints of those that were read, rounded to a precision."""

    def __init__(self, precision: torch.dtype, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.found: Fingerprints = {}
        self._precision = precision

    def __getitem__(self, name: str) -> Tensor:
        tensor = super().__getitem__(name)
        rounded = tensor.to(self._precision).float()
        (self.found[f"{LAYERS}/model.{name}"],) = fingerprint([rounded], Place())
        return tensor


def _load_source(
    model: GPT, source: OpenedModel, config: ResolvedConfig, topology: Topology
) -> Fingerprints:
    """Copy another model's weights; return their fingerprints, rounded to the run's precision."""
    source.files.share(topology)
    _check_loss(source)
    unused: tuple[int, ...] = ()
    if config.task and not source.fine_tuned:
        # No text has held these tokens yet: their embeddings are drawn anew.
        tokenizer = together(lambda: source.tokenizer)
        unused = tokenizer.start, tokenizer.delimiter, tokenizer.extract
    grown = source.tensors, source.config, config.model, unused, config.run.seed
    tensors = _Fingerprinted(PRECISIONS[config.training.precision], *grown)
    load_full_tensors(model, tensors, config.model.transferred_layers)
    return tensors.found


def _check_loss(opened: OpenedModel) -> None:
    """Refuse stored weights whose loss on fixed tokens is not the stated one, if there is one."""
    stated = opened.probe_loss
    if stated is None:
        return
    found = probe_loss(opened.tensors.__getitem__, opened.config)

    def check() -> None:
        if not agrees(found, stated):
            raise ModelError(
                f"{opened.tokenizer_folder}: its weights gave a loss of {stated:.6f} on fixed "
                f"tokens, and give {found:.6f} now; take it from a backup"
            )

    together(check)


def _with_source(config: AnyConfig, path: Path) -> AnyConfig:
    model = config.model.model_copy(update={"source": str(path)})
    return config.model_copy(update={"model": model})
