"""Completes a configuration from its source, launch and data; refuses what contradicts them."""

from __future__ import annotations

import math
from typing import Any

from gpt_dist.config import Config, ModelConfig
from gpt_dist.errors import ConfigError


def check_combinations(config: Config) -> None:
    """Refuse keys that contradict each other, whatever the launch and the data."""
    parallel, training, seeds = config.parallel, config.training, config.run.seeds or []
    if config.model.source_path is None:
        _check_sizes(config)
        if config.model.transferred_layers is not None:
            raise ConfigError("model.transferred_layers: no model.source to take them from")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"run.seeds: {seeds} has one twice; give different ones")
    if seeds and training.resume not in ("auto", "never"):
        raise ConfigError(
            f"training.resume: {training.resume} is of one seed, and run.seeds has "
            f"{len(seeds)}; use auto, or leave run.seeds out"
        )
    if training.max_steps is not None and training.epochs is not None:
        raise ConfigError(
            "training.epochs: training.max_steps is given too; set one of them to null"
        )
    given = config.schedule.model_fields_set
    if config.schedule.warmup_fraction is not None and "warmup_steps" in given:
        raise ConfigError(
            "schedule.warmup_fraction: schedule.warmup_steps is given too; leave one of them out"
        )
    if parallel.offload_optimizer and parallel.zero_stage == 0:
        raise ConfigError("parallel.offload_optimizer: needs parallel.zero_stage 1, 2 or 3, not 0")


def _check_sizes(config: Config) -> None:
    model, parallel = config.model, config.parallel
    if model.hidden_size % model.num_heads:
        raise ConfigError(
            f"model.num_heads: {model.num_heads} does not divide model.hidden_size "
            f"{model.hidden_size}; choose a divisor"
        )
    if model.num_heads % parallel.tensor_parallel_size:
        raise ConfigError(
            f"parallel.tensor_parallel_size: {parallel.tensor_parallel_size} does not divide "
            f"model.num_heads {model.num_heads}; each process needs whole heads"
        )


def adopt_source(config: Config, source: ModelConfig) -> Config:
    """Take the sizes of model.source, except for the vocabulary, which the data decides.

    Raises ConfigError where the configuration gives another.
    """
    given = config.model.model_fields_set
    for key in ("num_layers", "hidden_size", "num_heads", "sequence_length", "family"):
        own, theirs = getattr(config.model, key), getattr(source, key)
        if key in given and own != theirs:
            raise ConfigError(
                f"model.{key}: {own} is not the {theirs} of model.source {config.model.source}; "
                "leave the key out to take that"
            )
    sizes = source.model_dump(exclude={"vocab_size", "dropout", "source", "transferred_layers"})
    adopted = config.model_copy(update={"model": config.model.model_copy(update=sizes)})
    _check_sizes(adopted)
    return adopted


def check_layout(config: Config, world_size: int, device_type: str) -> None:
    """Refuse a configuration that this many processes on this kind of device cannot run."""
    tensor_parallel_size = config.parallel.tensor_parallel_size
    if world_size % tensor_parallel_size:
        raise ConfigError(
            f"parallel.tensor_parallel_size: {tensor_parallel_size} does not divide the "
            f"{world_size} launched process(es); launch a multiple of {tensor_parallel_size}"
        )
    data_parallel_size = config.data_parallel_size(world_size)
    global_batch_size = config.training.global_batch_size
    micro_batch_size = config.training.micro_batch_size or 1
    step = data_parallel_size * micro_batch_size
    if global_batch_size % step:
        raise ConfigError(
            f"training.global_batch_size: {global_batch_size} is not a multiple of {step}, "
            f"{data_parallel_size} data-parallel process(es) x training.micro_batch_size "
            f"{micro_batch_size}; choose one that is"
        )
    if config.training.precision == "fp16" and device_type != "cuda":
        raise ConfigError("training.precision: fp16 needs a CUDA device; use bf16 or fp32 here")


def resolve(config: Config, world_size: int, vocab_size: int, samples: int) -> Config:
    """Fill in what the launch and the data decide, so that nothing is left to defaults later.

    vocab_size is the data's, and so is the number of samples in an epoch. Raises ConfigError where
    they contradict the configuration.
    """
    training, schedule = config.training, config.schedule
    epochs = training.epochs or 100
    max_steps = training.max_steps or math.ceil(epochs * samples / training.global_batch_size)
    share = training.global_batch_size // config.data_parallel_size(world_size)
    warmup = schedule.warmup_fraction
    interval = math.ceil(samples / training.global_batch_size) if config.task else 1000
    sections: dict[str, dict[str, Any]] = {
        "training": {
            "max_steps": max_steps,
            "epochs": None,
            "micro_batch_size": training.micro_batch_size or share,
        },
        "schedule": {
            "decay_steps": schedule.decay_steps or max_steps,
            "warmup_steps": schedule.warmup_steps if warmup is None else round(warmup * max_steps),
            "warmup_fraction": None,
        },
        "validation": {"interval": config.validation.interval or interval},
        "checkpoint": {"interval": config.checkpoint.interval or interval},
        "model": {"vocab_size": _vocab_size(config, vocab_size)},
    }
    resolved = {
        name: getattr(config, name).model_copy(update=update) for name, update in sections.items()
    }
    return config.model_copy(update=resolved)


def _vocab_size(config: Config, vocab_size: int) -> int:
    model, tensor_parallel_size = config.model, config.parallel.tensor_parallel_size
    if model.vocab_size not in (None, vocab_size):
        raise ConfigError(
            f"model.vocab_size: {model.vocab_size} is not the {vocab_size} of the data's "
            "tokenizer; leave the key out to take that"
        )
    padded = model.model_copy(update={"vocab_size": vocab_size}).padded_vocab_size
    if padded % tensor_parallel_size:
        raise ConfigError(
            f"parallel.tensor_parallel_size: {tensor_parallel_size} does not divide the "
            f"vocabulary, {vocab_size} padded to {padded}; use a power of two"
        )
    return vocab_size
