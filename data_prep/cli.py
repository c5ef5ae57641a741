"""The commands `python -m data_prep build` and `verify`: parse, run, report."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path

from data_prep.build import build
from data_prep.pool import open_pool
from data_prep.report import Progress, print_summary
from gpt_dist.data.tokens import BuildOptions, TokenFolder, files_of, find_damage
from gpt_dist.errors import DataError, GptDistError

_EXAMPLE = """example:
  python -m data_prep build books/ more.tar.xz --output tokens --vocab-size 16000
  python -m data_prep verify tokens

on many hosts that share a file system, rank 0 leads and the others work:
  mpirun -n 32 python -m data_prep build books/ --output tokens
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it succeeded, 2 for damage or a user's error, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _build(options) if options.command == "build" else _verify(options)
    except GptDistError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenExecutor:
        print(
            "error: a worker process was killed, perhaps for want of memory, and nothing was "
            "published; use fewer --workers",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was published", file=sys.stderr)
        return 130


def _build(options: argparse.Namespace) -> int:
    begin = time.monotonic()
    with open_pool(options.workers) as pool:
        if pool is None:
            return 0
        choices = BuildOptions.model_validate(options)
        manifest = build(options.inputs, options.output, choices, pool, Progress())
    print_summary(manifest, options.output, time.monotonic() - begin)
    return 0


def _verify(options: argparse.Namespace) -> int:
    folder = TokenFolder.open(options.folder)
    total = sum(entry.bytes for _, entry in files_of(folder.manifest))
    with Progress().stage("verifying", "bytes", total) as advance:
        damaged = list(find_damage(folder, advance))
    if damaged:
        raise DataError(
            f"{options.folder}: damaged: {', '.join(damaged)}; copy the folder again, or prepare "
            "it again from its sources"
        )
    print(f"{options.folder}: every file is as it was made")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description="Books to token shards.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_build(commands.add_parser("build", help="make a token folder from books"))
    verify = commands.add_parser("verify", help="check every hash of a token folder")
    verify.add_argument("folder", type=Path, metavar="DIR", help="a token folder")
    return parser


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = _EXAMPLE, argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        type=Path,
        metavar="INPUT",
        help="a folder, .txt, .jsonl (plain, .gz or .xz), .tar, .tar.gz, .tar.xz or .zip",
    )
    add("--output", required=True, type=Path, metavar="DIR", help="the token folder to make")
    add("--vocab-size", type=_positive, default=40_000, metavar="N", help="default 40000")
    add(
        "--workers",
        type=_positive,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="processes; default one a core; the output does not depend on it",
    )
    add(
        "--no-lowercase",
        dest="lowercase",
        action="store_false",
        help="keep upper case (the paper's text has none)",
    )
    add(
        "--min-characters",
        type=_natural,
        default=500,
        metavar="N",
        help="drop shorter documents; default 500",
    )
    add(
        "--validation-fraction",
        type=_fraction,
        default=0.01,
        metavar="F",
        help="share of the documents, chosen by content hash; default 0.01",
    )
    add("--text-field", default="text", metavar="NAME", help='of jsonl lines; default "text"')
    add(
        "--tokenizer-sample-mb",
        type=_positive,
        default=20,
        metavar="N",
        help="text to train the tokenizer on, drawn at random; default 20",
    )
    add("--seed", type=_natural, default=0, metavar="N", help="of that draw; default 0")


def _positive(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a whole number of 1 or more")
    return int(value)


def _natural(value: str) -> int:
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{value} is not a whole number of 0 or more")
    return int(value)


def _fraction(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a number from 0 to below 1")
    return number
