"""Find the files that a corpus is made from.

A folder is read with its subfolders, sorted by name. Links are followed, unless the user wants
otherwise: each linked folder once, so that loops end. Left out by name are hidden files and
folders, dead links, files that cannot be opened, all but regular files, and files whose suffix is
not known (see `reading.kinds`). A file without a suffix is read if it is text, and so is one of a
suffix that the user names.
"""

import os
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.reading.documents import LeftOut, printable
from data_prep.reading.kinds import HIDDEN, NOT_REGULAR, refusal
from gpt_dist.errors import DataError


@dataclass(frozen=True)
class Source:
    """File to read. The manifest states its name and target, but not its path."""

    name: str
    path: Path
    target: str | None = None
    """The target of the last followed link, and the path below it."""


@dataclass(frozen=True)
class _Node:
    """File or folder in the walk through an input."""

    path: Path
    name: str
    target: str | None
    above: tuple[tuple[int, int], ...]  # device and inode of each folder around it


def find_sources(
    inputs: Iterable[Path], follow_links: bool = True, suffixes: Collection[str] = ()
) -> tuple[list[Source], list[LeftOut]]:
    """Return the files to read, in order, and what is left out.

    An input that is itself a link is followed in any case. `suffixes` are not known, but read.

    Raises:
        DataError: An input does not exist, cannot be opened, or is of a kind that is not read.
    """
    found: list[Source] = []
    left_out: list[LeftOut] = []
    linked: set[tuple[int, int]] = set()
    for path in inputs:
        target = os.readlink(path) if path.is_symlink() else None
        if path.is_dir():
            node = _Node(path, printable(path.resolve().name), target, ())
            for item in _walk(node, follow_links, suffixes, linked):
                if isinstance(item, Source):
                    found.append(item)
                else:
                    left_out.append(item)
        else:
            found.append(_named_file(path, target, suffixes))
    return found, left_out


def _named_file(path: Path, target: str | None, suffixes: Collection[str]) -> Source:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not path.is_file():
        raise DataError(f"{path}: {NOT_REGULAR}; give files and folders")
    if reason := refusal(path.name, suffixes):
        raise DataError(
            f"{path}: {reason}; give a folder, text, .jsonl, .json, .parquet, .html, .epub, TEI "
            ".xml, or a .tar, .zip, .gz, .xz, .bz2 or .zst of them"
        )
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: cannot be opened (permission denied)")
    return Source(printable(path.name), path, target and printable(target))


def _walk(
    root: _Node, follow_links: bool, suffixes: Collection[str], linked: set[tuple[int, int]]
) -> Iterator[Source | LeftOut]:
    """Yield what a folder holds, in order. `linked` collects the folders that links lead to."""
    # By a stack: a folder can be deeper than Python's recursion.
    stack = [root]
    while stack:
        node = stack.pop()
        try:
            if reason := _reason_against(node, root, follow_links, suffixes):
                yield LeftOut(node.name, reason)
                continue
            status = node.path.stat()
            if not stat.S_ISDIR(status.st_mode):
                target = node.target and printable(node.target)
                yield Source(node.name, node.path, target)
                continue
            key = (status.st_dev, status.st_ino)
            if node.path.is_symlink() and node is not root:
                if key in linked:
                    yield LeftOut(node.name, "link to a folder that another link leads to")
                    continue
                linked.add(key)
            if key in node.above:
                yield LeftOut(node.name, "link to a folder around it")
                continue
            names = sorted(os.listdir(node.path), reverse=True)
        except OSError as error:
            if node is root:
                raise DataError(f"{node.path}: cannot be opened ({error.strerror})") from error
            yield LeftOut(node.name, f"cannot be opened ({error.strerror})")
            continue
        stack += [_below(node, name, key) for name in names]


def _below(folder: _Node, name: str, key: tuple[int, int]) -> _Node:
    path = folder.path / name
    if path.is_symlink():
        target: str | None = os.readlink(path)
    else:
        target = folder.target and f"{folder.target}/{name}"
    return _Node(path, f"{folder.name}/{printable(name)}", target, (*folder.above, key))


def _reason_against(
    node: _Node, root: _Node, follow_links: bool, suffixes: Collection[str]
) -> str | None:
    path = node.path
    if node is root:
        return None
    if path.name.startswith("."):
        return HIDDEN
    if path.is_symlink():
        if not follow_links:
            return "link"
        if not path.exists():
            return "dead link"
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return None
    if not stat.S_ISREG(mode):
        return NOT_REGULAR
    if reason := refusal(path.name, suffixes):
        return reason
    return None if os.access(path, os.R_OK) else "cannot be opened (Permission denied)"
