"""Pre-training on a token folder: the checks before it, and its plan."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpt_dist.checkpoint.opened import OpenedModel
from gpt_dist.checkpoint.save import DataSource
from gpt_dist.config import Config, ResolvedConfig
from gpt_dist.config.resolution import check_layout, resolve
from gpt_dist.data.tokenizers.folder import tokenizer_files
from gpt_dist.data.tokens.folder import TokenFolder, files_of
from gpt_dist.data.tokens.windows import ShuffledWindows, Windows
from gpt_dist.errors import ConfigError, DataError
from gpt_dist.files.shared import SharedFiles
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import Topology, device_type
from gpt_dist.train.directory import check_writable
from gpt_dist.train.interruption import Interruption
from gpt_dist.train.objective import LanguageModelObjective
from gpt_dist.train.run import Plan, run
from gpt_dist.train.source import open_source, share_source
from gpt_dist.train.validation import validate

VERIFIED_BYTES = 2**30
"""Token folders up to this size are hashed before training, which takes a second or two."""


@dataclass(frozen=True)
class Inputs:
    """Opened and checked inputs of a run; the source is None if its weights are not needed."""

    config: ResolvedConfig
    folder: TokenFolder
    samples: ShuffledWindows
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
    return Inputs(resolved, folder, samples, source)


def pretrain(inputs: Inputs, topology: Topology) -> None:
    """Train a model on a token folder, as a configuration that `check` completed says.

    It starts from scratch or from model.source, or goes on from the checkpoint that
    training.resume leads to.
    """
    folder = inputs.folder
    _check_hashes(folder, topology)
    config, source = share_source(inputs.config, inputs.source, topology)
    held_out = Windows(folder.split("validation"), config.model.sequence_length)
    plan = Plan(
        objective=LanguageModelObjective,
        samples=inputs.samples,
        validate=partial(validate, windows=held_out, config=config, topology=topology),
        data=data_source(folder),
        source=source,
    )
    interruption = Interruption(topology.launch)
    run(config, plan, topology, interruption)
    interruption.close()


def data_source(folder: TokenFolder) -> DataSource:
    """Return the record that checkpoints keep of a token folder."""
    path = folder.tokenizer_path
    return DataSource(folder.digest, path.name, path.read_bytes())


def _check_hashes(folder: TokenFolder, topology: Topology) -> None:
    """Hash a folder that is not too large, each process a part; DataError, on all, for damage."""

    def refuse(path: Path, problem: str) -> DataError:
        return DataError(
            f"{path}: {problem}; copy the token folder again, or prepare it with "
            "`python -m data_prep build`"
        )

    entries = dict(files_of(folder.manifest))
    if sum(entry.bytes for entry in entries.values()) <= VERIFIED_BYTES:
        SharedFiles(folder.path, entries, refuse).verify(topology)
