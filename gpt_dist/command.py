"""What every command in launch/ shares: its arguments, and how it reports a user's error."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from gpt_dist.errors import GptDistError

USER_ERROR = 2
"""Exit status of a run that was refused."""


def parse_config_arguments(description: str, example: str) -> tuple[Path, list[str]]:
    """The CONFIG.yaml and the overrides of the command line."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="the run's configuration")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="keys to change, as in training.max_steps=100",
    )
    # The deepspeed launcher adds it; the environment says the same.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    return arguments.config, arguments.overrides


def run(main: Callable[[], None]) -> None:
    """Run a command; print a user's error in one line, once a host, and exit with USER_ERROR."""
    try:
        main()
    except GptDistError as error:
        local_rank = os.environ.get("LOCAL_RANK", os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0"))
        if local_rank == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
