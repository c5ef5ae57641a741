"""Fine-tuning on a task: the checks before it, a run for each seed, and their results."""

from __future__ import annotations

import gc
import shutil
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from gpt_dist.checkpoint.folder import first_valid, open_shared, step_of, step_path, warner
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.checkpoint.opened import model_path
from gpt_dist.checkpoint.save import DataSource, package_versions
from gpt_dist.checkpoint.weights import newest_path
from gpt_dist.config import (
    NO_SOURCE,
    AnyConfig,
    Config,
    OptimizerConfig,
    ResolvedConfig,
    TaskConfig,
)
from gpt_dist.config.resolution import adopt_source, check_layout, resolve
from gpt_dist.data.tasks.checks import check_task
from gpt_dist.data.tasks.reading import DEV, TRAIN, write_submission
from gpt_dist.data.tokenizers.folder import open_tokenizer, tokenizer_file
from gpt_dist.errors import CheckpointError, ConfigError, Interrupted
from gpt_dist.finetune.data import Splits, TaskSamples, digest_of, read_splits
from gpt_dist.finetune.head import TaskHead, head_shape
from gpt_dist.finetune.objective import TaskObjective
from gpt_dist.finetune.predict import Judged, metrics_of
from gpt_dist.finetune.results import RESULTS_NAME, Results, RunFacts, SeedResult
from gpt_dist.finetune.task_model import save_task_model
from gpt_dist.finetune.validation import judge_split, validate
from gpt_dist.model import GPT, num_parameters
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import Topology, device_type, together
from gpt_dist.train.directory import check_writable, set_aside_earlier_run
from gpt_dist.train.interruption import Interruption
from gpt_dist.train.metrics import Headline
from gpt_dist.train.run import Outcome, Plan, run
from gpt_dist.train.source import OpenedSource, open_source, share_source
from gpt_dist.train.start import Source

_HYPERPARAMETERS = (
    *(f"optimizer.{key}" for key in OptimizerConfig.model_fields),
    *(f"schedule.{key}" for key in ("warmup_steps", "decay_steps", "shape")),
    *("training.global_batch_size", "training.precision"),
    *("model.dropout", "objective.head_dropout"),
)
"""Keys that a score depends on and results record, beside sizes, steps and the ablations."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of the runs, opened and checked."""

    config: ResolvedConfig
    task: TaskConfig
    splits: Splits
    data: DataSource
    source: Source | None
    """None where there is none, or where every run goes on from a checkpoint."""


def check(config: Config, launch: Launch) -> Inputs:
    """Open source and data and complete the configuration; refuse whatever would fail later.

    Needs no process group. Raises ConfigError, DataError, ModelError or CheckpointError.
    """
    check_layout(config, launch.world_size, device_type())
    task = config.task
    if task is None:
        raise ConfigError("task: not given; see configs/finetune/ for examples")
    if config.data.path is None:
        raise ConfigError("data.path: not given; it is the folder of the task's files")
    folder = Path(config.data.path)
    check_task(folder, task)
    source = _open_source(config)
    if source:
        config = adopt_source(source.config, source.model.config)
    opened = source.model if source else None
    tokenizer_folder = opened.tokenizer_folder if opened else _tokenizer_folder(config)
    tokenizer = opened.tokenizer if opened else open_tokenizer(tokenizer_folder)
    splits = read_splits(config, task, folder, tokenizer)
    vocab_size = max(tokenizer.full_vocab_size, (opened and opened.config.vocab_size) or 0)
    resolved = resolve(config, launch.world_size, vocab_size, len(splits.encoded[TRAIN]))
    keep = resolved.checkpoint.model_copy(update={"keep_best": True})
    resolved = resolved.model_copy(update={"checkpoint": keep})
    _check_same_kind(config)
    for one in _each_seed(config):
        check_writable(Path(one.run.directory))
    data = DataSource(digest_of(splits.encoded), *tokenizer_file(tokenizer_folder))
    return Inputs(resolved, task, splits, data, source.weights if source else None)


def finetune(inputs: Inputs, topology: Topology) -> None:
    """Train once with each seed, and write what came of it into run.directory.

    That is `results.json`, the best model of the best seed as a folder `model`, and predictions
    for the splits without labels.
    """
    directory = Path(inputs.config.run.directory)
    made: list[tuple[SeedResult, Checkpoint]] = []
    config, source = share_source(inputs.config, inputs.source, topology)
    inputs = replace(inputs, config=config, source=source)
    interruption = Interruption(topology.launch)
    runs = _each_seed(config)

    def begin() -> None:
        if inputs.config.run.seeds and inputs.config.training.resume == "never":
            set_aside_earlier_run(directory)
        print(_describe(inputs), file=sys.stderr, flush=True)

    together(lambda: begin() if topology.is_main else None)
    for config in runs:
        made.append(_train_seed(inputs, config, topology, interruption))
        # DeepSpeed's engine refers to itself, and holds the whole training state.
        gc.collect()
        interrupted, _ = interruption.agreed()
        if interrupted and config is not runs[-1]:
            raise Interrupted(f"interrupted after seed {config.run.seed}; start again to go on")
    interruption.close()

    def leave() -> None:
        results = Results.of(_facts(inputs), [result for result, _ in made])
        _, best = max(made, key=lambda one: one[0].scores[DEV][inputs.task.metric])
        _replace_model(best, inputs.task, directory / "model")
        results.write(directory / RESULTS_NAME)
        _say_what_was_made(results, directory)

    together(lambda: leave() if topology.is_main else None)


def _train_seed(
    inputs: Inputs, config: ResolvedConfig, topology: Topology, interruption: Interruption
) -> tuple[SeedResult, Checkpoint]:
    """Train, and judge the weights that validated best."""
    task = inputs.task
    kind, outputs = head_shape(task)

    def objective(model: GPT) -> TaskObjective:
        head = TaskHead(config.model.hidden_size, kind, outputs, config.objective.head_dropout)
        return TaskObjective(model, head, config.objective.auxiliary_weight)

    plan = Plan(
        objective=objective,
        samples=TaskSamples(
            inputs.splits.encoded[TRAIN], config.training.global_batch_size, config.run.seed
        ),
        validator=lambda engine: partial(
            validate, engine, inputs.splits.validation, config, topology
        ),
        headline=Headline(f"{DEV}_{task.metric}", higher_is_better=True),
        data=inputs.data,
        source=inputs.source,
    )
    outcome = run(config, plan, topology, interruption)
    best = _load_best(outcome, config, topology)
    judged = {
        name: judge_split(outcome.engine, split, config, topology)
        for name, split in inputs.splits.encoded.items()
        if name != TRAIN
    }
    directory = Path(config.run.directory)
    together(lambda: _write_predictions(inputs, judged, directory) if topology.is_main else None)
    scores = metrics_of(judged, task)
    return SeedResult(seed=config.run.seed, best_step=best.manifest.step, scores=scores), best


def _load_best(outcome: Outcome, config: ResolvedConfig, topology: Topology) -> Checkpoint:
    """Give the engine the weights that validated best, of those that are whole."""
    folder = Path(config.run.directory) / "checkpoints"
    steps = outcome.best_first or [config.training.max_steps]
    found = [[path for step in steps if (path := step_path(folder, step)).is_dir()]]
    dist.broadcast_object_list(found, src=0)

    def opened(path: Path) -> Checkpoint:
        return open_shared(path, topology)

    checkpoint = first_valid(found[0], warner(topology), opened)
    if checkpoint is None:
        raise CheckpointError(f"{folder}: its checkpoints are gone; start again")
    outcome.engine.state().load(checkpoint)
    checkpoint.files.release()
    return checkpoint


def _write_predictions(inputs: Inputs, judged: dict[str, Judged], directory: Path) -> None:
    for name, one in judged.items():
        if one.targets is None:
            predictions = one.predictions.tolist()
            write_submission(
                directory, inputs.task, name, inputs.splits.examples[name], predictions
            )


def _replace_model(best: Checkpoint, task: TaskConfig, model: Path) -> None:
    """Write the model folder; one that is there goes when the new one is whole."""
    new = model.with_name(".model.new")
    shutil.rmtree(new, ignore_errors=True)
    save_task_model(best, task, new)
    shutil.rmtree(model, ignore_errors=True)
    new.rename(model)


def _facts(inputs: Inputs) -> RunFacts:
    config, task = inputs.config, inputs.task
    model = config.model
    return RunFacts(
        task=task.name,
        metric=task.metric,
        form=task.form,
        source=model.source or NO_SOURCE,
        source_step=step_of(model.source_path) if model.source_path else None,
        auxiliary_weight=config.objective.auxiliary_weight,
        transferred_layers=model.transferred_layers,
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        parameters=num_parameters(model),
        data_digest=inputs.data.digest,
        train_examples=len(inputs.splits.encoded[TRAIN]),
        examples={
            name: len(split)
            for name, split in inputs.splits.encoded.items()
            if name != TRAIN and split.targets is not None
        },
        max_steps=config.training.max_steps,
        hyperparameters={name: _value(config, name) for name in _HYPERPARAMETERS},
        versions=package_versions(),
        paper=task.paper,
    )


def _value(config: Config, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def _describe(inputs: Inputs) -> str:
    """Return how many examples there are, and how many are too long."""
    splits, longest = inputs.splits.encoded, inputs.config.model.sequence_length
    counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    full = sum(int((split.lengths == longest).sum()) for split in splits.values())
    cut = f"; {full:,} fill model.sequence_length {longest}, or were cut to it" if full else ""
    return f"{inputs.task.name}: {counts} examples{cut}"


def _say_what_was_made(results: Results, directory: Path) -> None:
    several = len(results.seeds) > 1
    first = results.seeds[0]
    what = (
        f"{len(results.seeds)} seeds, median (lowest to highest)"
        if several
        else f"seed {first.seed}, weights of step {first.best_step}"
    )
    print(f"{results.task}, {what}:")
    for split, metrics in results.median.items():
        for metric, value in metrics.items():
            scores = [100 * one.scores[split][metric] for one in results.seeds]
            spread = f" ({min(scores):.1f} to {max(scores):.1f})" if several else ""
            print(f"  {split} {metric} {100 * value:.1f}{spread}")
    print(f"in {directory}: results.json, model/", flush=True)


def _each_seed(config: AnyConfig) -> list[AnyConfig]:
    return [_with_seed(config, seed) for seed in config.run.seeds or [config.run.seed]]


def _check_same_kind(config: Config) -> None:
    """Refuse the directory of one seed's run for several, and the other way round."""
    directory = Path(config.run.directory)
    if config.run.seeds and (directory / "checkpoints").exists():
        raise ConfigError(
            f"run.directory: {directory} holds a run of one seed; give another for run.seeds"
        )
    if not config.run.seeds and any(directory.glob("seed-*/checkpoints")):
        raise ConfigError(
            f"run.directory: {directory} holds runs of run.seeds; give that key, or another "
            "directory"
        )


def _with_seed(config: AnyConfig, seed: int) -> AnyConfig:
    """The run of one seed; several have folders of their own."""
    directory = Path(config.run.directory)
    if config.run.seeds:
        directory /= f"seed-{seed}"
    one = config.run.model_copy(update={"seed": seed, "seeds": None, "directory": str(directory)})
    return config.model_copy(update={"run": one})


def _open_source(config: Config) -> OpenedSource | None:
    model = config.model
    if model.source is None:
        raise ConfigError(
            "model.source: not given; give a model folder, a checkpoint or a Hugging Face GPT-1 "
            "folder, or `none` for a model without pre-training"
        )
    if model.source_path is None:
        return None
    if config.data.tokenizer:
        raise ConfigError("data.tokenizer: model.source has its own; leave the key out")
    source = open_source(config, _each_seed(config))
    if (model.transferred_layers or 0) > source.model.config.num_layers:
        raise ConfigError(
            f"model.transferred_layers: {model.transferred_layers} is more than the "
            f"{source.model.config.num_layers} of {model.source}; give less"
        )
    return source


def _tokenizer_folder(config: Config) -> Path:
    if config.data.tokenizer is None:
        raise ConfigError(
            "data.tokenizer: not given; without model.source, give a folder that has a tokenizer"
        )
    path = model_path(Path(config.data.tokenizer))
    return newest_path(path) or path
