"""Print fine-tuned runs side by side, beside what the paper reports."""

import sys
from argparse import Namespace
from pathlib import Path

from rich.console import Console

from gpt_dist import command
from gpt_dist.finetune.scoreboard import ablation_tables, find_results, markdown, score_table

EXAMPLE = "python launch/scoreboard.py runs/* --markdown"
PIPE_WIDTH = 200


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
