"""`results.json` of a fine-tuning run: what was trained on what, and how it scored."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from gpt_dist.data.tasks.reading import DEV
from gpt_dist.errors import DataError, first_problem
from gpt_dist.files.folders import sync, write_synced

RESULTS_NAME = "results.json"
FORMAT: Final = "gpt_dist.results"
VERSION: Final = 1

Scores = dict[str, dict[str, FiniteFloat]]
"""By split, then by metric, as fractions."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunFacts(_Record):
    """What a run was, whatever its seed."""

    format: Literal["gpt_dist.results"] = FORMAT
    version: Literal[1] = VERSION
    task: str
    metric: str
    """The one that decided which weights were kept."""
    form: str
    source: str
    """As model.source: `none` is a model without pre-training."""
    source_step: NonNegativeInt | None
    auxiliary_weight: NonNegativeFloat
    transferred_layers: NonNegativeInt | None
    """None is all."""
    num_layers: PositiveInt
    hidden_size: PositiveInt
    parameters: PositiveInt
    data_digest: str
    """Stands for every example, encoded."""
    train_examples: PositiveInt
    examples: dict[str, PositiveInt]
    """By split that was scored."""
    max_steps: PositiveInt
    hyperparameters: dict[str, float | int | str | tuple[float, ...]] = {}
    """Keys of the configuration that decide a score beside those above, by their dotted names."""
    versions: dict[str, str]
    paper: dict[str, float]
    """What the paper reports, in per cent, by split."""


class SeedResult(_Record):
    """What one seed came to."""

    seed: NonNegativeInt
    best_step: NonNegativeInt
    scores: Scores


class Results(RunFacts):
    """Content of `results.json`."""

    seeds: tuple[SeedResult, ...] = Field(min_length=1)
    median: Scores
    spread: Scores
    """The highest less the lowest."""

    @classmethod
    def of(cls, facts: RunFacts, seeds: Sequence[SeedResult]) -> Self:
        """The results of a run's seeds, each scored on the same splits."""
        return cls(
            **facts.model_dump(),
            seeds=tuple(seeds),
            median=_over_seeds(seeds, statistics.median),
            spread=_over_seeds(seeds, _spread),
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that `write` made; raises DataError naming it."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); launch/finetune.py writes it at the "
                "end of a run"
            ) from None
        except ValidationError as error:
            raise DataError(
                f"{path}: not results of {FORMAT} version {VERSION}: {first_problem(error)}; copy "
                "it again, or run launch/finetune.py again"
            ) from None

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all; raises DataError where it cannot be written."""
        partial = path.with_name(f".{path.name}.partial")
        try:
            write_synced(partial, (self.model_dump_json(indent=2) + "\n").encode())
            partial.rename(path)
            sync(path.parent)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise DataError(
                f"{path}: cannot be written ({error.strerror}); make room or correct its "
                "permissions, and start the run again, which goes on from its last checkpoint"
            ) from None

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
        for name, function in (("median", statistics.median), ("spread", _spread)):
            if getattr(self, name) != _over_seeds(self.seeds, function):
                raise ValueError(f"{name} is not that of the seeds")
        return self


def _over_seeds(
    seeds: Sequence[SeedResult], function: Callable[[list[float]], float]
) -> dict[str, dict[str, float]]:
    return {
        split: {
            metric: function([one.scores[split][metric] for one in seeds]) for metric in metrics
        }
        for split, metrics in seeds[0].scores.items()
    }


def _spread(values: list[float]) -> float:
    return max(values) - min(values)
