"""Command-line arguments of the commands that use a trained model."""

import argparse
import math
from collections.abc import Callable
from contextlib import suppress
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


def _number(
    kind: Callable[[str], float], meaning: str, allows: Callable[[float], bool]
) -> Callable[[str], float]:
    def convert(text: str) -> float:
        with suppress(ValueError):
            if allows(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text} is not {meaning}")

    return convert


# Converters of arguments.
positive = _number(int, "a whole number of 1 or more", lambda value: value >= 1)
seed = _number(int, f"a whole number from 0 to {2**32 - 1}", lambda value: 0 <= value < 2**32)
temperature = _number(float, "a finite number of 0 or more", lambda value: 0 <= value < math.inf)
probability = _number(float, "a number above 0, up to 1", lambda value: 0 < value <= 1)
