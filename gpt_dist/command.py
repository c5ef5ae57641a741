"""What every command in launch/ shares: its arguments, and how it reports a user's error."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from gpt_dist.errors import GptDistError, Interrupted, LaunchError
from gpt_dist.rendezvous import discover_launch

USER_ERROR = 2
"""Exit status of a run that was refused."""

UNREAD = 141
"""Exit status of a command whose output was cut off, as the shell gives it (SIGPIPE)."""

RESUMABLE = 75
"""Exit status of a run that was pre-empted and saved (EX_TEMPFAIL of sysexits.h)."""


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
    """Run a command; report a user's error in one line and exit with USER_ERROR.

    Before the processes are connected all see the same error, and one a host says it; later it may
    be any one's own, and each says its own.
    """
    try:
        main()
    except Interrupted as interruption:
        if dist.get_rank() == 0:
            print(interruption, file=sys.stderr, flush=True)
        sys.exit(RESUMABLE)
    except BrokenPipeError:
        # Whoever reads the output has seen enough; what is left in it has no way to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(UNREAD)
    except GptDistError as error:
        if dist.is_initialized():
            print(f"error: rank {dist.get_rank()}: {error}", file=sys.stderr, flush=True)
        elif _local_rank() == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)


def _local_rank() -> int:
    try:
        return discover_launch(os.environ).local_rank
    except LaunchError:
        return 0
