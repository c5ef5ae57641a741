"""Run the commands of `python -m data_prep`."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep.arguments import make_parser
from data_prep.book_tasks import BookTasks, make_tasks
from data_prep.build.build import BuildRequest, build
from data_prep.build.estimate import estimate, print_estimate
from data_prep.build.summary import print_summary
from data_prep.contamination.overlap import find_contamination, read_contamination
from data_prep.contamination.table import print_contamination
from data_prep.contamination.texts import TaskFiles
from data_prep.duplicates import PASSAGE_WORDS, THRESHOLD
from data_prep.page.page import make_page
from data_prep.pool import open_pool
from data_prep.progress import Progress
from data_prep.reading.documents import ReadOptions
from data_prep.steps import RECIPES, Steps
from data_prep.verify import find_damage
from gpt_dist.data.tokenizers.folder import (
    FolderTokenizer,
    knows_only_lower_case,
    open_tokenizer,
)
from gpt_dist.data.tokens.folder import BuildOptions, TokenFolder, files_of
from gpt_dist.errors import ConfigError, DataError, GptDistError
from gpt_dist.files.folders import write_result

_DUPLICATES = {
    "books": {"near_duplicates": THRESHOLD, "passage_words": PASSAGE_WORDS},
    "plain": {"near_duplicates": 0.0, "passage_words": 0},
}
"""The options of duplicates, and their defaults, by recipe."""

_TRAINING = {"vocab_size": 40_000, "tokenizer_sample_mb": 20, "seed": 0}
"""The options of training a tokenizer, and their defaults."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0 for success, 2 for damage or an error of the user, 130 if interrupted.
    """
    options = make_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    commands = {
        "build": _build,
        "verify": _verify,
        "report": _report,
        "contamination": _contamination,
        "tasks": _tasks,
    }
    try:
        return commands[options.command](options)
    except GptDistError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenExecutor:
        print(
            "error: a worker process was killed, perhaps because memory ran out; run the command "
            "again to continue, with fewer --workers",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        more = "; run the same command again to continue" if options.command == "build" else ""
        print(f"error: interrupted{more}", file=sys.stderr)
        return 130


def _build(options: argparse.Namespace) -> int:
    begin = time.monotonic()
    request = _request(options)
    if options.dry_run:
        made = estimate(request, options.workers, Progress())
        print_estimate(made, options.output, options.workers)
        return 0
    with open_pool(options.workers) as pool:
        if pool is None:
            return 0
        manifest = build(request, pool, Progress())
    print_summary(manifest, options.output, time.monotonic() - begin)
    return 0


def _request(options: argparse.Namespace) -> BuildRequest:
    """Return the build that the command line asks for.

    Raises:
        ConfigError: An option of training a tokenizer is given beside --tokenizer.
    """
    values = vars(options)
    steps = _steps(options)
    for name, value in _DUPLICATES[options.recipe].items():
        values[name] = value if values[name] is None else values[name]
    if options.tokenizer is None:
        for name, value in _TRAINING.items():
            values[name] = value if values[name] is None else values[name]
    else:
        for name in _TRAINING:
            if values[name] is not None:
                raise ConfigError(
                    f"--{name.replace('_', '-')}: {values[name]} is for training a tokenizer, but "
                    f"--tokenizer {options.tokenizer} gives one; leave one of them out"
                )
        tokenizer = open_tokenizer(options.tokenizer)
        values["vocab_size"] = tokenizer.full_vocab_size
        steps = _follow(tokenizer, options.lowercase, steps)
    values["steps"], values["lowercase"] = steps.model_dump(), steps.lowercase
    return BuildRequest(
        inputs=tuple(options.inputs),
        output=options.output,
        options=BuildOptions.model_validate(options),
        reading=ReadOptions(
            text_field=options.text_field, separator=options.separator, encoding=options.encoding
        ),
        steps=steps,
        tokenizer=options.tokenizer,
    )


def _follow(tokenizer: FolderTokenizer, lowercase: bool | None, steps: Steps) -> Steps:
    """Return the steps with the case that a given tokenizer was made for.

    Raises:
        ConfigError: The user asks for the other case.
    """
    is_lower = knows_only_lower_case(tokenizer)
    if is_lower is None:
        return steps
    if lowercase is not None and lowercase != is_lower:
        made_for, flag = ("lower", "no-lowercase") if is_lower else ("upper and lower", "lowercase")
        raise ConfigError(
            f"--{flag}: the given tokenizer was made for text in {made_for} case; leave the option "
            "out, or give another --tokenizer"
        )
    return steps.model_copy(update={"lowercase": is_lower})


def _steps(options: argparse.Namespace) -> Steps:
    """Return the recipe with the steps that the command line changes."""
    given = {name: getattr(options, name) for name in Steps.model_fields}
    changed = {name: value for name, value in given.items() if value is not None}
    return Steps.model_validate(RECIPES[options.recipe].model_dump() | changed)


def _verify(options: argparse.Namespace) -> int:
    folder = TokenFolder.open(options.folder)
    total = sum(entry.bytes for _, entry in files_of(folder.manifest))
    with open_pool(options.workers) as pool:
        if pool is None:
            return 0
        with Progress().stage("verifying", "bytes", total) as advance:
            damaged = list(find_damage(folder, pool.map, advance))
    if damaged:
        raise DataError(
            f"{options.folder}: damaged: {', '.join(damaged)}; copy the folder again, or build it "
            "again from its sources"
        )
    print(f"{options.folder}: every file is undamaged")
    return 0


def _contamination(options: argparse.Namespace) -> int:
    begin = time.monotonic()
    folder = TokenFolder.open(options.folder)
    paths = tuple(options.files)
    files = TaskFiles(paths, tuple(options.column), options.header)
    if options.json:
        _check_result(options.json)
    with open_pool(options.workers) as pool:
        if pool is None:
            return 0
        result = find_contamination(folder, files, options.max_documents, pool, Progress())
    print_contamination(result, options.folder, time.monotonic() - begin)
    if options.json:
        write_result(options.json, result.model_dump_json(indent=1) + "\n")
        print(f"Every text that was found: {options.json}")
    return 0


def _report(options: argparse.Namespace) -> int:
    folder = TokenFolder.open(options.folder)
    path = options.folder.resolve()
    output = options.output or path.with_name(f"{path.name}-report.html")
    found = options.contamination
    contamination = read_contamination(found, folder) if found else None
    _check_result(output)
    with open_pool(options.workers) as pool:
        if pool is None:
            return 0
        page = make_page(folder, contamination, options.seed, pool, Progress())
    write_result(output, page)
    print(f"{output}: {len(page.encode()) / 1000:,.0f} kB, made of {options.folder}")
    return 0


def _check_result(path: Path) -> None:
    """Raise DataError if a result file cannot be written."""
    folder = path.resolve().parent
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise DataError(f"{path}: cannot be written; give a file in a folder that can be written")


def _tasks(options: argparse.Namespace) -> int:
    made = make_tasks(
        options.inputs, options.output, options.examples, options.lowercase, Progress()
    )
    _print_tasks(made, options.output)
    return 0


def _print_tasks(made: BookTasks, output: Path) -> None:
    table = Table(title=f"Tasks {output}", show_header=False, title_justify="left")
    table.add_row("books", f"{made.books:,}")
    if made.unnamed:
        table.add_row("left out: not Author___Title.txt", f"{made.unnamed:,} files")
    if made.unread:
        table.add_row("left out: not read", f"{made.unread:,} files")
    table.add_row("authors", ", ".join(made.authors))
    if made.authors_left_out:
        table.add_row("left out: too little text", ", ".join(made.authors_left_out))
    for task, splits in made.examples.items():
        counts = ", ".join(f"{count:,} {split}" for split, count in splits.items())
        table.add_row(f"{task}/", f"{counts} examples")
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(
        "Next:  deepspeed launch/finetune.py configs/finetune/book-author.yaml "
        f"data.path={output}/author model.source=runs/first "
        f"'task.labels=[{', '.join(made.authors)}]'",
        soft_wrap=True,
    )
