"""Jobs of workers: hash sources, unpack an archive, clean documents, encode them, write a shard."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import Field

from data_prep.build.documents import CleanDocument
from data_prep.build.spool import read_raw, write_raw
from data_prep.build.work import Job, is_done
from data_prep.cleaning.clean import CleanText, clean
from data_prep.duplicates import write_sketch
from data_prep.encoder import open_encoder
from data_prep.reading.documents import Document, LeftOut, ReadOptions
from data_prep.reading.units import Unit, read_unit
from data_prep.shards import ShardWriter, token_dtype
from data_prep.sources import Source
from data_prep.steps import Steps
from gpt_dist.data.tokens.shards import ShardEntry
from gpt_dist.files.entries import Record, Sha256, file_sha256

Item = TypeVar("Item")

PART_BYTES = 2 << 20
"""Bytes of text that one job cleans or encodes, unless a single document is larger."""


def grouped(items: Iterable[tuple[Item, int]], size: int) -> Iterator[tuple[Item, ...]]:
    """Group items in order into tuples of at least `size` in total, except for the last.

    Args:
        items: Each item with its size.
        size: The smallest total size of a group.
    """
    group: list[Item] = []
    group_size = 0
    for item, item_size in items:
        group.append(item)
        group_size += item_size
        if group_size >= size:
            yield tuple(group)
            group, group_size = [], 0
    if group:
        yield tuple(group)


class Hashes(Record):
    """The SHA-256 of each file of a job."""

    digests: tuple[Sha256, ...]


@dataclass(frozen=True, kw_only=True)
class HashJob(Job[Hashes]):
    """Job of hashing some files whole."""

    sources: tuple[Source, ...]
    result = Hashes

    def run(self) -> Hashes:
        """Hash the files."""
        return Hashes(digests=tuple(file_sha256(source.path) for source in self.sources))


class Unpacked(Record):
    """Number of parts that a file was unpacked to."""

    parts: int


@dataclass(frozen=True, kw_only=True)
class UnpackJob(Job[Unpacked]):
    """Job of writing the documents of one large file in parts, for other workers to clean."""

    unit: Unit
    options: ReadOptions
    result = Unpacked

    def part(self, number: int) -> Path:
        """Return the path of the files of one part, without a suffix."""
        return self.prefix.with_name(f"{self.prefix.name}-{number:06d}")

    def run(self) -> Unpacked:
        """Write the parts one after another, each in one step, but not those cleaned already."""
        documents = ((item, _size(item)) for item in read_unit(self.unit, self.options))
        number = -1
        for number, items in enumerate(grouped(documents, PART_BYTES)):
            prefix = self.part(number)
            if not is_done(prefix):
                write_raw(prefix, items)
        return Unpacked(parts=number + 1)


class CleanEntry(Record):
    """Document that was cleaned, or file or document that was left out."""

    name: str
    unit: int
    """Index of the unit in the job."""
    fault: str | None = None
    """Why it gives no text."""
    read: bool = True
    """True if there was a document to clean."""
    offset: int = 0
    size: int = 0
    characters: int = 0
    digest: str = ""
    encoding: str = "utf-8"
    effects: dict[str, int] = Field(default={})


class Cleaned(Record):
    """Entries of one job, in order, and the number of bytes before cleaning."""

    entries: tuple[CleanEntry, ...]
    source_bytes: int


@dataclass(frozen=True, kw_only=True)
class CleanJob(Job[Cleaned]):
    """Job of cleaning the documents of some units, or of one part of an unpacked unit."""

    units: tuple[Unit, ...]
    unpacked: bool
    """True if the documents lie in the `raw_file` of the prefix."""
    options: ReadOptions
    steps: Steps
    sketches: bool
    """True to write a sketch of each document, for the search for duplicates."""
    result = Cleaned

    @property
    def file(self) -> Path:
        """The file of the clean text."""
        return self.prefix.with_suffix(".txt")

    @property
    def sketch(self) -> Path:
        """The file of the sketches."""
        return self.prefix.with_suffix(".sketch")

    def run(self) -> Cleaned:
        """Clean documents into one file, with a line end after each."""
        entries, texts = [], []
        offset = source_bytes = 0
        for number, item in self._items():
            if isinstance(item, LeftOut):
                data = b""
                entry = CleanEntry(name=item.name, unit=number, fault=item.reason, read=False)
            else:
                source_bytes += len(item.content)
                cleaned = clean(item, self.steps)
                data = cleaned.text.encode()
                entry = _entry(item.name, number, cleaned, data, offset)
            entries.append(entry)
            texts.append(data)
            offset += len(data) + 1
        with self.file.open("wb") as output:
            output.writelines(text + b"\n" for text in texts)
        if self.sketches:
            write_sketch(texts, self.sketch)
        return Cleaned(entries=tuple(entries), source_bytes=source_bytes)

    def _items(self) -> Iterator[tuple[int, Document | LeftOut]]:
        if self.unpacked:
            yield from ((0, item) for item in read_raw(self.prefix))
        else:
            for number, unit in enumerate(self.units):
                yield from ((number, item) for item in read_unit(unit, self.options))


class Encoded(Record):
    """Numbers of what one job encoded."""

    tokens: int
    documents: int


@dataclass(frozen=True, kw_only=True)
class EncodeJob(Job[Encoded]):
    """Job of encoding documents, each with an end-of-text token after it."""

    documents: tuple[CleanDocument, ...]
    tokenizer: Path
    """The folder that holds it."""
    result = Encoded

    def run(self) -> Encoded:
        """Write the ids of all documents, and the number of ids of each."""
        encoder = open_encoder(self.tokenizer)
        tokenizer = encoder.tokenizer
        dtype = token_dtype(tokenizer.full_vocab_size)
        lengths = []
        with self.prefix.with_suffix(".bin").open("wb") as output:
            for document in self.documents:
                ids = np.append(encoder.encode(document.text()), tokenizer.end_of_text)
                output.write(ids.astype(dtype).tobytes())
                lengths.append(len(ids))
        np.array(lengths, "<i4").tofile(self.prefix.with_suffix(".lengths"))
        return Encoded(tokens=sum(lengths), documents=len(lengths))


@dataclass(frozen=True, kw_only=True)
class ShardJob(Job[ShardEntry]):
    """Job of putting encoded documents together as the shard `name` of a token folder."""

    parts: tuple[Path, ...]
    """Prefixes of the jobs that encoded them."""
    dtype: str
    name: str
    result = ShardEntry

    def run(self) -> ShardEntry:
        """Write one shard and its index."""
        writer = ShardWriter(self.prefix, np.dtype(self.dtype))
        for part in self.parts:
            with part.with_suffix(".bin").open("rb") as stream:
                while block := stream.read(1 << 20):
                    writer.write(block)
            writer.add_lengths(np.fromfile(part.with_suffix(".lengths"), "<i4"))
        return writer.close(self.name)


def _entry(name: str, unit: int, cleaned: CleanText, data: bytes, offset: int) -> CleanEntry:
    return CleanEntry(
        name=name,
        unit=unit,
        fault=cleaned.fault,
        offset=offset,
        size=len(data),
        characters=len(cleaned.text),
        digest=sha256(data).hexdigest(),
        encoding=cleaned.encoding,
        effects=cleaned.effects,
    )


def _size(item: Document | LeftOut) -> int:
    return len(item.name) + (len(item.content) if isinstance(item, Document) else 0)
