"""The typed configuration of a run: its sections, their keys, and the paper's defaults."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gpt_dist.config.yaml import write_yaml

VOCABULARY_MULTIPLE = 128
"""The vocabulary is padded to a multiple of this, so that shapes are the same in every layout."""

IGNORED_LABEL = -1
"""Label of a position at which nothing is predicted."""

_FAMILIES = Path(__file__).parents[1] / "model" / "families"

NO_SOURCE = "none"
"""Value of model.source that asks for a model from scratch."""

Form = Literal["classification", "entailment", "similarity", "multiple_choice"]
"""The forms of a task's input."""

DecayRate = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A group of keys; unknown keys are refused, and values cannot be changed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class RunConfig(Section):
    directory: str = "runs/pretrain"
    """Directory for the configuration, metrics, checkpoints and results of the run."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seed of the initial weights, of dropout and of the order of the samples."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] | None = Field(default=None, min_length=1)
    """Seeds of several fine-tuning runs, each in its own folder, for their median and spread."""


class ModelConfig(Section):
    family: str = "openai_gpt"
    """Architecture: the name of a file in gpt_dist/model/families."""
    num_layers: int = Field(default=12, ge=1)
    """Number of Transformer blocks."""
    hidden_size: int = Field(default=768, ge=1, le=2**20)
    """Width of the residual stream."""
    num_heads: int = Field(default=12, ge=1)
    """Number of attention heads; must divide hidden_size."""
    num_key_value_heads: int | None = Field(default=None, ge=1)
    """Number of key and value heads, shared by groups of attention heads; must divide num_heads.
    Left out, num_heads."""
    feed_forward_size: int | None = Field(default=None, ge=1, le=2**24)
    """Width of the feed-forward layer. Left out, the family's own choice."""
    rotary_base: float | None = Field(default=None, gt=0)
    """Base of the wavelengths of rotary position embeddings. Left out, the family's own choice."""
    norm_epsilon: float | None = Field(default=None, gt=0)
    """Term that normalisation adds to the variance. Left out, the family's own choice."""
    sequence_length: int = Field(default=512, ge=1, le=2**31)
    """Number of tokens of context, which is also the length of a training window."""
    vocab_size: int | None = Field(default=None, ge=1, le=2**31)
    """Number of tokens in the vocabulary. Left out, that of the data's tokenizer."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout rate of embeddings, attention weights and residual branches."""
    source: str | None = None
    """Weights to start from: a model folder, a sharded checkpoint, a Hugging Face folder, or the
    released GPT-1 files. Sizes left out are taken from it. `none` starts from scratch."""
    transferred_layers: int | None = Field(default=None, ge=0)
    """Number of blocks to take from model.source, counted from the first; the others start from
    scratch. Left out, all."""

    @field_validator("family")
    @classmethod
    def _check_family(cls, name: str) -> str:
        known = sorted(file.stem for file in _FAMILIES.glob("[a-z]*.py"))
        if name not in known:
            raise ValueError(f"{name!r} is unknown; choose one of {', '.join(known)}")
        return name

    @model_validator(mode="before")
    @classmethod
    def _translate_norm_position(cls, values: Any) -> Any:
        """Read the key norm_position, by which earlier versions chose one of two families."""
        if not isinstance(values, dict) or "norm_position" not in values:
            return values
        others = {key: value for key, value in values.items() if key != "norm_position"}
        position = values["norm_position"]
        family = {"post": "openai_gpt", "pre": "gpt2"}.get(str(position))
        if family is None:
            raise ValueError(f"norm_position {position!r} is not 'post' or 'pre'; give family")
        if others.setdefault("family", family) != family:
            raise ValueError(
                f"norm_position {position} means family {family}, not {others['family']}; leave "
                "norm_position out"
            )
        return others

    @property
    def source_path(self) -> Path | None:
        """Path of the weights to start from; None for a model from scratch."""
        return None if self.source in (None, NO_SOURCE) else Path(str(self.source))

    @property
    def head_size(self) -> int:
        """Number of features of an attention head."""
        return self.hidden_size // self.num_heads

    def indivisible(self, tensor_parallel_size: int = 1) -> tuple[str, int, str, int] | None:
        """Return a key that its divisor does not divide, and the divisor's key, with their values.

        None means that layers of these sizes can be split into heads and over processes.
        """
        values = {**vars(self), "tensor_parallel_size": tensor_parallel_size}
        shared = ("num_heads", "num_key_value_heads", "feed_forward_size")
        divisors = [("hidden_size", "num_heads"), ("num_heads", "num_key_value_heads")]
        for key, divisor in divisors + [(key, "tensor_parallel_size") for key in shared]:
            if values[key] and values[divisor] and values[key] % values[divisor]:
                return key, values[key], divisor, values[divisor]
        return None


class ResolvedModelConfig(ModelConfig):
    """The configuration of a model whose vocabulary is known."""

    vocab_size: int = Field(ge=1, le=2**31)

    @property
    def padded_vocab_size(self) -> int:
        """Number of rows of the embedding: vocab_size rounded up to VOCABULARY_MULTIPLE."""
        return math.ceil(self.vocab_size / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


class FolderConfig(Section):
    path: str
    """Token folder."""
    weight: float = Field(ge=0)
    """Number of samples to draw from this folder, relative to the others."""


class ChangeConfig(Section):
    step: int = Field(ge=1)
    """Number of steps after which the weights hold."""
    weights: list[Annotated[float, Field(ge=0)]]
    """A weight for each folder of data.path, in the same order."""


class DataConfig(Section):
    path: str | Annotated[list[FolderConfig], Field(min_length=1)] | None = None
    """Token folder made by `data_prep build`, or a list of several with their weights; in
    fine-tuning, the folder of the task's files."""
    changes: list[ChangeConfig] = []
    """Other weights of a list of token folders, from stated steps on."""
    tokenizer: str | None = None
    """Folder with a tokenizer, such as a model's; for fine-tuning without model.source."""

    @property
    def folders(self) -> list[FolderConfig]:
        """The folders of `path`, be it a list or not."""
        one = self.path
        return [FolderConfig(path=one, weight=1)] if isinstance(one, str) else one or []


class ParallelConfig(Section):
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Number of processes that share each layer; groups of them train on different data."""
    sequence_parallel: bool = False
    """Split activations along time where tensor parallelism leaves them whole: less memory, and a
    quarter more to send. In pre-training only; needs tensor_parallel_size of 2 or more."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """State that ZeRO partitions: 0 nothing, 1 optimiser, 2 also gradients, 3 also weights."""
    offload_optimizer: bool = False
    """Keep the optimiser state in host memory and update it there; needs zero_stage 1 or more."""


class OptimizerConfig(Section):
    learning_rate: float = Field(default=2.5e-4, gt=0)
    """Maximum learning rate, reached at the end of the warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay, applied to matrices and embeddings only."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """Decay rates of Adam's first and second moment."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Term that Adam adds to the denominator."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Norm to which larger gradients are scaled down; 0 turns clipping off."""


class ScheduleConfig(Section):
    warmup_steps: int = Field(default=2000, ge=0)
    """Number of steps in which the learning rate rises linearly from 0."""
    warmup_fraction: float | None = Field(default=None, ge=0, le=1)
    """Warm-up as a fraction of training.max_steps; give this or warmup_steps."""
    decay_steps: int | None = Field(default=None, ge=1)
    """Step at which the learning rate reaches 0. Left out, training.max_steps."""
    shape: Literal["cosine", "linear", "constant"] = "cosine"
    """Curve of the learning rate after the warm-up."""


class ResolvedScheduleConfig(ScheduleConfig):
    warmup_fraction: None = None
    decay_steps: int


class TrainingConfig(Section):
    max_steps: int | None = Field(default=None, ge=1)
    """Number of optimiser steps; give this or epochs."""
    epochs: float | None = Field(default=None, gt=0)
    """Number of passes over the training data; 100 if max_steps is left out too. With several token
    folders, a pass is as many samples as these have windows together."""
    global_batch_size: int = Field(default=64, ge=1)
    """Number of sequences in an optimiser step, over all processes."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Number of sequences in a forward pass of one process, whose gradients are accumulated.
    Left out, the whole share of the process."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of weights and activations; fp16 needs CUDA. Master weights and moments are
    always fp32."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""
    compile: bool | None = None
    """Compile the model with torch.compile. Left out, it is compiled in pre-training that is long
    enough to win back the minute that it takes, but not where ZeRO 3 partitions the weights."""
    deterministic: bool = False
    """Forbid operations whose results vary between runs."""
    check_replicas: int | None = Field(default=None, ge=1)
    """Number of steps between comparisons of what several processes hold of weights and moments,
    which is compared before each checkpoint too. Left out, never."""
    on_spike: Literal["stop", "rollback"] | None = None
    """Where the loss leaps, or a gradient in fp32 or bf16 is not finite, `stop` ends the run,
    unsaved, and `rollback` goes back to the last checkpoint and leaves the samples out. Left out,
    it goes on, and skips steps whose gradient is not finite."""
    profile: int | None = Field(default=None, ge=1, le=20)
    """Number of steps to profile after each start, from its fourth step on, into the folder
    `profile` of run.directory: a table of times, a trace, and the peak memory."""
    watchdog: float = Field(default=60, ge=0)
    """Seconds after which a process that gives no sign of life, or stands still for so much more
    than ten of its longest steps, ends the run; 0 is never."""
    resume: str = "auto"
    """`auto` resumes from the newest undamaged checkpoint in run.directory, if there is one;
    `never` starts anew; a path resumes from that checkpoint."""


class ResolvedTrainingConfig(TrainingConfig):
    max_steps: int
    epochs: None = None
    micro_batch_size: int


class ValidationConfig(Section):
    interval: int | None = Field(default=None, ge=1)
    """Number of steps between validations; the untrained and the final model are validated too.
    Left out, 1000 in pre-training and one epoch in fine-tuning."""
    max_samples: int | None = Field(default=None, ge=1)
    """Number of windows or examples to validate on, counted from the first; of several token
    folders, the windows of each. Left out, all."""


class ResolvedValidationConfig(ValidationConfig):
    interval: int


class CheckpointConfig(Section):
    interval: int | None = Field(default=None, ge=1)
    """Number of steps between checkpoints; one more is written after the last step. Left out, 1000
    in pre-training and one epoch in fine-tuning."""
    keep: int = Field(default=3, ge=1)
    """Number of recent checkpoints to keep."""
    keep_every: int | None = Field(default=None, ge=1)
    """Keep the checkpoints of steps that are multiples of this, too."""
    keep_best: bool = False
    """Write a checkpoint after each validation, too, and keep the best. Fine-tuning always does."""
    asynchronous: bool = True
    """Write checkpoints in the background; training waits only while the state is copied."""


class ResolvedCheckpointConfig(CheckpointConfig):
    interval: int


class ObjectiveConfig(Section):
    auxiliary_weight: float = Field(default=0.5, ge=0)
    """Weight of the language-model loss, which is added to the task's loss (the paper's lambda)."""
    head_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout rate of the input of the task's head."""


class LoggingConfig(Section):
    interval: int = Field(default=10, ge=1)
    """Number of steps between rows of metrics.jsonl."""


Column = str | int
"""Name of a column in the header, or its position counted from 0."""


class SplitConfig(Section):
    path: str
    """File or folder, relative to data.path."""
    header: bool | None = None
    """Replaces task.header for this file."""
    columns: dict[str, Column | list[Column]] | None = None
    """Replaces task.columns for this file."""
    submission: str | None = None
    """Name of the prediction file in GLUE's form, `….tsv`, for a split without labels. Left out,
    the name of the split."""


class ZeroShotConfig(Section):
    prompt: str = ""
    """Text put after each example, which the words continue."""
    words: list[str] | None = None
    """One word for each of task.labels, in the same order; the likeliest one is the prediction."""
    likely_label: str | None = None
    """Label of texts with a high average log-probability, in place of words; for two labels. The
    threshold is the one that scores best on `train`."""


class TaskConfig(Section):
    name: str
    """Name of the task in tables."""
    form: Form
    """Input transformation (Radford et al. 2018, section 3.3)."""
    format: Literal["tsv", "csv", "jsonl", "race"]
    """Format of the files; `race` is a folder with one JSON file for each passage."""
    header: bool = True
    """Whether the first line of a tsv or csv file names the columns."""
    quoting: bool | None = None
    """Whether double quotes enclose fields. Left out, in csv files only."""
    columns: dict[str, Column | list[Column]] = {}
    """Column or columns of each role. The roles are `text`; `premise`, `hypothesis`; `a`, `b`; or
    `context`, `question` (optional), `choices`; and in each form `label` and `id` (optional).
    Several columns of one role are joined by a space, except for `choices`: these have a column
    each, or one column with a list. A row may leave its last choices blank, but needs two."""
    splits: dict[str, str | SplitConfig]
    """Files relative to data.path: `train`; `dev` or several `dev_…`, to evaluate; and `test` or
    several `test_…`, to predict, which may be missing."""
    dev_fraction: float = Field(default=0, ge=0, lt=1)
    """Fraction of `train` to hold out, chosen by hash, if there is no `dev`."""
    labels: list[str] | None = None
    """Names of the classes, in the order of the head's outputs. Left out, `label` is a score. In
    multiple choice, the names of the choices in their order. Left out, their numbers from 0."""
    ignored_labels: list[str] = []
    """Labels of rows to leave out, because they have no gold label."""
    score_range: tuple[float, float] | None = None
    """Lowest and highest score. Data outside are refused; predictions are clipped."""
    malformed_rows: int = Field(default=0, ge=0)
    """Number of rows of a labelled file that may have too few or too many fields or an empty text,
    and are left out; one more is an error."""
    metric: Literal["accuracy", "f1", "matthews", "pearson", "spearman"]
    """Metric that chooses the weights to keep, and that tables show. For f1, the second of two
    labels is the positive one."""
    paper: dict[str, float] = {}
    """The paper's values of the metric in per cent, by split; `dev` means all dev splits together.
    Another metric on the command line drops them."""
    zero_shot: ZeroShotConfig | None = None
    """Classification of a text without fine-tuning (section 5 of the paper). Multiple choice needs
    no setting: it takes the choice with the highest average log-probability."""


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
    """The task of fine-tuning; left out, the run is pre-training."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Settings of the loss in fine-tuning."""


AnyConfig = TypeVar("AnyConfig", bound=Config)
"""A configuration, resolved or not, where a function returns what it was given."""


class ResolvedConfig(Config):
    """A configuration whose source, launch and data are known, with nothing left to defaults."""

    model: ResolvedModelConfig
    schedule: ResolvedScheduleConfig
    training: ResolvedTrainingConfig
    validation: ResolvedValidationConfig
    checkpoint: ResolvedCheckpointConfig

    def save(self, path: Path) -> None:
        """Write the configuration as YAML."""
        path.write_text(write_yaml(self.model_dump(mode="json")), encoding="utf-8")
