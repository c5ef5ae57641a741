"""Argument parsing and error reporting that the commands in launch/ share."""

import argparse
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from gpt_dist.config import Config, ResolvedConfig
from gpt_dist.config.file import load_config
from gpt_dist.errors import (
    USER_ERROR,
    ConfigError,
    GptDistError,
    Interrupted,
    LaunchError,
    ModelError,
)
from gpt_dist.rendezvous import Launch, discover_launch, open_store
from gpt_dist.train.status import recorded

UNREAD = 141
"""Exit status of a command whose output was cut off, as the shell gives it (SIGPIPE)."""

REPORT_SECONDS = 3
"""Time that the first process of a host has to report an error that all processes meet."""

FEW_FILES, MANY_FILES = 256, 4096
"""Open files that a process needs to train, and that are enough for many shards."""

RESUMABLE = 75
"""Exit status of a run that was preempted and saved (EX_TEMPFAIL of sysexits.h)."""

ANY_MODEL = (
    "a model folder, a checkpoint or the directory of a run, the Hugging Face folder of a known "
    "family, or the released GPT-1 files"
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


def config_parser(description: str, example: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments CONFIG.yaml and overrides."""
    parser = argument_parser(description, example)
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="the run's configuration")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="section.key=value",
        help="keys to change, as in training.max_steps=100",
    )
    return parser


def train(
    description: str,
    example: str,
    prepare: Callable[[Config, Launch], tuple[ResolvedConfig, Callable[[Any], None]]],
    *,
    fine_tuning: bool,
) -> None:
    """Run a command that trains; `prepare` completes the configuration and returns what trains."""
    parser = config_parser(description, example)

    def main(arguments: argparse.Namespace) -> None:
        config = load_config(arguments.config, arguments.overrides)
        if fine_tuning and config.task is None:
            raise ConfigError("task: not given; see configs/finetune/ for examples")
        if not fine_tuning and (config.task or config.run.seeds):
            key = "task" if config.task else "run.seeds"
            raise ConfigError(
                f"{key}: for fine-tuning only; use launch/finetune.py, or leave it out"
            )
        _allow_open_files()
        launch = discover_launch(os.environ)
        with recorded(Path(config.run.directory), launch):
            _check_paths(config)
            resolved, function = prepare(config, launch)
            from gpt_dist.train.directory import train_alone

            train_alone(resolved, launch, function)

    run(parser.parse_args, main)


def _check_paths(config: Config) -> None:
    """Refuse folders that are not there, before torch is loaded to open them."""
    data = "the folder of the task's files" if config.task else "one of `python -m data_prep build`"
    given = [("data.path", folder.path, data) for folder in config.data.folders]
    for key, path, wanted in [*given, ("data.tokenizer", config.data.tokenizer, "a tokenizer's")]:
        if path and not Path(path).exists():
            raise ConfigError(f"{key}: {path}: no such folder; give {wanted}")


def _allow_open_files() -> None:
    """Raise the limit of open files, which sockets and shards need; LaunchError if it stays low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if allowed < FEW_FILES:
        raise LaunchError(f"ulimit -n {hard}: too few open files; allow {MANY_FILES} of them")
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))


def model_parser(description: str, example: str, model: str = ANY_MODEL) -> argparse.ArgumentParser:
    """Return a parser with the argument MODEL, whose help is `model`."""
    parser = argument_parser(description, example)
    parser.add_argument("model", type=existing_model, metavar="MODEL", help=model)
    return parser


def existing_model(text: str) -> Path:
    """Convert an argument to the path of a model; ModelError where there is nothing."""
    if not (path := Path(text)).exists():
        raise ModelError(f"{path}: no such folder; give {ANY_MODEL}")
    return path


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
    Of several processes, the first that has one reports it, and all end.
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
    except KeyboardInterrupt:
        if _local_rank() == 0:
            print("stopped by Ctrl-C; nothing was saved", file=sys.stderr, flush=True)
        sys.exit(130)  # as the shell gives it
    except GptDistError as error:
        rank = _connected_rank()
        if rank is None and not error.told:
            _tell_others(error)
        source = "" if rank is None else f"rank {rank}: "
        print(f"error: {source}{error}", file=sys.stderr, flush=True)
        if error.told:
            time.sleep(1)  # the others end first, since their store may be with this process
        sys.exit(USER_ERROR)


def _tell_others(error: GptDistError) -> None:
    """Tell the processes that wait for this one, and end here if another reports an error."""
    if isinstance(error, LaunchError):
        if _local_rank():
            # A launcher ends all processes once one has exited, the reporting one too.
            time.sleep(REPORT_SECONDS)
        return
    launch = discover_launch(os.environ)
    with suppress(GptDistError, RuntimeError):  # this one, or there is nobody to tell
        if launch.world_size > 1:
            from gpt_dist.watchdog import Progress, Watchdog

            with Watchdog(launch, open_store(launch), 0, None, Progress()):
                raise error


def _connected_rank() -> int | None:
    """Return this process's rank among the connected ones, or None before they are connected."""
    dist = sys.modules.get("torch.distributed")
    return dist.get_rank() if dist and dist.is_initialized() else None


def _local_rank() -> int:
    try:
        return discover_launch(os.environ).local_rank
    except LaunchError:
        return 0
