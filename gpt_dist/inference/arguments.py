"""What the commands that use a trained model ask of their command line."""

from __future__ import annotations

import argparse
from pathlib import Path

ANY_MODEL = (
    "a model folder, a checkpoint or the directory of a run, a Hugging Face GPT-1 or GPT-2 folder, "
    "or the released GPT-1 files"
)


def model_parser(description: str, example: str, model: str = ANY_MODEL) -> argparse.ArgumentParser:
    """A parser with the argument MODEL, which is what `model` says, and with what launchers add."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help=model,
    )
    # The deepspeed launcher adds it; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


def add_tensor_parallel_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tensor-parallel-size",
        type=positive,
        default=1,
        metavar="N",
        help="processes that share each layer (default 1)",
    )


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def seed(text: str) -> int:
    """A whole number in the range of the configuration's run.seed."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to {2**32 - 1}")
    return value


def temperature(text: str) -> float:
    """A finite number of 0 or more."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


def probability(text: str) -> float:
    """A number above 0, up to 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise ValueError
    return value
