"""The typed configuration of a run: its sections, their keys, what each key takes.

Defaults are the paper's of pre-training; FINE_TUNING_DEFAULTS has those that a task changes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from gpt_dist.config.yaml import write_yaml

VOCABULARY_MULTIPLE = 128
"""The vocabulary is padded to this multiple in every layout, so that shapes do not depend on it."""

NO_SOURCE = "none"
"""The value of model.source that asks for a model from scratch."""

FINE_TUNING_DEFAULTS = {
    "run.directory": "runs/finetune",
    "optimizer.learning_rate": 6.25e-5,
    "schedule.warmup_fraction": 0.002,
    "schedule.shape": "linear",
    "training.epochs": 3,
    "training.global_batch_size": 32,
}
"""Defaults where a task is given (Radford et al. 2018, section 4.1)."""

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
    """Passes over the training windows or examples; 100 when neither is given."""
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
    """Name of the prediction file in GLUE's form, `….tsv`, for a split without labels. Left out, it
    is that of the split."""


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
    space, but `choices` are one each, or a list in one column; where a row has fewer than the
    others, but two at least, its last columns are blank."""
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
    """What decides which weights are kept, and what the table shows. Of f1, the second of two
    labels is the positive one."""
    paper: dict[str, float] = {}
    """What the paper reports of `metric`, in per cent, by split; `dev` is all of them. Another
    metric on the command line drops it."""
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
        path.write_text(write_yaml(self.model_dump(mode="json")), encoding="utf-8")
