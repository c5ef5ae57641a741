"""Read the folders that tests compare."""

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file, by its path in the folder."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
