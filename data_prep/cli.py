"""Parse and run the commands `python -m data_prep build`, `verify` and `tasks`."""

import argparse
import codecs
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep.book_tasks import DEV_PART, BookTasks, make_tasks
from data_prep.build.build import BuildRequest, build
from data_prep.build.summary import print_summary
from data_prep.duplicates import PASSAGE_WORDS, THRESHOLD
from data_prep.pool import open_pool
from data_prep.progress import Progress
from data_prep.reading.documents import ReadOptions
from data_prep.steps import RECIPES, Steps
from gpt_dist.data.tokenizers.folder import (
    FolderTokenizer,
    knows_only_lower_case,
    open_tokenizer,
)
from gpt_dist.data.tokens.folder import BuildOptions, TokenFolder, files_of, find_damage
from gpt_dist.errors import ConfigError, DataError, GptDistError

_TRAINING = {"vocab_size": 40_000, "tokenizer_sample_mb": 20, "seed": 0}
"""The options of training a tokenizer, and their defaults."""

_EXAMPLE = """example:
  python -m data_prep build books/ more.tar.xz --output tokens --vocab-size 16000
  python -m data_prep verify tokens
  python -m data_prep build new-books/ --output new-tokens --tokenizer model
  python -m data_prep tasks books/ --output book-tasks

on many hosts that share a file system, rank 0 leads and the others work:
  mpirun -n 32 python -m data_prep build books/ --output tokens
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0 for success, 2 for damage or an error of the user, 130 if interrupted.
    """
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    commands = {"build": _build, "verify": _verify, "tasks": _tasks}
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
        print(
            "error: interrupted; run the same command again to continue what is done",
            file=sys.stderr,
        )
        return 130


def _build(options: argparse.Namespace) -> int:
    begin = time.monotonic()
    request = _request(options)
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
        options.tokenizer = options.tokenizer.expanduser()
        tokenizer = open_tokenizer(options.tokenizer)
        values["vocab_size"] = tokenizer.full_vocab_size
        steps = _follow(tokenizer, options.lowercase, steps)
    values["steps"], values["lowercase"] = steps.model_dump(), steps.lowercase
    return BuildRequest(
        inputs=tuple(path.expanduser() for path in options.inputs),
        output=options.output.expanduser(),
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
    return RECIPES[options.recipe].model_copy(update=changed)


def _verify(options: argparse.Namespace) -> int:
    folder = TokenFolder.open(options.folder)
    total = sum(entry.bytes for _, entry in files_of(folder.manifest))
    with Progress().stage("verifying", "bytes", total) as advance:
        damaged = list(find_damage(folder, advance))
    if damaged:
        raise DataError(
            f"{options.folder}: damaged: {', '.join(damaged)}; copy the folder again, or build it "
            "again from its sources"
        )
    print(f"{options.folder}: every file is undamaged")
    return 0


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description="Make token shards and small tasks of books.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_build(commands.add_parser("build", help="make a token folder from books"))
    verify = commands.add_parser("verify", help="check every hash of a token folder")
    verify.description = "Check every hash of a token folder."
    verify.add_argument("folder", type=Path, metavar="DIR", help="a token folder")
    _add_tasks(commands.add_parser("tasks", help="make two small fine-tuning tasks of books"))
    return parser


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.description = "Make a token folder from books."
    parser.epilog, parser.formatter_class = _EXAMPLE, argparse.RawDescriptionHelpFormatter
    _add_paths(parser, ".txt, .jsonl", "the token folder to make")
    add = parser.add_argument
    add(
        "--workers",
        type=_positive,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="number of worker processes, which does not change the output; default one per core",
    )
    _add_cleaning(parser.add_argument_group("cleaning"))
    add(
        "--min-characters",
        type=_natural,
        default=500,
        metavar="N",
        help="leave out documents of fewer characters; default 500",
    )
    add(
        "--validation-fraction",
        type=_fraction,
        default=0.01,
        metavar="F",
        help="share of the text to hold out for validation, chosen by hash; default 0.01",
    )
    add(
        "--text-field",
        default="text",
        metavar="NAME",
        help='field of a jsonl line that holds the text; default "text"',
    )
    add(
        "--separator",
        default="<|endoftext|>",
        metavar="TEXT",
        help='text between the documents of a file; default "<|endoftext|>"; "" for none',
    )
    add(
        "--no-follow-links",
        dest="follow_links",
        action="store_false",
        help="leave out linked files and folders",
    )
    add(
        "--shard-mb",
        type=_positive,
        default=512,
        metavar="N",
        help="megabytes of tokens from which on a shard is closed; default 512",
    )
    _add_duplicates(parser.add_argument_group("duplicates"))
    _add_tokenizer(parser.add_argument_group("tokenizer"))


def _add_duplicates(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--near-duplicates",
        type=_share,
        default=THRESHOLD,
        metavar="F",
        help="share of a document's words that another one must have, in runs of eight, for it to "
        f"be left out; 0 keeps all but exact duplicates; default {THRESHOLD}",
    )
    group.add_argument(
        "--passage-words",
        type=_natural,
        default=PASSAGE_WORDS,
        metavar="N",
        help="number of words from which on a passage that an earlier document holds is cut; 0 "
        f"cuts none; default {PASSAGE_WORDS}",
    )


def _add_cleaning(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--recipe",
        choices=list(RECIPES),
        default="books",
        help="steps of cleaning: those of the paper's books, or none but decoding and line ends; "
        "each of the following options switches one step on or off; default books",
    )
    group.add_argument(
        "--encoding",
        type=_encoding,
        metavar="NAME",
        help="encoding of all files, instead of one found out for each document",
    )
    for name, field in Steps.model_fields.items():
        if field.annotation is bool:
            group.add_argument(
                f"--{name.replace('_', '-')}",
                action=argparse.BooleanOptionalAction,
                default=None,
                help=(field.description or "").partition(" Count:")[0],
            )


def _add_tokenizer(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--vocab-size",
        type=_positive,
        metavar="N",
        help="number of tokens of the tokenizer to train; default 40000",
    )
    add(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="use the tokenizer of a token folder, a model, a checkpoint, a Hugging Face folder or "
        "the released GPT-1 instead of training one, for example to prepare more text for a model",
    )
    add(
        "--tokenizer-sample-mb",
        type=_positive,
        metavar="N",
        help="megabytes of text to train the tokenizer on, drawn at random; default 20",
    )
    add("--seed", type=_natural, metavar="N", help="random seed of that draw; default 0")


def _add_tasks(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make two tasks of books named Author___Title.txt: `author`, to name the author of a "
        "passage, and `next`, to choose which of two sentences comes next."
    )
    parser.epilog = "example: python -m data_prep tasks data_prep/sample_books --output book-tasks"
    _add_paths(parser, ".txt", "the folder to make")
    parser.add_argument(
        "--examples",
        type=_positive,
        default=2000,
        metavar="N",
        help=f"number of examples of each task, one in {DEV_PART} of them for dev; default 2000",
    )
    _add_lowercase(parser)


def _add_paths(parser: argparse.ArgumentParser, plain: str, output: str) -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help=f"a folder, {plain} (plain, .gz or .xz), .tar, .tar.gz, .tar.xz or .zip",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help=output)


def _add_lowercase(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-lowercase",
        dest="lowercase",
        action="store_false",
        help="keep upper case (the paper's text has none)",
    )


def _positive(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a whole number of 1 or more")
    return int(value)


def _natural(value: str) -> int:
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{value} is not a whole number of 0 or more")
    return int(value)


def _encoding(value: str) -> str:
    try:
        return codecs.lookup(value).name
    except LookupError as error:
        raise argparse.ArgumentTypeError(f"{error}; give one of Python's, such as cp1251") from error


def _share(value: str) -> float:
    return 1.0 if value in {"1", "1.0"} else _fraction(value)


def _fraction(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a number from 0 to below 1")
    return number
