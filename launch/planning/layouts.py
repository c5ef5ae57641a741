"""Legal layouts of a configuration on a number of processes."""

from collections.abc import Iterator
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Any

from gpt_dist.config import Config, ResolvedConfig
from gpt_dist.config.resolution import check_combinations, check_layout, resolve
from gpt_dist.data.tokens.folder import TokenFolder
from gpt_dist.data.tokens.windows import Windows
from gpt_dist.errors import ConfigError, DataError
from gpt_dist.model import family_of

OPEN_KEYS = (
    "parallel.tensor_parallel_size",
    "parallel.zero_stage",
    "training.micro_batch_size",
    "training.activation_checkpointing",
)
"""Keys that a plan varies where the configuration leaves them out."""

LARGEST_MICRO_BATCH = 64


def check_plannable(config: Config) -> None:
    """Refuse a configuration that a trace on the CPU does not stand for."""
    if config.task:
        raise ConfigError("task: a plan is of pre-training; leave the task out")
    if config.parallel.offload_optimizer:
        raise ConfigError("parallel.offload_optimizer: a plan does not cover it; leave it out")
    if config.training.precision == "fp16":
        raise ConfigError("training.precision: fp16 is not planned; bf16 needs as much memory")


def describe_data(config: Config) -> tuple[int, int | None, str]:
    """Return the vocabulary, the samples of an epoch if they are known, and where they are from."""
    given = config.model.vocab_size
    try:
        folders = [TokenFolder(Path(one.path)) for one in config.data.folders]
        length = config.model.sequence_length
        samples = sum(len(Windows(folder.split("train"), length)) for folder in folders)
        if folders:
            return given or folders[0].vocab_size, samples, "of data.path"
    except DataError:
        pass
    if given:
        return given, None, "of model.vocab_size"
    family = family_of(config.model)
    return int(family.keys["vocab_size"][0]), None, f"assumed, the usual one of {family.model_type}"


def legal_layouts(
    config: Config, world_size: int, per_host: int, vocab_size: int, samples: int | None, vary: bool
) -> Iterator[ResolvedConfig]:
    """Yield each layout that can run, in the keys that are left out, or in all with `vary`.

    Tensor parallelism stays within a host. Raises ConfigError if there is none.
    """
    problem: ConfigError | None = None
    found = False
    for values in product(*_choices(config, per_host, vary)):
        changed = _changed(config, dict(zip(OPEN_KEYS, values, strict=True)))
        parallel, is_open = changed.parallel, vary or not _is_given(config, "parallel.zero_stage")
        if is_open and parallel.zero_stage and world_size == parallel.tensor_parallel_size:
            continue  # there is nothing to partition
        try:
            check_combinations(changed)
            check_layout(changed, world_size, "cuda")
            resolved = resolve(changed, world_size, vocab_size, samples or 1)
        except ConfigError as error:
            problem = problem or error
        else:
            found = True
            yield resolved
    if problem and not found:
        raise problem


def _choices(config: Config, per_host: int, vary: bool) -> list[list[Any]]:
    sizes = [2**power for power in range(LARGEST_MICRO_BATCH.bit_length())]
    candidates: tuple[list[Any], ...] = (
        [n for n in sizes if n <= per_host],
        [0, 1, 2, 3],
        sizes,
        [False, True],
    )
    choices: list[list[Any]] = []
    for name, candidate in zip(OPEN_KEYS, candidates, strict=True):
        is_fixed = _is_given(config, name) and not vary
        choices.append([attrgetter(name)(config)] if is_fixed else candidate)
    return choices


def _is_given(config: Config, name: str) -> bool:
    section, key = name.split(".")
    return key in getattr(config, section).model_fields_set and attrgetter(name)(config) is not None


def _changed(config: Config, values: dict[str, Any]) -> Config:
    sections = {}
    for section_name in ("parallel", "training"):
        section = getattr(config, section_name)
        update = {k.split(".")[1]: v for k, v in values.items() if k.startswith(section_name)}
        sections[section_name] = section.model_copy(update=update)
    return config.model_copy(update=sections)
