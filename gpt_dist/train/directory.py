"""The directory of a run: writable, and used by one run at a time."""

import fcntl
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import TextIO

from gpt_dist.config import ResolvedConfig
from gpt_dist.errors import ConfigError
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import Topology, connect, disconnect, form_groups


def check_writable(directory: Path) -> None:
    """Make the directory; raise ConfigError where this host cannot write to it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise ConfigError(
            f"run.directory: cannot write to {directory} ({error.strerror}); choose another"
        ) from None


def train_alone(config: ResolvedConfig, launch: Launch, train: Callable[[Topology], None]) -> None:
    """Connect the processes and train, while run.directory is locked against other runs.

    The lock ends with the process, however that ends. Raises ConfigError where another run has it.
    """
    with nullcontext() if launch.rank else _lock(Path(config.run.directory)):
        train(form_groups(launch, connect(launch), config.parallel.tensor_parallel_size))
        disconnect()


def _lock(directory: Path) -> TextIO:
    """Return the file that holds the lock while it is open."""
    try:
        file = (directory / ".lock").open("w")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"run.directory: another run is using {directory}; wait for it, or choose another"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"run.directory: {directory / '.lock'} cannot be locked against other runs "
            f"({error.strerror or error}); choose another, on a file system that has locks"
        ) from None
    return file


def set_aside_earlier_run(directory: Path) -> None:
    """Move the files of an earlier run into a folder `earlier-N`, which no resume reads."""
    names = ("metrics.jsonl", "tensorboard", "checkpoints", "results.json", "model")
    left = [path for name in names if (path := directory / name).exists()]
    if not left:
        return
    left += [*directory.glob("config.yaml"), *directory.glob("*.tsv")]
    folders = (directory / f"earlier-{number}" for number in count(1))
    aside = next(folder for folder in folders if not folder.exists())
    aside.mkdir()
    for path in left:
        path.rename(aside / path.name)
    text = f"{directory} holds an earlier run: starting from scratch, its files are now in"
    print(text, f"{aside.name}/", file=sys.stderr)
