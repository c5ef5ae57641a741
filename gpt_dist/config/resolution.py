"""Complete a configuration from its source, launch and data, and refuse contradictions."""

import math
from typing import Any

from gpt_dist.config.sections import Config, ModelConfig, ResolvedConfig, ScheduleConfig
from gpt_dist.errors import ConfigError

_NOT_OF_WEIGHTS = ("vocab_size", "dropout", "source", "transferred_layers")
_SIZES = [key for key in ModelConfig.model_fields if key not in _NOT_OF_WEIGHTS]


def check_combinations(config: Config) -> None:
    """Refuse keys that contradict each other, whatever the launch and the data."""
    schedule, training = config.schedule, config.training
    seeds = config.run.seeds or []
    if config.model.source_path is None:
        _check_sizes(config)
        if config.model.transferred_layers is not None:
            raise ConfigError(
                "model.transferred_layers: there is no model.source to take blocks from; leave the "
                "key out, or give a source"
            )
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"run.seeds: {seeds} has a seed twice; give different seeds")
    if seeds and training.resume not in ("auto", "never"):
        raise ConfigError(
            f"training.resume: the checkpoint {training.resume} has one seed, but run.seeds has "
            f"{len(seeds)}; use auto, or leave run.seeds out"
        )
    if training.max_steps is not None and training.epochs is not None:
        raise ConfigError(
            "training.epochs: training.max_steps is given too; set one of them to null"
        )
    if schedule.warmup_fraction is None:
        _check_decay(schedule, training.max_steps)
    elif "warmup_steps" in schedule.model_fields_set:
        raise ConfigError(
            "schedule.warmup_fraction: schedule.warmup_steps is given too; leave one of them out"
        )
    _check_weights(config)
    _check_parallel(config)


def _check_parallel(config: Config) -> None:
    """Refuse ways to divide the work that exclude each other."""
    parallel = config.parallel
    if parallel.sequence_parallel and parallel.tensor_parallel_size == 1:
        raise ConfigError(
            "parallel.sequence_parallel: parallel.tensor_parallel_size is 1, so nothing is split; "
            "leave it out, or choose a size of 2 or more"
        )
    if parallel.sequence_parallel and config.task:
        raise ConfigError(
            "parallel.sequence_parallel: the sequences of a task differ in length and may not be "
            "divisible; leave it out in fine-tuning"
        )
    if parallel.offload_optimizer and parallel.zero_stage == 0:
        raise ConfigError("parallel.offload_optimizer: needs parallel.zero_stage 1, 2 or 3, not 0")


def _check_weights(config: Config) -> None:
    """Refuse weights that do not fit the folders, or that leave nothing to draw."""
    data = config.data
    if config.task and isinstance(data.path, list):
        raise ConfigError("data.path: a list; fine-tuning takes one folder, with the task's files")
    steps = [change.step for change in data.changes]
    if data.changes and not isinstance(data.path, list):
        raise ConfigError("data.changes: data.path is not a list; give folders with weights there")
    if steps != sorted(set(steps)):
        raise ConfigError(f"data.changes: steps {steps} do not ascend; put them in order")
    lists = {"data.path": [folder.weight for folder in data.folders]}
    lists |= {f"data.changes at step {change.step}": change.weights for change in data.changes}
    for name, weights in lists.items():
        if len(weights) != len(data.folders):
            raise ConfigError(
                f"{name}: {len(weights)} weights for the {len(data.folders)} folders of data.path; "
                "give one for each"
            )
        if weights and not any(weights):
            raise ConfigError(f"{name}: all weights are 0; give at least one above 0")


def _check_sizes(config: Config) -> None:
    if found := config.model.indivisible(config.parallel.tensor_parallel_size):
        key, number, divisor, parts = found
        section = "parallel" if divisor == "tensor_parallel_size" else "model"
        raise ConfigError(
            f"model.{key} {number} is not divisible by {section}.{divisor} {parts}; choose a "
            f"{divisor} that divides it"
        )
    length, parts = config.model.sequence_length, config.parallel.tensor_parallel_size
    if config.parallel.sequence_parallel and length % parts:
        raise ConfigError(
            f"parallel.sequence_parallel: model.sequence_length {length} is not divisible by "
            f"parallel.tensor_parallel_size {parts}; choose a length that is, or leave it out"
        )


def _check_decay(schedule: ScheduleConfig, max_steps: int | None) -> None:
    """Refuse a decay that ends before the warm-up does.

    It may if it ends together with training: then all steps are warm-up, and the run warns of it.
    """
    decay_steps, warmup_steps = schedule.decay_steps, schedule.warmup_steps
    if schedule.shape == "constant" or decay_steps is None or decay_steps == max_steps:
        return
    if decay_steps < warmup_steps:
        raise ConfigError(
            f"schedule.decay_steps {decay_steps} is less than schedule.warmup_steps "
            f"{warmup_steps}, so the learning rate would be 0 after the warm-up; choose a shorter "
            "warm-up, or set schedule.decay_steps to null"
        )


def adopt_source(config: Config, source: ModelConfig) -> Config:
    """Return the configuration with a source's family and sizes; ConfigError if it gives others."""
    for key in _SIZES:
        own, theirs = getattr(config.model, key), getattr(source, key)
        if key in config.model.model_fields_set and own not in (None, theirs):
            raise ConfigError(
                f"model.{key}: {own} is not the {'default' if theirs is None else theirs} of "
                f"model.source {config.model.source}; leave the key out to take that"
            )
    model = config.model.model_copy(update=source.model_dump(include=set(_SIZES)))
    adopted = config.model_copy(update={"model": model})
    _check_sizes(adopted)
    return adopted


def check_layout(config: Config, world_size: int, device_type: str) -> None:
    """Refuse a configuration that this many processes on this kind of device cannot run."""
    parts, batch_size = config.parallel.tensor_parallel_size, config.training.global_batch_size
    if world_size % parts:
        raise ConfigError(
            f"parallel.tensor_parallel_size: {parts} does not divide the {world_size} launched "
            f"process(es); launch a multiple of {parts}"
        )
    data_parallel_size = world_size // parts
    if config.training.compile and config.parallel.zero_stage == 3 and data_parallel_size > 1:
        raise ConfigError(
            "training.compile: a compiled model does not find the weights that ZeRO 3 partitions; "
            "leave it out, or choose a lower parallel.zero_stage"
        )
    micro_batch_size = config.training.micro_batch_size or 1
    step = data_parallel_size * micro_batch_size
    if batch_size % step:
        raise ConfigError(
            f"training.global_batch_size: {batch_size} is not a multiple of {step}, "
            f"{data_parallel_size} data-parallel process(es) x training.micro_batch_size "
            f"{micro_batch_size}; choose one that is"
        )
    if config.training.precision == "fp16" and device_type != "cuda":
        raise ConfigError("training.precision: fp16 needs a CUDA device; use bf16 or fp32 here")


def resolve(config: Config, world_size: int, vocab_size: int, samples: int) -> ResolvedConfig:
    """Return the configuration with everything filled in that the launch and the data decide.

    The data have `samples` training samples an epoch, and a tokenizer of `vocab_size` tokens.
    Raises ConfigError where launch or data contradict the configuration.
    """
    training, schedule = config.training, config.schedule
    if config.model.vocab_size not in (None, vocab_size):
        raise ConfigError(
            f"model.vocab_size: {config.model.vocab_size} is not the {vocab_size} of the data's "
            "tokenizer; leave the key out to take that"
        )
    epochs = training.epochs or 100
    max_steps = training.max_steps or math.ceil(epochs * samples / training.global_batch_size)
    data_parallel_size = world_size // config.parallel.tensor_parallel_size
    share = training.global_batch_size // data_parallel_size
    interval = math.ceil(samples / training.global_batch_size) if config.task else 1000
    values: dict[str, Any] = config.model_dump()
    values["model"]["vocab_size"] = vocab_size
    values["training"] |= {"max_steps": max_steps, "epochs": None}
    values["training"]["micro_batch_size"] = training.micro_batch_size or share
    values["schedule"]["decay_steps"] = schedule.decay_steps or max_steps
    if schedule.warmup_fraction is not None:
        warmup_steps = round(schedule.warmup_fraction * max_steps)
        values["schedule"] |= {"warmup_steps": warmup_steps, "warmup_fraction": None}
    for section in ("validation", "checkpoint"):
        values[section]["interval"] = values[section]["interval"] or interval
    values["checkpoint"]["keep_best"] |= config.task is not None
    resolved = ResolvedConfig.model_validate(values)
    _check_decay(resolved.schedule, max_steps)
    padded, parts = resolved.model.padded_vocab_size, resolved.parallel.tensor_parallel_size
    if padded % parts:
        raise ConfigError(
            f"parallel.tensor_parallel_size: {parts} does not divide the vocabulary, {vocab_size} "
            f"padded to {padded}; use a power of two"
        )
    return resolved
