"""Compare fine-tuned runs with one another and with the paper."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from rich.table import Table as RichTable

from gpt_dist.config import NO_SOURCE
from gpt_dist.data.tasks.reading import DEV
from gpt_dist.errors import DataError
from gpt_dist.finetune.results import RESULTS_NAME, Results

_TEXT_COLUMNS = ("run", "task", "metric", "source", "variant", "tasks")
_WHOLE_COLUMNS = ("task", "metric", "difference")
_PAPER_WEIGHT = 0.5
_NOTHING = "–"
_FEW = 3

_ABLATIONS: dict[tuple[bool, float, int | None], float] = {
    (True, 0.5, None): 74.7,
    (True, 0.0, None): 75.0,
    (False, 0.5, None): 59.9,
}
"""Averages over tasks, in per cent (Radford et al. 2018, table 5)."""

_Experiment = tuple[str, str, int, str]
"""Task, data, steps and hyper-parameters, which compared variants share."""


@dataclass(frozen=True)
class Table:
    """Table of texts."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str

    def rich(self) -> RichTable:
        """Return the table for a console that takes no markup."""
        table = RichTable(
            title=self.title, title_justify="left", caption=self.caption, caption_justify="left"
        )
        for name in self.header:
            table.add_column(
                name,
                justify="left" if name in _TEXT_COLUMNS else "right",
                overflow="fold",
                no_wrap=name in _WHOLE_COLUMNS,
            )
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown."""
        rule = ["---" if name in _TEXT_COLUMNS else "---:" for name in self.header]
        rows = [self.header, rule, *([cell.replace("|", r"\|") for cell in r] for r in self.rows)]
        lines = (f"| {' | '.join(row)} |" for row in rows)
        return "\n".join([f"**{self.title}**", "", *lines, "", self.caption])


@dataclass(frozen=True)
class _Variant:
    """Variant of training: one of the paper's ablations, or another choice of the same kind."""

    pretrained: bool
    auxiliary_weight: float
    layers: int | None  # transferred; None for all

    @property
    def paper(self) -> float | None:
        return _ABLATIONS.get((self.pretrained, self.auxiliary_weight, self.layers))

    @property
    def rank(self) -> tuple[bool, bool, bool, float, int]:
        """Sort key that puts the paper's full model first."""
        other_weight = self.auxiliary_weight != _PAPER_WEIGHT
        partial = self.layers is not None
        return not self.pretrained, partial, other_weight, self.auxiliary_weight, self.layers or 0


def find_results(paths: Iterable[Path]) -> tuple[dict[str, Results], int]:
    """Read the results of runs, given by directory or file, and count the other paths.

    A run's name is that of its directory, or the whole path if two directories share a name.

    Raises:
        DataError: No path is a fine-tuning run, a path is missing, or a file is damaged.
    """
    found: dict[Path, Results] = {}
    skipped = 0
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such directory or file; give those of fine-tuning runs")
        file = path / RESULTS_NAME if path.is_dir() else path
        if file.suffix != Path(RESULTS_NAME).suffix or not file.exists():
            skipped += 1
        elif file.resolve().parent not in found:
            found[file.resolve().parent] = Results.read(file)
    if not found:
        raise DataError(
            f"no finished fine-tuning run among {skipped} given: no {RESULTS_NAME} found; "
            "launch/finetune.py makes them"
        )
    names = [directory.name for directory in found]
    return {
        directory.name if names.count(directory.name) == 1 else str(directory): results
        for directory, results in found.items()
    }, skipped


def score_table(runs: Mapping[str, Results]) -> Table:
    """Return the table of every run's splits; runs of one task follow one another."""
    tasks = list(dict.fromkeys(run.task for run in runs.values()))
    by_task = sorted(runs.items(), key=lambda item: tasks.index(item[1].task))
    return Table(
        title="Fine-tuned",
        header=(
            *("run", "task", "metric", "source", "layers", "λ", "seeds"),
            *("score", "paper", "difference"),
        ),
        rows=tuple(_score_row(name, run, split) for name, run in by_task for split in _splits(run)),
        caption=(
            "In per cent: the median of the seeds (lowest to highest). Scores are of dev "
            "sets unless a test set is named, the paper's of test sets. Layers: transferred ones."
        ),
    )


def ablation_tables(runs: Sequence[Results]) -> list[Table]:
    """Return a table of ablations for each pre-trained model that has several variants."""
    tables = []
    for model in dict.fromkeys(_model(run) for run in runs if run.source != NO_SOURCE):
        untrained = NO_SOURCE, None, *model[2:]
        compared = [run for run in runs if _model(run) in (model, untrained)]
        if table := _ablation_table(compared):
            tables.append(table)
    return tables


def _score_row(name: str, run: Results, split: str) -> tuple[str, ...]:
    median = run.median[split][run.metric]
    values = [one.scores[split][run.metric] for one in run.seeds]
    paper = run.paper.get(split)
    several = f" ({_per_cent(min(values))} to {_per_cent(max(values))})" if values[1:] else ""
    return (
        name,
        run.task if split == DEV else f"{run.task} {split}",
        run.metric,
        _short(run.source),
        _layers(run),
        f"{run.auxiliary_weight:g}",
        str(len(values)),
        _per_cent(median) + several,
        _NOTHING if paper is None else f"{paper:.1f}",
        _NOTHING if paper is None else _signed(100 * median - paper),
    )


def _splits(run: Results) -> list[str]:
    """Return the splits to show: those that the paper has, or else all, dev first."""
    return [split for split in run.paper if split in run.median] or sorted(run.median)


def _layers(run: Results) -> str:
    if run.source == NO_SOURCE:
        return _NOTHING
    return "all" if run.transferred_layers is None else str(run.transferred_layers)


def _short(source: str) -> str:
    """Return the last two names of a path, without the folder `checkpoints`."""
    parts = [part for part in Path(source).parts if part != "checkpoints"]
    return str(Path(*parts[-2:]))


def _model(run: Results) -> tuple[str, int | None, int, int]:
    return run.source, run.source_step, run.num_layers, run.hidden_size


def _ablation_table(runs: Sequence[Results]) -> Table | None:
    """Compare each variant with the first over the experiments that both have."""
    scores: dict[_Variant, dict[_Experiment, list[float]]] = {}
    for run in runs:
        of_task = scores.setdefault(_variant(run), {}).setdefault(_experiment(run), [])
        of_task.append(100 * run.median[_headline(run)][run.metric])
    first, *others = sorted(scores, key=lambda variant: variant.rank)
    others = [variant for variant in others if scores[variant].keys() & scores[first].keys()]
    if not others:
        return None
    num_layers = runs[0].num_layers
    shared = [task for task in scores[first] if any(task in scores[other] for other in others)]
    rows = [_ablation_row(first, first, shared, scores, num_layers)]
    for other in others:
        tasks = [task for task in shared if task in scores[other]]
        rows.append(_ablation_row(other, first, tasks, scores, num_layers))
    trained = next(run for run in runs if run.source != NO_SOURCE)
    return Table(
        title=f"Ablations of {_short(trained.source)}, {num_layers} × {trained.hidden_size}",
        header=("variant", "tasks", "average", "first, same tasks", "difference", "paper"),
        rows=tuple(rows),
        caption=(
            "Averages of the medians in per cent, of each variant over the tasks that it shares "
            "with the first: the same data, steps and hyper-parameters. The paper averages over "
            "its own tasks."
        ),
    )


def _ablation_row(
    variant: _Variant,
    first: _Variant,
    tasks: Sequence[_Experiment],
    scores: dict[_Variant, dict[_Experiment, list[float]]],
    num_layers: int,
) -> tuple[str, ...]:
    names = list(dict.fromkeys(task for task, *_ in tasks))
    own = mean(mean(scores[variant][task]) for task in tasks)
    beside = mean(mean(scores[first][task]) for task in tasks)
    return (
        _name(variant, num_layers),
        str(len(names)) if len(names) > _FEW else ", ".join(names),
        f"{own:.1f}",
        _NOTHING if variant == first else f"{beside:.1f}",
        _NOTHING if variant == first else _signed(own - beside),
        _NOTHING if variant.paper is None else f"{variant.paper:.1f}",
    )


def _experiment(run: Results) -> _Experiment:
    return run.task, run.data_digest, run.max_steps, json.dumps(run.hyperparameters, sort_keys=True)


def _variant(run: Results) -> _Variant:
    all_layers = run.transferred_layers in (None, run.num_layers) or run.source == NO_SOURCE
    layers = None if all_layers else run.transferred_layers
    return _Variant(run.source != NO_SOURCE, run.auxiliary_weight, layers)


def _name(variant: _Variant, num_layers: int) -> str:
    if not variant.pretrained:
        name = "no pre-training"
    elif variant.layers is not None:
        name = f"{variant.layers} of {num_layers} layers"
    else:
        name = "full" if variant.auxiliary_weight == _PAPER_WEIGHT else "pre-trained"
    return f"{name}, λ = {variant.auxiliary_weight:g}"


def _headline(run: Results) -> str:
    """Return the split that stands for the task: `dev` covers all dev splits."""
    return DEV if DEV in run.median else min(run.median)


def _per_cent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _signed(difference: float) -> str:
    return f"{difference:+z.1f}".replace("-", "−")
