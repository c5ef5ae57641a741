"""Index of the documents of a corpus, which lies in a folder so that any process can open it."""

import json
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.duplicates.buckets import read_extra
from data_prep.duplicates.sketch import COUNT, FINGERPRINT

_ENTRY = np.dtype([("file", "<u4"), ("offset", "<u8"), ("size", "<u8"), ("fingerprints", "<u4")])


class TextRange(NamedTuple):
    """Clean text that lies in a file as a range of bytes."""

    file: Path
    """File that holds the text, as UTF-8."""
    offset: int
    """Byte at which the text begins."""
    size: int
    """Number of bytes."""


class Corpus:
    """Documents of a corpus by number: their texts, the sizes of their sketches, which are kept."""

    def __init__(self, folder: Path) -> None:
        """Open the index in `folder`, which takes 24 bytes a document on disk."""
        self.folder = folder

    @classmethod
    def create(
        cls,
        folder: Path,
        documents: Sequence[TextRange],
        sketches: Sequence[Path],
        left_out: Collection[int],
    ) -> "Corpus":
        """Write the index of `documents`, whose sketches lie in `sketches` in the same order."""
        folder.mkdir(parents=True, exist_ok=True)
        counts = [read_extra(path, FINGERPRINT, COUNT) for path in sketches]
        entries = np.zeros(len(documents), _ENTRY)
        entries["fingerprints"] = np.concatenate([np.empty(0, COUNT), *counts])
        files: dict[Path, int] = {}
        entries["file"] = [files.setdefault(each.file, len(files)) for each in documents]
        entries["offset"] = [each.offset for each in documents]
        entries["size"] = [each.size for each in documents]
        np.save(folder / "documents.npy", entries)
        first = np.cumsum([0, *map(len, counts)]).tolist()
        names = {
            "files": [str(file.absolute()) for file in files],
            "sketches": [str(path.absolute()) for path in sketches],
            "first": first,
        }
        (folder / "files.json").write_text(json.dumps(names))
        corpus = cls(folder)
        kept = np.ones(len(documents), np.bool_)
        kept[list(left_out)] = False
        corpus.record(kept, np.empty(0, np.uint64))
        return corpus

    def record(self, kept: NDArray[np.bool_], compared: NDArray[np.uint64]) -> None:
        """Record which documents are still kept, and which pairs have been compared."""
        np.save(self.folder / "kept.npy", kept)
        np.save(self.folder / "compared.npy", compared)

    def kept(self) -> NDArray[np.bool_]:
        """Return which documents are still kept."""
        kept: NDArray[np.bool_] = np.load(self.folder / "kept.npy")
        return kept

    def compared(self) -> NDArray[np.uint64]:
        """Return the pairs that have been compared (see `similarity.Comparisons`)."""
        compared: NDArray[np.uint64] = np.load(self.folder / "compared.npy")
        return compared

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def fingerprints(self) -> NDArray[np.uint32]:
        """Number of fingerprints of each document."""
        return self._entries["fingerprints"]

    @property
    def sizes(self) -> NDArray[np.uint64]:
        """Number of bytes of each document."""
        return self._entries["size"]

    @property
    def sketches(self) -> list[tuple[Path, int]]:
        """Sketch files, and the number of each one's first document."""
        return [
            (Path(name), first)
            for name, first in zip(self._names["sketches"], self._names["first"], strict=False)
        ]

    def read(self, number: int, begin: int = 0, end: int | None = None) -> bytes:
        """Read the bytes `begin` to `end` of a document, as far as it has them."""
        entry = self._entries[number]
        begin = max(0, begin)
        end = int(entry["size"]) if end is None else min(end, int(entry["size"]))
        with Path(self._names["files"][int(entry["file"])]).open("rb") as stream:
            stream.seek(int(entry["offset"]) + begin)
            return stream.read(max(0, end - begin))

    @cached_property
    def _entries(self) -> NDArray[Any]:
        entries: NDArray[Any] = np.load(self.folder / "documents.npy", mmap_mode="r")
        return entries

    @cached_property
    def _names(self) -> dict[str, Any]:
        names: dict[str, Any] = json.loads((self.folder / "files.json").read_text())
        return names
