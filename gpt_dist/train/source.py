"""The model that a run starts from, or has started from: model.source."""

from collections.abc import Sequence
from pathlib import Path

from gpt_dist.checkpoint.opened import OpenedModel, describe_checkpoint, inspect_model, share_model
from gpt_dist.checkpoint.resume import find_begun
from gpt_dist.config import AnyConfig, Config
from gpt_dist.config.resolution import adopt_source
from gpt_dist.errors import CheckpointError, DataError, ModelError
from gpt_dist.topology import Topology


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


def _with_source(config: AnyConfig, path: Path) -> AnyConfig:
    model = config.model.model_copy(update={"source": str(path)})
    return config.model_copy(update={"model": model})
