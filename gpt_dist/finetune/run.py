"""Fine-tuning on a task: the checks before it, a run for each seed, and their results."""

import gc
import hashlib
import shutil
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from gpt_dist.checkpoint.folder import first_valid, open_shared, step_of, step_path, warner
from gpt_dist.checkpoint.format import Checkpoint
from gpt_dist.checkpoint.opened import OpenedModel, model_path, newest_path
from gpt_dist.checkpoint.save import DataSource, package_versions
from gpt_dist.config import (
    NO_SOURCE,
    AnyConfig,
    Config,
    OptimizerConfig,
    ResolvedConfig,
    TaskConfig,
)
from gpt_dist.config.resolution import check_layout, resolve
from gpt_dist.data.tasks.checks import check_task
from gpt_dist.data.tasks.examples import EncodedSplit, TaskSamples, encode_split
from gpt_dist.data.tasks.reading import DEV, TRAIN, present_splits, read_split, write_submission
from gpt_dist.data.tasks.transforms import Transformation
from gpt_dist.data.tokenizers.folder import FolderTokenizer, open_tokenizer, tokenizer_file
from gpt_dist.errors import CheckpointError, ConfigError, Interrupted
from gpt_dist.finetune.objective import TaskHead, TaskObjective, head_shape
from gpt_dist.finetune.predict import Evaluator, metrics_of
from gpt_dist.finetune.results import RESULTS_NAME, Results, SeedResult, median_and_spread
from gpt_dist.finetune.task_model import save_task_model
from gpt_dist.model import GPT, family_of, num_parameters
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import Topology, device_type, gather, together
from gpt_dist.train.directory import check_writable, set_aside_earlier_run
from gpt_dist.train.engine import Engine
from gpt_dist.train.interruption import Interruption
from gpt_dist.train.loop import Plan, run
from gpt_dist.train.start import open_source, share_source

_HYPERPARAMETERS = {
    "optimizer": tuple(OptimizerConfig.model_fields),
    "schedule": ("warmup_steps", "decay_steps", "shape"),
    "training": ("global_batch_size", "precision"),
    "model": ("dropout",),
    "objective": ("head_dropout",),
}
"""Keys that a score depends on and results record, beside the sizes, steps and ablations."""


@dataclass(frozen=True)
class Inputs:
    """Opened and checked inputs of the runs; the source is None if its weights are not needed."""

    config: ResolvedConfig
    task: TaskConfig
    encoded: dict[str, EncodedSplit]
    """Every split, without test splits that are missing."""
    data: DataSource
    source: OpenedModel | None


def check(config: Config, launch: Launch) -> Inputs:
    """Open source and data and complete the configuration; refuse whatever would fail later.

    Needs no process group. Raises ConfigError, DataError, ModelError or CheckpointError.
    """
    check_layout(config, launch.world_size, device_type())
    task = config.task
    assert task is not None, "the command has refused a configuration without"
    if config.data.path is None:
        raise ConfigError("data.path: not given; it is the folder of the task's files")
    folder = Path(config.data.folders[0].path)
    check_task(folder, task)
    config, source, tokenizer_folder, tokenizer, vocab_size = _open_source(config)
    transformation = Transformation(task.form, tokenizer, config.model.sequence_length)
    encoded = {
        name: encode_split(read_split(folder, task, name), transformation)
        for name in present_splits(folder, task)
    }
    resolved = resolve(config, launch.world_size, vocab_size, len(encoded[TRAIN]))
    family_of(resolved.model)
    _check_same_kind(config)
    for one in _each_seed(config):
        check_writable(Path(one.run.directory))
    data = DataSource(_digest(encoded), *tokenizer_file(tokenizer_folder))
    return Inputs(resolved, task, encoded, data, source)


def _open_source(config: Config) -> tuple[Config, OpenedModel | None, Path, FolderTokenizer, int]:
    """Open model.source, or the tokenizer of a model without pre-training.

    Returns the configuration with the source's sizes; the source, if its weights are needed; the
    folder of the tokenizer, the tokenizer, and the size of the model's vocabulary.
    """
    if config.model.source is None:
        raise ConfigError(
            "model.source: not given; give a model folder, a checkpoint, the Hugging Face folder "
            "of a known family, or `none` for a model without pre-training"
        )
    if not config.model.source_path:
        if config.data.tokenizer is None:
            raise ConfigError(
                "data.tokenizer: not given; without model.source, give a folder that has a "
                "tokenizer"
            )
        path = model_path(Path(config.data.tokenizer))
        path = newest_path(path) or path
        tokenizer = open_tokenizer(path)
        return config, None, path, tokenizer, tokenizer.full_vocab_size
    if config.data.tokenizer:
        raise ConfigError("data.tokenizer: model.source has its own; leave the key out")
    config, model, source = open_source(config, _each_seed(config))
    if (config.model.transferred_layers or 0) > model.config.num_layers:
        raise ConfigError(
            f"model.transferred_layers: {config.model.transferred_layers} is more than the "
            f"{model.config.num_layers} of {config.model.source}; give less"
        )
    vocab_size = max(model.tokenizer.full_vocab_size, model.config.vocab_size)
    return config, source, model.tokenizer_folder, model.tokenizer, vocab_size


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


def _digest(encoded: dict[str, EncodedSplit]) -> str:
    """Return the SHA-256, in hexadecimal, of the splits that a trained model depends on."""
    digest = hashlib.sha256()
    for name, split in encoded.items():
        if not name.startswith("test"):
            assert split.targets is not None, "only test splits have no labels"
            digest.update(name.encode())
            for array in (split.tokens, split.sequence_starts, split.example_starts, split.targets):
                digest.update(array.tobytes())
    return digest.hexdigest()


def _each_seed(config: AnyConfig) -> list[AnyConfig]:
    """Return the configuration of each seed's run; several runs have folders of their own."""
    configs = []
    for seed in config.run.seeds or [config.run.seed]:
        folder = f"seed-{seed}" if config.run.seeds else ""
        values = {"seed": seed, "seeds": None, "directory": str(Path(config.run.directory, folder))}
        one = config.run.model_copy(update=values)
        configs.append(config.model_copy(update={"run": one}))
    return configs


def finetune(inputs: Inputs, topology: Topology) -> None:
    """Train once with each seed, and write the results into run.directory.

    These are `results.json`, the best model of the best seed as a folder `model`, and predictions
    for the splits without labels.
    """
    config, source = share_source(inputs.config, inputs.source, topology)
    inputs = replace(inputs, config=config, source=source)
    directory = Path(config.run.directory)
    interruption = Interruption(topology.launch, topology.progress)

    def begin() -> None:
        if config.run.seeds and config.training.resume == "never":
            set_aside_earlier_run(directory)
        print(_describe(inputs), file=sys.stderr, flush=True)

    together(lambda: begin() if topology.is_main else None)
    made: list[tuple[SeedResult, Checkpoint]] = []
    runs = _each_seed(config)
    for one in runs:
        made.append(_train_seed(inputs, one, topology, interruption))
        # DeepSpeed's engine refers to itself, and holds the whole training state.
        gc.collect()
        if any(gather(interruption.noted)) and one is not runs[-1]:
            raise Interrupted(f"interrupted after seed {one.run.seed}; start again to go on")

    def leave() -> None:
        results = _results(inputs, tuple(result for result, _ in made))
        _, best = max(made, key=lambda one: one[0].scores[DEV][inputs.task.metric])
        _replace_model(best, directory / "model")
        results.write(directory / RESULTS_NAME)
        _print_results(results, directory)

    together(lambda: leave() if topology.is_main else None)


def _train_seed(
    inputs: Inputs, config: ResolvedConfig, topology: Topology, interruption: Interruption
) -> tuple[SeedResult, Checkpoint]:
    """Train, and judge the weights that validated best."""
    task, encoded = inputs.task, inputs.encoded

    def objective(model: GPT) -> TaskObjective:
        dropout = config.objective.head_dropout
        head = TaskHead(config.model.hidden_size, *head_shape(task), dropout)
        return TaskObjective(model, head, config.objective.auxiliary_weight)

    how = task, config.training.micro_batch_size, topology.data_parallel_group
    batch_size, limit = config.training.global_batch_size, config.validation.max_samples
    samples = TaskSamples(encoded[TRAIN], batch_size, config.run.seed)
    plan = Plan(
        objective=objective,
        draw=lambda _: samples,
        validate=lambda engine: Evaluator(engine.evaluate, *how).validate(encoded, limit),
        data=inputs.data,
        directory=Path(inputs.config.run.directory),
        source=inputs.source,
    )
    engine, best_first = run(config, plan, topology, interruption)
    best = _load_best(engine, best_first, config, topology)
    judge = Evaluator(engine.evaluate, *how).judge
    judged = {name: judge(split) for name, split in encoded.items() if name != TRAIN}

    def write_predictions() -> None:
        for name, one in judged.items():
            if one.targets is None:
                ids, predictions = encoded[name].ids, one.predictions.tolist()
                write_submission(Path(config.run.directory), task, name, ids, predictions)

    together(lambda: write_predictions() if topology.is_main else None)
    scores = metrics_of(judged, task)
    return SeedResult(seed=config.run.seed, best_step=best.manifest.step, scores=scores), best


def _load_best(
    engine: Engine, best_first: list[int], config: ResolvedConfig, topology: Topology
) -> Checkpoint:
    """Give the engine the weights that validated best, of those that are whole."""
    folder = Path(config.run.directory) / "checkpoints"
    steps = best_first or [config.training.max_steps]
    found = gather([path for step in steps if (path := step_path(folder, step)).is_dir()])[0]
    checkpoint = first_valid(found, warner(topology), partial(open_shared, topology=topology))
    if checkpoint is None:
        raise CheckpointError(f"{folder}: its checkpoints are gone; start again")
    engine.state().load(checkpoint)
    checkpoint.files.release()
    return checkpoint


def _replace_model(best: Checkpoint, model: Path) -> None:
    """Write the model folder; an earlier one is removed when the new one is whole."""
    new = model.with_name(".model.new")
    shutil.rmtree(new, ignore_errors=True)
    save_task_model(best, new)
    shutil.rmtree(model, ignore_errors=True)
    new.rename(model)


def _results(inputs: Inputs, seeds: tuple[SeedResult, ...]) -> Results:
    config, task, encoded = inputs.config, inputs.task, inputs.encoded
    model = config.model
    scored = {name: len(one) for name, one in encoded.items() if one.targets is not None}
    median, spread = median_and_spread(seeds)
    return Results(
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
        train_examples=scored.pop(TRAIN),
        examples=scored,
        max_steps=config.training.max_steps,
        hyperparameters={
            f"{section}.{key}": getattr(getattr(config, section), key)
            for section, keys in _HYPERPARAMETERS.items()
            for key in keys
        },
        versions=package_versions(),
        paper=task.paper,
        seeds=seeds,
        median=median,
        spread=spread,
    )


def _describe(inputs: Inputs) -> str:
    """Return the numbers of examples, and of those that are cut."""
    splits, longest = inputs.encoded, inputs.config.model.sequence_length
    counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    full = sum(int((split.lengths == longest).sum()) for split in splits.values())
    cut = f"; {full:,} fill model.sequence_length {longest}, or were cut to it" if full else ""
    return f"{inputs.task.name}: {counts} examples{cut}"


def _print_results(results: Results, directory: Path) -> None:
    first, several = results.seeds[0], len(results.seeds) > 1
    one = f"seed {first.seed}, weights of step {first.best_step}"
    many = f"{len(results.seeds)} seeds, median (lowest to highest)"
    print(f"{results.task}, {many if several else one}:")
    for split, metrics in results.median.items():
        for metric, value in metrics.items():
            scores = [100 * seed.scores[split][metric] for seed in results.seeds]
            spread = f" ({min(scores):.1f} to {max(scores):.1f})" if several else ""
            print(f"  {split} {metric} {100 * value:.1f}{spread}")
    print(f"in {directory}: results.json, model/", flush=True)
