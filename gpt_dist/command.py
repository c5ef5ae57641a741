"""Argument parsing and error reporting that the commands in launch/ share."""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from gpt_dist.errors import GptDistError, Interrupted, LaunchError
from gpt_dist.rendezvous import discover_launch

USER_ERROR = 2
"""Exit status of a run that was refused."""

UNREAD = 141
"""Exit status of a command whose output was cut off, as the shell gives it (SIGPIPE)."""

REPORT_SECONDS = 3
"""Time that the first process of a host has to report an error that all processes meet."""

RESUMABLE = 75
"""Exit status of a run that was preempted and saved (EX_TEMPFAIL of sysexits.h)."""

ANY_MODEL = (
    "a model folder, a checkpoint or the directory of a run, a Hugging Face GPT-1 or GPT-2 folder, "
    "or the released GPT-1 files"
)

Arguments = TypeVar("Arguments")


def argument_parser(description: str, example: str) -> argparse.ArgumentParser:
    """Return a parser that has only what launchers add to the command line."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # The deepspeed launcher adds it; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


def parse_config_arguments(description: str, example: str) -> tuple[Path, list[str]]:
    """Return the CONFIG.yaml and the overrides of the command line."""
    parser = argument_parser(description, example)
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="the run's configuration")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="keys to change, as in training.max_steps=100",
    )
    arguments = parser.parse_args()
    return arguments.config, arguments.overrides


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


def run(parse: Callable[[], Arguments], main: Callable[[Arguments], None]) -> None:
    """Run a command; report a user's error in one line and exit with USER_ERROR.

    `main` itself imports what loads torch, so that the help and a refusal by `parse` come at once.
    Before the processes are connected all meet the same error, and one a host reports it; later
    each process reports its own.
    """
    try:
        main(parse())
    except Interrupted as interruption:
        if _connected_rank() == 0:
            print(interruption, file=sys.stderr, flush=True)
        sys.exit(RESUMABLE)
    except BrokenPipeError:
        # The reader of the output has closed it; the rest of the output has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(UNREAD)
    except GptDistError as error:
        rank = _connected_rank()
        if rank is not None or _local_rank() == 0:
            source = "" if rank is None else f"rank {rank}: "
            print(f"error: {source}{error}", file=sys.stderr, flush=True)
        else:
            # A launcher ends all processes once one has exited, the reporting one too.
            time.sleep(REPORT_SECONDS)
        sys.exit(USER_ERROR)


def _connected_rank() -> int | None:
    """Return this process's rank among the connected ones, or None before they are connected."""
    dist = sys.modules.get("torch.distributed")
    return dist.get_rank() if dist and dist.is_initialized() else None


def _local_rank() -> int:
    try:
        return discover_launch(os.environ).local_rank
    except LaunchError:
        return 0
