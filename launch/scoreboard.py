"""Print fine-tuned runs side by side, beside what the paper reports."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

from gpt_dist import command
from gpt_dist.config import NO_SOURCE
from gpt_dist.data.tasks.reading import DEV
from gpt_dist.errors import DataError
from gpt_dist.finetune.results import RESULTS_NAME, Results

EXAMPLE = "python launch/scoreboard.py runs/* --markdown"
PIPE_WIDTH = 200

_TEXT_COLUMNS = ("run", "task", "metric", "source", "variant", "tasks")
_WHOLE_COLUMNS = ("task", "metric", "difference")
_PAPER_WEIGHT = 0.5
_NOTHING = "–"

_Variant = tuple[bool, float, int | None]
"""Whether there was pre-training, the auxiliary weight, and how many layers were transferred, if
not all: one of the paper's ablations, or another choice of the same kind."""

_ABLATIONS: dict[_Variant, float] = {
    (True, 0.5, None): 74.7,
    (True, 0.0, None): 75.0,
    (False, 0.5, None): 59.9,
}
"""Averages over tasks by variant, in per cent (Radford et al. 2018, table 5)."""

_Experiment = tuple[str, str, int, str]
"""Task, data, steps and hyper-parameters, which compared variants share."""


def find_results(paths: Iterable[Path]) -> tuple[dict[str, Results], int]:
    """Read the results of runs, given by directory or file, and count the other paths.

    A run's name is that of its directory, or the whole path if two directories share a name.
    DataError is raised if no path is a fine-tuning run, a path is missing, or a file is damaged.
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
    tasks = [run.task for run in runs.values()]
    rows = []
    for name, run in sorted(runs.items(), key=lambda item: tasks.index(item[1].task)):
        # The splits that the paper has, or else all, dev first.
        splits = [split for split in run.paper if split in run.median] or sorted(run.median)
        rows += [_score_row(name, run, split) for split in splits]
    scores = "score", "paper", "difference"
    return _table(
        "Fine-tuned",
        ("run", "task", "metric", "source", "layers", "λ", "seeds", *scores),
        rows,
        "In per cent: the median of the seeds (lowest to highest). Scores are of dev sets unless a "
        "test set is named, the paper's of test sets. Layers: transferred ones.",
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


def markdown(table: Table) -> str:
    """Return a table in GitHub's Markdown."""
    header = [str(column.header) for column in table.columns]
    rule = ["---" if column.justify == "left" else "---:" for column in table.columns]
    cells = ([str(cell).replace("|", r"\|") for cell in each.cells] for each in table.columns)
    rows = [header, rule, *zip(*cells, strict=True)]
    lines = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([f"**{table.title}**", "", *lines, "", str(table.caption)])


def _table(
    title: str, header: tuple[str, ...], rows: Iterable[tuple[str, ...]], caption: str
) -> Table:
    """Return a table for a console that takes no markup."""
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for name in header:
        table.add_column(
            name,
            justify="left" if name in _TEXT_COLUMNS else "right",
            overflow="fold",
            no_wrap=name in _WHOLE_COLUMNS,
        )
    for row in rows:
        table.add_row(*row)
    return table


def _score_row(name: str, run: Results, split: str) -> tuple[str, ...]:
    median, paper = 100 * run.median[split][run.metric], run.paper.get(split)
    values = [100 * one.scores[split][run.metric] for one in run.seeds]
    several = f" ({_rounded(min(values))} to {_rounded(max(values))})" if values[1:] else ""
    layers = "all" if run.transferred_layers is None else str(run.transferred_layers)
    return (
        name,
        run.task if split == DEV else f"{run.task} {split}",
        run.metric,
        _short(run.source),
        _NOTHING if run.source == NO_SOURCE else layers,
        f"{run.auxiliary_weight:g}",
        str(len(values)),
        _rounded(median) + several,
        _rounded(paper),
        _rounded(None if paper is None else median - paper, "+"),
    )


def _short(source: str) -> str:
    """Return the last two names of a path, without the folder `checkpoints`."""
    parts = [part for part in Path(source).parts if part != "checkpoints"]
    return str(Path(*parts[-2:]))


def _model(run: Results) -> tuple[str, int | None, int, int]:
    return run.source, run.source_step, run.num_layers, run.hidden_size


def _ablation_table(runs: Sequence[Results]) -> Table | None:
    """Compare each variant with the first over the experiments that both have."""
    scores = _scores_by_variant(runs)
    first, *others = sorted(scores, key=_rank)
    others = [variant for variant in others if scores[variant].keys() & scores[first].keys()]
    if not others:
        return None
    shared = [task for task in scores[first] if any(task in scores[other] for other in others)]
    rows = []
    for variant in (first, *others):
        tasks = [task for task in shared if task in scores[variant]]
        own, beside = (mean(mean(scores[one][task]) for task in tasks) for one in (variant, first))
        compared = (None, None) if variant == first else (beside, own - beside)
        names = list(dict.fromkeys(task for task, *_ in tasks))
        rows.append(
            (
                _name(variant, runs[0].num_layers),
                str(len(names)) if len(names) > 3 else ", ".join(names),
                _rounded(own),
                _rounded(compared[0]),
                _rounded(compared[1], "+"),
                _rounded(_ABLATIONS.get(variant)),
            )
        )
    model = next(run for run in runs if run.source != NO_SOURCE)
    return _table(
        f"Ablations of {_short(model.source)}, {model.num_layers} × {model.hidden_size}",
        ("variant", "tasks", "average", "first, same tasks", "difference", "paper"),
        rows,
        "Averages of the medians in per cent, of each variant over the tasks that it shares with "
        "the first: the same data, steps and hyper-parameters. The paper averages over its own "
        "tasks.",
    )


def _scores_by_variant(runs: Sequence[Results]) -> dict[_Variant, dict[_Experiment, list[float]]]:
    scores: dict[_Variant, dict[_Experiment, list[float]]] = {}
    for run in runs:
        pretrained = run.source != NO_SOURCE
        partial = pretrained and run.transferred_layers != run.num_layers
        layers = run.transferred_layers if partial else None
        variant = pretrained, run.auxiliary_weight, layers
        settings = json.dumps(run.hyperparameters, sort_keys=True)
        experiment = run.task, run.data_digest, run.max_steps, settings
        split = DEV if DEV in run.median else min(run.median)  # `dev` covers all dev splits
        found = scores.setdefault(variant, {}).setdefault(experiment, [])
        found.append(100 * run.median[split][run.metric])
    return scores


def _rank(variant: _Variant) -> tuple[bool, bool, bool, float, int]:
    """Return a sort key that puts the paper's full model first."""
    pretrained, weight, layers = variant
    return not pretrained, layers is not None, weight != _PAPER_WEIGHT, weight, layers or 0


def _name(variant: _Variant, num_layers: int) -> str:
    pretrained, weight, layers = variant
    if not pretrained:
        name = "no pre-training"
    elif layers is not None:
        name = f"{layers} of {num_layers} layers"
    else:
        name = "full" if weight == _PAPER_WEIGHT else "pre-trained"
    return f"{name}, λ = {weight:g}"


def _rounded(value: float | None, sign: str = "") -> str:
    """Return a number with one decimal, also signed if `sign` is "+"; a dash for None."""
    return _NOTHING if value is None else f"{value:{sign}z.1f}".replace("-", "−")


def parse() -> Namespace:
    parser = command.argument_parser(__doc__ or "", EXAMPLE)
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="the directory of a fine-tuning run, or its results.json; others are skipped",
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print tables to paste into documents"
    )
    return parser.parse_args()


def main(arguments: Namespace) -> None:
    runs, skipped = find_results(arguments.runs)
    console = Console(
        highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH
    )
    for number, table in enumerate([score_table(runs), *ablation_tables(list(runs.values()))]):
        if number:
            print()
        if arguments.markdown:
            print(markdown(table))
        else:
            console.print(table)
    if skipped:
        print(f"skipped: {skipped} without results of fine-tuning", file=sys.stderr)


if __name__ == "__main__":
    command.run(parse, main)
