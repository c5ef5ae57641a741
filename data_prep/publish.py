"""Make a folder under a hidden name and publish it only when it is whole."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt_dist.errors import DataError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A hidden folder beside `output`, renamed to it at the end, or removed if anything fails.

    Raises DataError where `output` exists and is not an empty folder, or where the disk is full or
    may not be written to.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise DataError(f"{output}: exists already; remove it, or give another --output")
    partial = output.parent / f".{output.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        yield partial
        sync_folder(partial)
        partial.rename(output)
        sync_folder(output.parent)
    except OSError as error:
        raise _explain(error, output) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_synced(file: Path, content: bytes) -> None:
    """Write a file and return once it is safe on the disk."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder safe on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: OSError, output: Path) -> DataError:
    if error.errno in _DISK_FULL:
        return DataError(
            f"{output}: the disk is full, and nothing was published; free about twice the size of "
            "the unpacked text, or give an --output on another disk"
        )
    return DataError(
        f"{error.filename or output}: {error.strerror or error}; nothing was published; see that "
        "the inputs can be read, or give another --output"
    )
