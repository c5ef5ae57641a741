"""Verify the hashes of a token folder."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gpt_dist.data.tokens.folder import TokenFolder, files_of
from gpt_dist.files.entries import FileEntry, file_sha256


def find_damage(
    folder: TokenFolder,
    run: Callable[..., Iterable[bool]] = map,
    progress: Callable[[int], None] = lambda _size: None,
) -> Iterator[str]:
    """Hash every file of the manifest and yield the names of those that differ from it.

    `run`, like `map`, calls a function of this module, perhaps in other processes. `progress` is
    called with the size in bytes of each file after it was read.
    """
    names = list(files_of(folder.manifest))
    checks = ((folder.path / name, entry) for name, entry in names)
    for (name, entry), damaged in zip(names, run(_is_damaged, checks), strict=True):
        if damaged:
            yield name
        progress(entry.bytes)


def _is_damaged(check: tuple[Path, FileEntry]) -> bool:
    path, entry = check
    return file_sha256(path) != entry.sha256
