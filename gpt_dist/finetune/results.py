"""Read and write `results.json` of a fine-tuning run: its settings and its scores."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import (
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)
from pydantic_core import from_json

from gpt_dist.data.tasks.reading import DEV
from gpt_dist.errors import DataError, first_problem
from gpt_dist.files.entries import Record, read_small
from gpt_dist.files.folders import write_result

RESULTS_NAME = "results.json"

ScoresBySplit = dict[str, dict[str, FiniteFloat]]
"""Scores as fractions, by split, then by metric."""


class SeedResult(Record):
    """Result of one seed."""

    seed: NonNegativeInt
    best_step: NonNegativeInt
    scores: ScoresBySplit


class Results(Record):
    """Content of `results.json`: the facts that the seeds of a run share, and their scores."""

    format: Literal["gpt_dist.results"] = "gpt_dist.results"
    version: Literal[1] = 1
    task: str
    metric: str
    """Metric that decided which weights were kept."""
    form: str
    source: str
    """Value of model.source; `none` is a model without pre-training."""
    source_step: NonNegativeInt | None
    auxiliary_weight: NonNegativeFloat
    transferred_layers: NonNegativeInt | None
    """Number of layers taken from the source; None for all."""
    num_layers: PositiveInt
    hidden_size: PositiveInt
    parameters: PositiveInt
    data_digest: str
    """Hash of all encoded examples."""
    train_examples: PositiveInt
    examples: dict[str, PositiveInt]
    """Number of examples of each scored split."""
    max_steps: PositiveInt
    hyperparameters: dict[str, float | int | str | tuple[float, ...]] = Field(default_factory=dict)
    """Other keys of the configuration that affect a score, by dotted name."""
    versions: dict[str, str]
    paper: dict[str, float]
    """Scores that the paper reports, in per cent, by split."""
    seeds: tuple[SeedResult, ...] = Field(min_length=1)
    median: ScoresBySplit
    spread: ScoresBySplit
    """Highest score minus lowest score of the seeds."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that `write` made; raise DataError if it cannot be read or is damaged."""
        try:
            return cls.model_validate(from_json(read_small(path)))
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); launch/finetune.py writes it at the "
                "end of a run"
            ) from None
        except ValueError as error:
            raise DataError(
                f"{path}: not results of gpt_dist.results version 1: {first_problem(error)}; "
                "copy it again, or run launch/finetune.py again"
            ) from None

    def write(self, path: Path) -> None:
        """Write the file atomically; raise DataError if it cannot be written."""
        write_result(path, self.model_dump_json(indent=2) + "\n")

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        splits = {split: metrics.keys() for split, metrics in self.seeds[0].scores.items()}
        if not any(split.startswith(DEV) for split in splits):
            raise ValueError("no score of a dev split")
        if not all(self.metric in metrics for metrics in splits.values()):
            raise ValueError(f"a split without its {self.metric}")
        for one in self.seeds:
            if {split: metrics.keys() for split, metrics in one.scores.items()} != splits:
                raise ValueError(f"seed {one.seed} has other scores than seed {self.seeds[0].seed}")
        if (self.median, self.spread) != median_and_spread(self.seeds):
            raise ValueError("median or spread is not that of the seeds")
        return self


def median_and_spread(seeds: Sequence[SeedResult]) -> tuple[ScoresBySplit, ScoresBySplit]:
    """Return the median of the seeds' scores, and the highest minus the lowest."""
    median: ScoresBySplit = {}
    spread: ScoresBySplit = {}
    for split, metrics in seeds[0].scores.items():
        values = {metric: [one.scores[split][metric] for one in seeds] for metric in metrics}
        median[split] = {metric: statistics.median(each) for metric, each in values.items()}
        spread[split] = {metric: max(each) - min(each) for metric, each in values.items()}
    return median, spread
