"""Do what a command line of `python -m data_prep` asks for.

Each command imports what it needs: the refusal of one does not wait for the libraries of others.
"""

import argparse
import json
import os
import time
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from data_prep.manifest import BuiltFolder
from data_prep.pool import Pool
from data_prep.progress import Progress, amount
from gpt_dist.data.tokens.folder import files_of
from gpt_dist.errors import DataError
from gpt_dist.files.folders import write_result

if TYPE_CHECKING:
    from data_prep.book_tasks import BookTasks


def run(options: argparse.Namespace, pool: Pool) -> None:
    """Run one command.

    Raises:
        GptDistError: An input, an option or the disk is at fault, or a token folder is damaged.
    """
    commands = {
        "build": _build,
        "verify": _verify,
        "report": _report,
        "contamination": _contamination,
        "tasks": _tasks,
    }
    commands[options.command](options, pool)


def _build(options: argparse.Namespace, pool: Pool) -> None:
    from data_prep.build.build import build
    from data_prep.build.estimate import estimate, print_estimate
    from data_prep.build.summary import print_summary
    from data_prep.request import build_request

    begin = time.monotonic()
    request = build_request(options)
    if options.dry_run:
        made = estimate(request, pool.workers, Progress())
        print_estimate(made, options.output, pool.workers)
        return
    built = build(request, pool, Progress())
    seconds = time.monotonic() - begin
    print_summary(built.manifest, built.held_out, options.output, seconds)


def _verify(options: argparse.Namespace, pool: Pool) -> None:
    from data_prep.verify import find_damage

    folder = BuiltFolder(options.folder)
    total = sum(entry.bytes for _, entry in files_of(folder.manifest))
    with Progress().stage("verifying", "bytes", total) as advance:
        damaged = list(find_damage(folder, pool.map, advance))
    if damaged:
        raise DataError(
            f"{options.folder}: damaged: {', '.join(damaged)}; copy the folder again, or build it "
            "again from its sources"
        )
    print(f"{options.folder}: every file is undamaged")


def _contamination(options: argparse.Namespace, pool: Pool) -> None:
    from data_prep.contamination.overlap import find_contamination
    from data_prep.contamination.table import print_contamination
    from data_prep.contamination.texts import TaskFiles

    begin = time.monotonic()
    folder = BuiltFolder(options.folder)
    paths = tuple(options.files)
    files = TaskFiles(paths, tuple(options.column), options.header)
    if options.json:
        _check_result(options.json)
    result = find_contamination(folder, files, options.max_documents, pool, Progress())
    print_contamination(result, options.folder, time.monotonic() - begin)
    if options.json:
        write_result(options.json, result.model_dump_json(indent=1) + "\n")
        print(f"Every text that was found: {options.json}")


def _report(options: argparse.Namespace, pool: Pool) -> None:
    from data_prep.contamination.overlap import read_contamination
    from data_prep.page.page import make_page

    folder = BuiltFolder(options.folder)
    path = options.folder.resolve()
    output = options.output or path.with_name(f"{path.name}-report.html")
    found = options.contamination
    contamination = read_contamination(found, folder) if found else None
    _check_result(output)
    page = make_page(folder, contamination, options.seed, pool, Progress())
    write_result(output, page)
    print(f"{output}: {len(page.encode()) / 1000:,.0f} kB, made of {options.folder}")


def _check_result(path: Path) -> None:
    """Raise DataError if a result file cannot be written."""
    folder = path.resolve().parent
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise DataError(f"{path}: cannot be written; give a file in a folder that can be written")


def _tasks(options: argparse.Namespace, _pool: Pool) -> None:
    from data_prep.book_tasks import make_tasks

    made = make_tasks(
        options.inputs, options.output, options.examples, options.lowercase, Progress()
    )
    _print_tasks(made, options.output)


def _print_tasks(made: "BookTasks", output: Path) -> None:
    table = Table(title=f"Tasks {output}", show_header=False, title_justify="left")
    table.add_row("books", f"{made.books:,}")
    if made.unnamed:
        table.add_row("left out: not Author___Title.txt", amount(made.unnamed, "files"))
    if made.unread:
        table.add_row("left out: not read", amount(made.unread, "files"))
    table.add_row("authors", ", ".join(made.authors))
    if made.authors_left_out:
        table.add_row("left out: too little text", ", ".join(made.authors_left_out))
    for task, splits in made.examples.items():
        counts = ", ".join(f"{count:,} {split}" for split, count in splits.items())
        table.add_row(f"{task}/", f"{counts} examples")
    console = Console(highlight=False, markup=False)
    console.print(table)
    labels = json.dumps(made.authors, ensure_ascii=False)
    console.print(
        "Next:  deepspeed launch/finetune.py configs/finetune/book-author.yaml "
        f"{quote(f'data.path={output}/author')} model.source=runs/first "
        f"{quote(f'task.labels={labels}')}",
        soft_wrap=True,
    )
