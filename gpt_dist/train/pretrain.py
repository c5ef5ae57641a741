"""Pre-training on a token folder: the checks before it, its plan and its validation."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from gpt_dist.checkpoint.folder import warner
from gpt_dist.checkpoint.opened import OpenedModel
from gpt_dist.checkpoint.save import DataSource
from gpt_dist.config import IGNORED_LABEL, Config, DataConfig, ResolvedConfig
from gpt_dist.config.resolution import check_layout, resolve
from gpt_dist.data.batches import TokenBatch, micro_batches, prefetch
from gpt_dist.data.tokenizers.folder import tokenizer_files
from gpt_dist.data.tokens.folder import TokenFolder, files_of, refuse, state_checksums
from gpt_dist.data.tokens.mixture import Mixture, Phase, plan_phases
from gpt_dist.data.tokens.windows import ShuffledWindows, Windows, split_labels
from gpt_dist.errors import ConfigError, DataError
from gpt_dist.files.shared import SharedFiles
from gpt_dist.model import family_of
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import Topology, device_type, gather
from gpt_dist.train.directory import check_writable
from gpt_dist.train.engine import Engine
from gpt_dist.train.interruption import Interruption
from gpt_dist.train.loop import Plan, run
from gpt_dist.train.metrics import Row
from gpt_dist.train.objective import LanguageModelObjective
from gpt_dist.train.start import open_source, share_source

HASHED_GIB = 32
"""GiB that a process hashes at most before training, which takes it about 40 seconds.

The ids of larger folders are compared with their checksums alone, when they are read.
"""


@dataclass(frozen=True)
class Inputs:
    """Opened and checked inputs of a run; the source is None if its weights are not needed."""

    config: ResolvedConfig
    folders: Sequence[TokenFolder]
    """The folders of data.path, all of one tokenizer."""
    draw: Callable[[Sequence[Phase]], Mixture]
    """Returns the training samples for weights of the folders."""
    data: DataSource
    source: OpenedModel | None


def check(config: Config, launch: Launch) -> Inputs:
    """Open the data and complete the configuration; refuse whatever would fail later.

    Needs no process group. Raises ConfigError, DataError, ModelError or CheckpointError.
    """
    check_layout(config, launch.world_size, device_type())
    if not config.data.folders:
        raise ConfigError(
            "data.path: not given; make a token folder by `python -m data_prep build`"
        )
    folders, source = _open_folders(config.data), None
    digests, (folder, *_) = list(folders), folders.values()
    if config.model.source_path:
        config, model, source = open_source(config, [config])
        if tokenizer_files(folder.path) != tokenizer_files(model.tokenizer_folder):
            raise ConfigError(
                f"model.source: the tokens of data.path {folder.path} are of another tokenizer "
                f"than {config.model.source}; prepare them by `python -m data_prep build … "
                f"--tokenizer {quote(str(model.tokenizer_folder))}`"
            )
    samples = {digest: _shuffle(one, config) for digest, one in folders.items()}
    size = sum(map(len, samples.values()))
    resolved = resolve(config, launch.world_size, folder.vocab_size, size)
    family_of(resolved.model)
    check_writable(Path(config.run.directory))
    joint = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    tokenizer = folder.tokenizer_path
    data = DataSource(
        digest=joint if len(digests) > 1 else digests[0],
        tokenizer_name=tokenizer.name,
        tokenizer=tokenizer.read_bytes(),
        phases=plan_phases(config.data, digests, config.training.global_batch_size),
        folders={one.manifest_digest: digest for digest, one in folders.items()}
        | {digest: digest for digest in digests},
    )
    return Inputs(resolved, list(folders.values()), partial(Mixture, samples), data, source)


def _open_folders(data: DataConfig) -> dict[str, TokenFolder]:
    """Open data.path by digest; ConfigError for different tokenizers or the same tokens twice."""
    folders: dict[str, TokenFolder] = {}
    for one in data.folders:
        folder = TokenFolder(Path(one.path))
        first = next(iter(folders.values()), folder)
        if folder.manifest.tokenizer.sha256 != first.manifest.tokenizer.sha256:
            raise ConfigError(
                f"data.path: {folder.path} has another tokenizer than {first.path}; prepare it by "
                f"`python -m data_prep build … --tokenizer {quote(str(first.path))}`"
            )
        if (other := folders.setdefault(folder.digest, folder)) is not folder:
            raise ConfigError(
                f"data.path: {other.path} and {folder.path} hold the same tokens; leave one out, "
                "and add its weight to the other's"
            )
    return folders


def _shuffle(folder: TokenFolder, config: Config) -> ShuffledWindows:
    windows = Windows(folder.split("train"), config.model.sequence_length)
    try:
        return ShuffledWindows(windows, config.run.seed)
    except DataError as error:
        raise DataError(f"{folder.path}: {error}") from None


def pretrain(inputs: Inputs, topology: Topology) -> None:
    """Train a model on a token folder, from scratch, from model.source or from a checkpoint."""
    for folder in inputs.folders:
        _check_hashes(folder, topology)
    config, source = share_source(inputs.config, inputs.source, topology)
    held_out = {
        str(folder.path): Windows(folder.split("validation"), config.model.sequence_length)
        for folder in inputs.folders
    }
    plan = Plan(
        objective=LanguageModelObjective,
        draw=inputs.draw,
        validate=partial(validate, held_out=held_out, config=config, topology=topology),
        data=inputs.data,
        directory=Path(config.run.directory),
        source=source,
    )
    run(config, plan, topology, Interruption(topology.launch, topology.progress))


def validate(
    engine: Engine, held_out: Mapping[str, Windows], config: ResolvedConfig, topology: Topology
) -> Row:
    """Return loss and perplexity of the held-out windows of all folders, the same for every layout.

    The loss is in nats per token; where there are several folders, that of each is added. Every
    process must call this; without windows the row is empty.
    """
    totals = {
        path: total
        for path, windows in held_out.items()
        if (total := _total_loss(engine, windows, config, topology))[1]
    }
    if not totals:
        return {}
    loss, tokens = map(sum, zip(*totals.values(), strict=True))
    mean = loss / tokens
    perplexity = math.exp(mean) if mean < 700 else math.inf
    row: Row = {"validation_loss": mean, "validation_perplexity": perplexity}
    if len(held_out) > 1:
        row |= {f"validation_loss/{path}": loss / tokens for path, (loss, tokens) in totals.items()}
    return row


def _total_loss(
    engine: Engine, windows: Windows, config: ResolvedConfig, topology: Topology
) -> tuple[float, float]:
    """Return the sum of the losses over the first windows, and their number of tokens."""
    count = min(len(windows), config.validation.max_samples or len(windows))
    if count == 0:
        return 0, 0

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
    return float(total[0]), float(total[1])


def _check_hashes(folder: TokenFolder, topology: Topology) -> None:
    """Hash a folder, and have later reads compared with it; DataError, on all, for damage.

    Of a large folder only the files of checksums are hashed, with which its ids are compared.
    """
    entries, checksums = dict(files_of(folder.manifest)), folder.checksums
    gib = sum(entry.bytes for entry in entries.values()) // 2**30
    is_large = gib > HASHED_GIB * topology.launch.world_size
    if is_large and (missing := state_checksums(folder)):
        warner(topology)(
            f"WARNING: {folder.path} has {gib} GiB, more than {HASHED_GIB} a process, and no "
            f"checksums of {missing}, which an earlier version wrote: damage stays unnoticed; use "
            "`python -m data_prep verify`, or prepare the folder again"
        )
    if is_large:
        entries = {name: one for name, one in entries.items() if not name.endswith(".bin")}
    elif gib > 3:
        warner(topology)(f"checking the SHA-256 of {gib} GiB in {folder.path}")
    SharedFiles(folder.path, entries, refuse, checksums.take).share(topology, hold=False)
    for found in gather(checksums.taken):
        checksums.taken |= found
