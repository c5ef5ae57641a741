"""Command-line arguments of the commands that use a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path

from gpt_dist.command import argument_parser

ANY_MODEL = (
    "a model folder, a checkpoint or the directory of a run, a Hugging Face GPT-1 or GPT-2 folder, "
    "or the released GPT-1 files"
)


def model_parser(description: str, example: str, model: str = ANY_MODEL) -> argparse.ArgumentParser:
    """Return a parser with the argument MODEL, whose help is `model`."""
    parser = argument_parser(description, example)
    parser.add_argument("model", type=Path, metavar="MODEL", help=model)
    return parser


def add_tensor_parallel_size(parser: argparse.ArgumentParser) -> None:
    """Add the option `--tensor-parallel-size`."""
    parser.add_argument(
        "--tensor-parallel-size",
        type=positive,
        default=1,
        metavar="N",
        help="processes that share each layer (default 1)",
    )


def positive(text: str) -> int:
    """Return a whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def seed(text: str) -> int:
    """Return a whole number in the range of the configuration's run.seed."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to {2**32 - 1}")
    return value


def temperature(text: str) -> float:
    """Return a finite number of 0 or more."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


def probability(text: str) -> float:
    """Return a number above 0, up to 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError
    return value
