"""Define the command line of `python -m data_prep`."""

import argparse
import codecs
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

from data_prep.defaults import DEV_PART, MAX_DOCUMENTS, PASSAGE_WORDS, TEST_SUFFIXES, THRESHOLD
from data_prep.reading.kinds import refusal
from data_prep.steps import RECIPES, Steps

_BUILD_INPUTS = (
    "a folder, or a file: text, .md, .jsonl, .json, .parquet, .html, .epub, TEI .xml, also as .gz, "
    ".xz, .bz2 or .zst, or in a .tar or .zip"
)
_TASK_INPUTS = "a folder, or a .txt, also packed, or in a .tar or .zip"
_EXAMPLE = """example:
  python -m data_prep build books/ more.tar.xz --output tokens --vocab-size 16000
  python -m data_prep build books/ --output tokens --dry-run
  python -m data_prep verify tokens
  python -m data_prep report tokens
  python -m data_prep contamination tokens stories/test.csv --json contamination.json
  python -m data_prep build new-books/ --output new-tokens --tokenizer model
  python -m data_prep tasks books/ --output book-tasks

on many hosts that share a file system, rank 0 leads and the others work:
  mpirun -n 32 python -m data_prep build books/ --output tokens
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description="Make token shards and small tasks of books, and examine them.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_build(commands.add_parser("build", help="make a token folder from books"))
    _add_verify(commands.add_parser("verify", help="check every hash of a token folder"))
    _add_report(commands.add_parser("report", help="write a page about a token folder"))
    _add_contamination(
        commands.add_parser("contamination", help="find the texts of tests in a token folder")
    )
    _add_tasks(commands.add_parser("tasks", help="make two small fine-tuning tasks of books"))
    return parser


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.description = "Make a token folder from books."
    parser.epilog, parser.formatter_class = _EXAMPLE, argparse.RawDescriptionHelpFormatter
    _add_paths(parser, _BUILD_INPUTS, "the token folder to make")
    add = parser.add_argument
    add(
        "--dry-run",
        action="store_true",
        help="estimate documents, tokens, disk and time from a sample, and write nothing",
    )
    _add_workers(parser)
    _add_reading(parser.add_argument_group("reading"))
    _add_cleaning(parser.add_argument_group("cleaning"))
    add(
        "--min-characters",
        type=_natural,
        metavar="N",
        help="leave out documents of fewer characters; default 500, 0 in the recipe plain, which "
        "leaves out empty ones alone",
    )
    add(
        "--validation-fraction",
        type=_fraction,
        default=0.01,
        metavar="F",
        help="share of the text to hold out for validation, chosen by hash; default 0.01",
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


def _add_reading(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--text-field",
        default="text",
        metavar="NAME",
        help='field or column of a row (.jsonl, .json, .parquet) that holds text; default "text"',
    )
    add(
        "--separator",
        default="<|endoftext|>",
        metavar="TEXT",
        help='text between the documents of a file; default "<|endoftext|>"; "" for none',
    )
    add(
        "--read-suffix",
        dest="read_suffixes",
        action="append",
        default=[],
        type=_suffix,
        metavar="SUFFIX",
        help="read files of this suffix too, such as py, if they are text; may be given several "
        "times",
    )
    add(
        "--no-follow-links",
        dest="follow_links",
        action="store_false",
        help="leave out linked files and folders",
    )


def _add_duplicates(group: argparse._ArgumentGroup) -> None:
    choice = group.add_mutually_exclusive_group()
    choice.add_argument(
        "--near-duplicates",
        type=_share,
        metavar="F",
        help="share of a document's words that another one must have, in runs of eight, for it to "
        f"be left out; 0 leaves out equal texts alone; default {THRESHOLD} in the recipe books",
    )
    choice.add_argument(
        "--keep-duplicates",
        action="store_true",
        help="keep every document, also of equal text, and cut no passage; default in the recipe "
        "plain",
    )
    group.add_argument(
        "--passage-words",
        type=_natural,
        metavar="N",
        help="number of words from which on a passage that an earlier document holds is cut; 0 "
        f"cuts none; default {PASSAGE_WORDS} with --near-duplicates above 0",
    )


def _add_cleaning(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--recipe",
        choices=list(RECIPES),
        default="books",
        help="steps of cleaning: `books` has those of the paper's books; `plain` only decodes, "
        "unifies line ends and writes _ for U+2581, and keeps short texts and duplicates; each "
        "option below switches one step; default books",
    )
    group.add_argument(
        "--encoding",
        type=_encoding,
        metavar="NAME",
        help="encoding of all files, instead of one found out for each document",
    )
    for name, field in Steps.model_fields.items():
        if field.annotation is bool:
            text = (field.description or "").partition(" Count:")[0].strip()
            group.add_argument(
                f"--{name.replace('_', '-')}",
                action=argparse.BooleanOptionalAction,
                default=None,
                help=text[:1].lower() + text[1:].removesuffix("."),
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
        type=_path,
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


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.description = "Check every hash of a token folder."
    parser.epilog = "example: python -m data_prep verify tokens"
    _add_folder(parser)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write one HTML page that says what a token folder holds, and what became of its sources."
    )
    parser.epilog = "example: python -m data_prep report tokens --contamination contamination.json"
    _add_folder(parser)
    parser.add_argument(
        "--output",
        type=_path,
        metavar="FILE",
        help="the page to write, or write anew; default DIR-report.html beside the folder",
    )
    parser.add_argument(
        "--contamination",
        type=_path,
        metavar="FILE",
        help="the result of `contamination --json` for this folder, to show in the page",
    )
    parser.add_argument(
        "--seed", type=_natural, default=0, metavar="N", help="random seed of samples; default 0"
    )


def _add_contamination(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Find the texts of tests that occur in a token folder, as in appendix C of the GPT-3 "
        "paper: a text is dirty if any 13 words in a row occur, whatever case and punctuation. "
        "Texts of 8 to 12 words are searched as a whole, shorter ones not at all."
    )
    parser.epilog = (
        "example: python -m data_prep contamination tokens race/test rte/dev.tsv "
        "--json contamination.json"
    )
    _add_folder(parser)
    parser.add_argument(
        "files",
        nargs="+",
        type=_path,
        metavar="TASK_FILE",
        help=f"tests: {', '.join(TEST_SUFFIXES)} (one text a line), or a folder of RACE",
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME",
        help="column that holds text, by name, or from 0 by position; may be given several times; "
        "default: all columns, each searched by itself",
    )
    parser.add_argument(
        "--no-header",
        dest="header",
        action="store_false",
        help="the first line of a .tsv or .csv holds no names",
    )
    parser.add_argument(
        "--max-documents",
        type=_positive,
        default=MAX_DOCUMENTS,
        metavar="N",
        help="ignore words that occur in more documents, which are common phrases; default "
        f"{MAX_DOCUMENTS}",
    )
    parser.add_argument(
        "--json", type=_path, metavar="FILE", help="write every text that was found to this file"
    )


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=_path, metavar="DIR", help="a token folder")
    _add_workers(parser)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=_positive,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="number of worker processes, which does not change the output; default one per core",
    )


def _add_tasks(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make two tasks of books named Author___Title.txt: `author`, to name the author of a "
        "passage, and `next`, to choose which of two sentences comes next."
    )
    parser.epilog = "example: python -m data_prep tasks data_prep/sample_books --output book-tasks"
    _add_paths(parser, _TASK_INPUTS, "the folder to make")
    parser.add_argument(
        "--examples",
        type=_positive,
        default=2000,
        metavar="N",
        help=f"number of examples of each task, one in {DEV_PART} of them for dev; default 2000",
    )
    parser.add_argument(
        "--no-lowercase",
        dest="lowercase",
        action="store_false",
        help="keep upper case (the paper's text has none)",
    )


def _add_paths(parser: argparse.ArgumentParser, inputs: str, output: str) -> None:
    parser.add_argument("inputs", nargs="+", type=_path, metavar="INPUT", help=inputs)
    parser.add_argument("--output", required=True, type=_path, metavar="DIR", help=output)


def _natural(value: str, least: int = 0) -> int:
    if not value.isdecimal() or int(value) < least:
        raise argparse.ArgumentTypeError(f"{value} is not a whole number of {least} or more")
    return int(value)


_positive = partial(_natural, least=1)


def _path(value: str) -> Path:
    return Path(value).expanduser()


def _encoding(value: str) -> str:
    try:
        if "a".encode(value).decode(value) != "a" or value.lower() in {"idna", "punycode"}:
            raise LookupError(f"unknown encoding: {value}")
    except (LookupError, UnicodeError) as error:
        raise argparse.ArgumentTypeError(
            f"{error}; give an encoding of text that Python knows, such as cp1251"
        ) from error
    return codecs.lookup(value).name


def _suffix(value: str) -> str:
    suffix = value.removeprefix(".").lower()
    if not refusal(f"name.{suffix}"):
        raise argparse.ArgumentTypeError(
            f"{value} is no suffix, or one that is read anyway; give one such as py"
        )
    return suffix


def _share(value: str) -> float:
    return 1.0 if value in {"1", "1.0"} else _fraction(value)


def _fraction(value: str) -> float:
    with suppress(ValueError):
        if 0 <= (number := float(value)) < 1:
            return number
    raise argparse.ArgumentTypeError(f"{value} is not a number from 0 to below 1")
