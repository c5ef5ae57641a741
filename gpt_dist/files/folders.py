"""Publish a folder or file atomically: made under a hidden name, synced to the disk, renamed."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt_dist.errors import DataError, GptDistError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def new_folder(output: Path, error: type[GptDistError], room: str) -> Iterator[Path]:
    """Make a hidden folder beside `output`, renamed to it at the end, or removed on a failure.

    Whatever was written into it is safe on the disk before it gets its name. Raises `error` where
    `output` exists and is not an empty folder, or is one that cannot be replaced, where the disk is
    full (`room` says how much a new try needs), or where something cannot be read or written.
    """
    output = check_new(output, error)
    partial = output.parent / f".{output.name}.partial-{os.getpid()}"
    try:
        with explained(output, partial, error, room):
            partial.mkdir(parents=True)
            yield partial
            publish(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_new(output: Path, error: type[GptDistError]) -> Path:
    """Return the absolute path of a folder to make, with links resolved.

    Raises:
        GptDistError: It exists and is not an empty folder, or is one that cannot be replaced.
    """
    output = output.resolve()  # "." has no name, and a link cannot be replaced by a folder
    if output.exists() and (output.samefile(".") or output.is_mount()):
        raise error(
            f"{output}: the current directory or a mount point, which a new folder cannot replace; "
            "give a new folder in it as --output"
        )
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise error(f"{output}: exists already; remove it, or give another --output")
    return output


@contextmanager
def explained(output: Path, hidden: Path, error: type[GptDistError], room: str) -> Iterator[None]:
    """Turn a failure of the file system into an `error` that says what to do (see `new_folder`).

    Args:
        output: The folder that is being made.
        hidden: The name that it has until it is complete.
        error: The type of the error.
        room: How much room a new try needs.
    """
    try:
        yield
    except OSError as failure:
        if failure.errno in _DISK_FULL:
            raise error(
                f"{output}: the disk is full, and nothing was published; free {room}, or give an "
                "--output on another disk"
            ) from failure
        culprit = str(failure.filename or output).replace(hidden.name, output.name)
        raise error(
            f"{culprit}: {failure.strerror or failure}; nothing was published; see that the inputs "
            "can be read, or give another --output"
        ) from failure


def write_result(path: Path, text: str) -> None:
    """Write a result file of a run atomically; DataError where it cannot be written."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(text.encode())
        publish(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); make room or correct its "
            "permissions, and run the same command again"
        ) from None


def publish(partial: Path, output: Path, synced: bool = True) -> None:
    """Give a written folder or file its name, if `synced` once all in it is safe on the disk."""
    for path in [*partial.rglob("*"), partial] if synced else []:
        _sync(path)
    partial.rename(output)
    if synced:
        _sync(output.parent)


def _sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, safe on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
