"""The typed configuration of a run: read from YAML and `section.key=value`, checked, completed."""

from __future__ import annotations

import difflib
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpt_dist.errors import ConfigError

VOCABULARY_MULTIPLE = 128
"""The vocabulary is padded to this multiple in every layout, so that shapes do not depend on it."""

NO_SOURCE = "none"
"""The value of model.source that asks for a model from scratch."""

DecayRate = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A group of keys: unknown keys are refused, values do not change once read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class RunConfig(Section):
    directory: str = "runs/pretrain"
    """Where the run writes its configuration, metrics and TensorBoard files."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seeds initial weights, dropout and the order of the samples."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] | None = Field(default=None, min_length=1)
    """Fine-tunes once with each, in folders of their own, for the median and the spread."""


class ModelConfig(Section):
    num_layers: int = Field(default=12, ge=1)
    """Transformer blocks."""
    hidden_size: int = Field(default=768, ge=1)
    """Width of the residual stream; the feed-forward layer is four times as wide."""
    num_heads: int = Field(default=12, ge=1)
    """Attention heads; must divide hidden_size."""
    sequence_length: int = Field(default=512, ge=1)
    """Tokens of context, and the length of a training window."""
    vocab_size: int | None = Field(default=None, ge=1)
    """Tokens of the vocabulary; left out, it is the token folder's."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """On embeddings, attention weights and residual branches."""
    norm_position: Literal["post", "pre"] = "post"
    """LayerNorm after each residual sum (GPT-1), or before each branch and at the end (GPT-2)."""
    source: str | None = None
    """Weights to start from: a model folder, a sharded checkpoint, a Hugging Face GPT-1 or GPT-2
    folder, or the released GPT-1 files; sizes left out are then its own. `none`: from scratch."""
    transferred_layers: int | None = Field(default=None, ge=0)
    """Blocks taken from model.source, from the first; the others start from scratch. Left out,
    all."""

    @property
    def source_path(self) -> Path | None:
        """Where the weights to start from are, if any are."""
        return None if self.source in (None, NO_SOURCE) else Path(str(self.source))

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: vocab_size rounded up to VOCABULARY_MULTIPLE."""
        assert self.vocab_size is not None, "the configuration is not resolved yet"
        return math.ceil(self.vocab_size / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


class DataConfig(Section):
    path: str | None = None
    """A token folder, made by `python -m data_prep build`; in fine-tuning, the folder of the task's
    files."""
    tokenizer: str | None = None
    """Fine-tuning without model.source: the folder of a tokenizer, such as a model's."""


class ParallelConfig(Section):
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Processes that share each layer; the rest of the world is data-parallel."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What DeepSpeed ZeRO partitions: 0 nothing, 1 optimiser, 2 gradients too, 3 weights too."""
    offload_optimizer: bool = False
    """Keep optimiser state and its update in host memory; needs zero_stage 1 or more."""


class OptimizerConfig(Section):
    learning_rate: float = Field(default=2.5e-4, gt=0)
    """The maximum, reached after the warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled, on matrices and embeddings only."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Adam's denominator term."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0 turns clipping off."""


class ScheduleConfig(Section):
    warmup_steps: int = Field(default=2000, ge=0)
    """Steps of linear warm-up from 0."""
    warmup_fraction: float | None = Field(default=None, ge=0, le=1)
    """The warm-up as a part of training.max_steps, in place of warmup_steps."""
    decay_steps: int | None = Field(default=None, ge=1)
    """Step at which the learning rate reaches 0; left out, it is training.max_steps."""
    shape: Literal["cosine", "linear", "constant"] = "cosine"
    """The way down after the warm-up."""


class TrainingConfig(Section):
    max_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps; give this or epochs."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training windows; 100 when neither is given."""
    global_batch_size: int = Field(default=64, ge=1)
    """Sequences of one optimiser step, over all processes."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Sequences of one forward pass on one process; the rest is gradient accumulation.
    Left out, a process takes its whole share at once."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of weights and activations; master weights and moments are always fp32. fp16 needs CUDA."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""
    compile: bool = False
    """Compile the model with torch.compile."""
    deterministic: bool = False
    """Forbid operations whose result varies between runs."""
    resume: str = "auto"
    """auto: from the newest whole checkpoint of the run's directory, if it has any; never: from
    scratch; otherwise the path of a checkpoint."""


class ValidationConfig(Section):
    interval: int | None = Field(default=None, ge=1)
    """Steps between validations; one more is made before the first step and after the last.
    Left out, 1000 in pre-training and an epoch in fine-tuning."""
    max_samples: int | None = Field(default=None, ge=1)
    """Validation windows used, from the first; left out, all."""


class CheckpointConfig(Section):
    interval: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; one more is written after the last step. Left out, 1000 in
    pre-training and an epoch in fine-tuning."""
    keep: int = Field(default=3, ge=1)
    """The newest so many are kept."""
    keep_every: int | None = Field(default=None, ge=1)
    """Checkpoints of every step that this divides are kept too."""
    keep_best: bool = False
    """Write one after every validation too, and keep the best. Fine-tuning always does."""
    asynchronous: bool = True
    """Write in the background: a step is held only while the state is copied."""


class ObjectiveConfig(Section):
    auxiliary_weight: float = Field(default=0.5, ge=0)
    """Lambda of fine-tuning: the weight of the language-model loss beside the task's own."""
    head_dropout: float = Field(default=0.1, ge=0, lt=1)
    """On the activation that the task's head reads."""


class LoggingConfig(Section):
    interval: int = Field(default=10, ge=1)
    """Steps between rows of metrics.jsonl."""


Column = str | int
"""A column by its name in the header, or by its position from 0."""


class SplitConfig(Section):
    path: str
    """The file or folder, below data.path."""
    header: bool | None = None
    """As in `task`, where this file is made otherwise."""
    columns: dict[str, Column | list[Column]] | None = None
    """As in `task`, where this file is made otherwise."""
    submission: str | None = None
    """Name of the prediction file in GLUE's form, for a split without labels."""


class ZeroShotConfig(Section):
    prompt: str = ""
    """Put behind the text, for one of `words` to go on with."""
    words: list[str] | None = None
    """One for each of task.labels, in their order: the likeliest one is the guess."""
    likely_label: str | None = None
    """In place of words: which of two labels have the texts of high average log-probability. The
    threshold is the one that does best on `train`."""


class TaskConfig(Section):
    name: str
    """What tables call it."""
    form: Literal["classification", "entailment", "similarity", "multiple_choice"]
    """The input transformation (Radford et al. 2018, section 3.3)."""
    format: Literal["tsv", "csv", "jsonl", "race"]
    """How files hold examples: lines, or, in RACE, a JSON file a passage."""
    header: bool = True
    """Whether the first line of a tsv or csv file names the columns."""
    quoting: bool | None = None
    """Whether double quotes enclose fields; left out, in csv only."""
    columns: dict[str, Column | list[Column]] = {}
    """Where a role is found: `text`; `premise`, `hypothesis`; `a`, `b`; `context`, `question`
    (optional), `choices`; and `label`, `id` (optional). Several columns of one role are joined by a
    space, but `choices` are one each, or a list in one column."""
    splits: dict[str, str | SplitConfig]
    """Files below data.path: `train`; those evaluated, named `dev` or `dev_…`; those predicted,
    named `test` or `test_…`, which need not be there."""
    dev_fraction: float = Field(default=0, ge=0, lt=1)
    """Held out of `train`, by hash, where no `dev` is named."""
    labels: list[str] | None = None
    """The classes, in the order of the head's outputs; left out, `label` is a score. In multiple
    choice, what `label` calls the choices, in their order; left out, their numbers from 0."""
    ignored_labels: list[str] = []
    """Rows with one of these have no gold label, and are left out."""
    score_range: tuple[float, float] | None = None
    """The lowest and highest score: data outside are refused, predictions moved to the nearer."""
    malformed_rows: int = Field(default=0, ge=0)
    """Rows of a labelled file that may have too few or many fields, or an empty text, and are left
    out; one more is an error."""
    metric: Literal["accuracy", "f1", "matthews", "pearson", "spearman"]
    """What decides which weights are kept, and what the table shows."""
    paper: dict[str, float] = {}
    """What the paper reports, in per cent, by split; `dev` is all of them."""
    zero_shot: ZeroShotConfig | None = None
    """How a model that was not fine-tuned classifies a text (section 5 of the paper). Multiple
    choice needs none: it takes the choice of highest average log-probability."""


class Config(Section):
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    parallel: ParallelConfig = ParallelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    task: TaskConfig | None = None
    """Given for fine-tuning only."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Of fine-tuning."""

    def data_parallel_size(self, world_size: int) -> int:
        return world_size // self.parallel.tensor_parallel_size

    def save(self, path: Path) -> None:
        path.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-4` is a number, dates, `yes` and `no` are text, and a key given twice
    is an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012 -- as the base class has it
        first: [pair for pair in resolvers if not pair[0].endswith((":timestamp", ":bool"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                problem = f"the key {name!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_config(path: Path, overrides: list[str]) -> Config:
    """Read a YAML file, apply `section.key=value` overrides, check all but what data decides.

    Raises ConfigError with the dotted name, the value and the remedy.
    """
    values = _read_yaml(path)
    for override in overrides:
        _apply(values, override)
    try:
        # JSON mode is strict about types (no true for 1) and yet takes lists as tuples.
        config = Config.model_validate_json(json.dumps(values), strict=True)
    except (ValidationError, TypeError) as error:
        raise ConfigError(_explain(error, path)) from None
    _check_combinations(config)
    return config


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; see configs/pretrain/ for examples") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not a readable YAML file: {reason}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections such as `model:`, found {values!r}")
    return values


_LENGTHS = {"training.max_steps": "epochs", "training.epochs": "max_steps"}
"""Two ways to say how long to train."""


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    section, dot, key = name.partition(".")
    if not (equals and dot and section and key):
        raise ConfigError(f"{override!r}: expected section.key=value, as in training.max_steps=100")
    try:
        value = _Loader(text).get_single_data()
    except yaml.YAMLError:
        raise ConfigError(f"{name}: {text!r} is not a YAML value; quote it") from None
    if values.get(section) is None:
        values[section] = {}
    if not isinstance(values[section], dict):
        raise ConfigError(f"{section}: expected keys and values, found {values[section]!r}")
    values[section][key] = value
    if name in _LENGTHS and value is not None:
        # What the command line says stands for what the file says of the same.
        other = _LENGTHS[name]
        values[section] = {k: v for k, v in values[section].items() if k != other}


def _explain(error: ValidationError | TypeError, path: Path) -> str:
    """One line for each thing that pydantic found wrong."""
    if isinstance(error, TypeError):
        return f"{path}: {error}; keys and values must be plain YAML"
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{name}: unknown key; {_suggest(problem['loc'])}")
        else:
            lines.append(f"{name}: {problem['msg']}, not {problem['input']!r}")
    return "\n".join(lines)


def _suggest(location: tuple[int | str, ...]) -> str:
    *outer, key = map(str, location)
    section: type[Section] = Config
    for name in outer:
        field = section.model_fields.get(name)
        section = _section_within(field and field.annotation) or section
    known = list(section.model_fields)
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"did you mean {'.'.join([*outer, close[0]])}?"
    return f"known here: {', '.join(known)}"


def _section_within(annotation: Any) -> type[Section] | None:
    """X of annotations such as `X`, `X | None` and `dict[str, str | X]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_within, get_args(annotation))), None)


def _check_combinations(config: Config) -> None:
    parallel, training, seeds = config.parallel, config.training, config.run.seeds or []
    if config.model.source_path is None:
        _check_sizes(config)
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
    for key in ("num_layers", "hidden_size", "num_heads", "sequence_length", "norm_position"):
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
    epochs = training.epochs or (3 if config.task else 100)
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
            f"model.vocab_size: {model.vocab_size} is not the {vocab_size} of the tokens in "
            f"data.path {config.data.path}; leave the key out to take theirs"
        )
    padded = model.model_copy(update={"vocab_size": vocab_size}).padded_vocab_size
    if padded % tensor_parallel_size:
        raise ConfigError(
            f"parallel.tensor_parallel_size: {tensor_parallel_size} does not divide the "
            f"vocabulary, {vocab_size} padded to {padded}; use a power of two"
        )
    return vocab_size
