"""Find the files that a corpus is made from.

The files that are read are `.txt` and `.jsonl`, each also as `.gz` or `.xz`; a bare `.gz` as text;
and the archives `.tar`, `.tar.gz` (`.tgz`), `.tar.xz` (`.txz`) and `.zip`. The case of the suffix
does not matter. A folder is read with its subfolders, sorted by name. Hidden files and folders are
ignored, and other files counted as skipped.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt_dist.errors import DataError

_READABLE = re.compile(
    r"\.(?:(?:txt|jsonl|tar)(?:\.[gx]z)?|t[gx]z|zip)$|^[^.]+\.gz$", re.IGNORECASE
)
_SMALL_BYTES = 32 << 20


@dataclass(frozen=True)
class Source:
    """File to read. The manifest states its name, but not its path."""

    name: str
    path: Path

    def is_plain(self) -> bool:
        """Tell whether the file is not packed."""
        return self.name.lower().endswith((".txt", ".jsonl"))

    def is_small_text(self) -> bool:
        """Tell whether the file is text, and small enough for one job of a worker."""
        return self.name.lower().endswith(".txt") and self.path.stat().st_size <= _SMALL_BYTES


def find_sources(inputs: Iterable[Path]) -> tuple[list[Source], list[str]]:
    """Return the files to read, in order, and the names of skipped files.

    Raises:
        DataError: An input does not exist, or is a file of a kind that is not read.
    """
    found: list[Source] = []
    skipped: list[str] = []
    for path in inputs:
        if path.is_dir():
            for file in _walk(path):
                name = printable(f"{path.resolve().name}/{file.relative_to(path).as_posix()}")
                if _READABLE.search(file.name):
                    found.append(Source(name, file))
                else:
                    skipped.append(name)
        elif not path.exists():
            raise DataError(f"{path}: no such file or folder")
        elif not _READABLE.search(path.name):
            raise DataError(
                f"{path}: this kind of file is not read; give a folder, .txt, .jsonl (plain, .gz "
                "or .xz), .tar, .tar.gz, .tar.xz or .zip"
            )
        else:
            found.append(Source(printable(path.name), path))
    return found, skipped


def printable(name: str) -> str:
    """Replace the characters of `name` that are not UTF-8 or not printable."""
    text = os.fsencode(name).decode("utf-8", errors="replace")
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk(entry)
        elif entry.is_file():
            yield entry
