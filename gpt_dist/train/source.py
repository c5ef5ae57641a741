"""The model that model.source names: what a run starts from, or has started from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.checkpoint.opened import (
    OpenedModel,
    describe_checkpoint,
    inspect_model,
    share_model,
)
from gpt_dist.checkpoint.resume import find_begun
from gpt_dist.config import AnyConfig, Config
from gpt_dist.errors import CheckpointError, DataError, ModelError
from gpt_dist.topology import Topology
from gpt_dist.train.start import Source


@dataclass(frozen=True)
class OpenedSource:
    """The model that gives runs their sizes, their tokenizer and, where one begins, its weights."""

    config: Config
    """With model.source as the exact path: the newest checkpoint of a run is another tomorrow."""
    model: OpenedModel
    weights: Source | None
    """None where every run goes on from a checkpoint: the source may be gone by then."""


def open_source(config: Config, runs: Sequence[Config]) -> OpenedSource:
    """Open model.source, or what runs that have begun recorded of it; its weights are not hashed.

    `runs` are those of `config`, one a seed. Raises ModelError, CheckpointError or DataError.
    """
    given = config.model.source_path
    assert given is not None, "there is a source"
    begun = [find_begun(run) for run in runs]
    checkpoint = next(filter(None, begun), None)
    recorded = _recorded(checkpoint) if checkpoint else None
    # A run that began from RUN's newest checkpoint goes on from that, though RUN has a newer one.
    same = recorded is not None and recorded.is_relative_to(given)
    path = recorded if recorded and same else given
    if checkpoint and all(begun):
        return OpenedSource(_with_source(config, path), describe_checkpoint(checkpoint), None)
    if same and not path.exists():
        raise ModelError(
            f"model.source: {path}, from which seeds of this run began, is gone, and others have "
            "not begun; give another run.directory, and a source that stays (checkpoint.keep_every)"
        )
    try:
        opened = inspect_model(path)
        unused = _new_tokens(opened) if config.task else ()
    except (ModelError, CheckpointError, DataError) as error:
        raise type(error)(f"model.source: {error}") from None
    exact = _with_source(config, opened.tokenizer_folder)
    return OpenedSource(exact, opened, Source(opened, unused))


def share_source(
    config: AnyConfig, source: Source | None, topology: Topology
) -> tuple[AnyConfig, Source | None]:
    """Have all processes hash and hold the source of runs together; collective.

    The configuration gets its exact path, which is another where the newest checkpoint of a run
    proves to be damaged. Raises ModelError or CheckpointError, on every process.
    """
    if source is None:
        return config, None
    try:
        shared = share_model(source.model, topology)
    except (ModelError, CheckpointError) as error:
        raise type(error)(f"model.source: {error}") from None
    return _with_source(config, shared.tokenizer_folder), replace(source, model=shared)


def _recorded(checkpoint: Checkpoint) -> Path | None:
    return describe_checkpoint(checkpoint).config.source_path


def _with_source(config: AnyConfig, path: Path) -> AnyConfig:
    model = config.model.model_copy(update={"source": str(path)})
    return config.model_copy(update={"model": model})


def _new_tokens(source: OpenedModel) -> tuple[int, ...]:
    """Return the tokens whose embeddings are new: the paper's, unless it was fine-tuned."""
    tokenizer = source.tokenizer
    return () if source.fine_tuned else (tokenizer.start, tokenizer.delimiter, tokenizer.extract)
