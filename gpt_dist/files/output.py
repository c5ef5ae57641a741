"""Write the result files of a run."""

from pathlib import Path

from gpt_dist.errors import DataError
from gpt_dist.files.folders import sync, write_synced


def write_result(path: Path, text: str) -> None:
    """Write a file atomically and return once it is safe on the disk.

    Raises:
        DataError: The file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        write_synced(partial, text.encode())
        partial.rename(path)
        sync(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); make room or correct its "
            "permissions, and start the run again, which goes on from its last checkpoint"
        ) from None
