"""Group documents into jobs, and do the two jobs of workers: clean a batch, encode a shard."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_prep.cleaning.clean import clean
from data_prep.documents import read_text
from data_prep.reading.documents import Document
from data_prep.sources import Source
from data_prep.steps import RECIPES
from gpt_dist.data.tokenizers.folder import open_tokenizer
from gpt_dist.data.tokens.shards import ShardEntry, ShardWriter, token_dtype

Item = TypeVar("Item")


@dataclass(frozen=True)
class CleanJob:
    """Job of cleaning `items`, either text files to open or documents, into the file `output`."""

    items: tuple[Source | Document, ...]
    output: Path
    lowercase: bool


@dataclass(frozen=True, slots=True)
class CleanDocument:
    """Clean text of a document, which lies in a file as UTF-8."""

    name: str
    file: Path
    offset: int  # bytes
    size: int  # bytes
    characters: int
    digest: bytes  # SHA-256 of the text
    latin1: bool
    fault: str | None

    def lines(self, begin: int, end: int) -> Iterator[bytes]:
        """Yield the lines that begin in the bytes `begin` to `end` of the text."""
        with self.file.open("rb") as stream:
            stream.seek(self.offset + begin)
            if begin:
                stream.seek(-1, 1)
                stream.readline()
            while stream.tell() < self.offset + min(end, self.size):
                yield stream.readline(self.offset + self.size - stream.tell()).rstrip(b"\n")

    def text(self) -> str:
        """Read the whole text."""
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.size).decode()

    def cut(self, position: int, slack: float) -> tuple["CleanDocument", "CleanDocument"] | None:
        """Cut the document in two near the byte `position`, or return None if it is a single word.

        The cut is at the nearest line end, or at the nearest space if no line end lies within
        `slack` bytes.
        """
        data = self.text().encode()
        line_ends, spaces = (
            {data.rfind(mark, 0, position), data.find(mark, position)} - {-1}
            for mark in (b"\n", b" ")
        )
        near = {place for place in line_ends if abs(place - position) <= slack}
        places = near or line_ends | spaces
        if not places:
            return None
        place = min(places, key=lambda place: (abs(place - position), place))
        return self._part(data, 0, place), self._part(data, place + 1, len(data))

    def _part(self, data: bytes, begin: int, end: int) -> "CleanDocument":
        part = data[begin:end]
        return replace(
            self,
            offset=self.offset + begin,
            size=len(part),
            characters=len(part.decode()),
            digest=hashlib.sha256(part).digest(),
        )


@dataclass(frozen=True)
class CleanBatch:
    """Clean documents of one job, in order, and the number of their raw bytes."""

    documents: list[CleanDocument]
    source_bytes: int


@dataclass(frozen=True)
class EncodeJob:
    """Job of encoding `documents`, each with an end-of-text token, into the shard `prefix`."""

    documents: tuple[CleanDocument, ...]
    tokenizer: Path  # the folder that holds it
    prefix: Path


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


def clean_batch(job: CleanJob) -> CleanBatch:
    """Clean documents into one file, with a line end after each."""
    done: list[CleanDocument] = []
    source_bytes = 0
    steps = RECIPES["books"].model_copy(update={"lowercase": job.lowercase})
    with job.output.open("wb") as output:
        for document in _documents(job.items):
            cleaned = clean(document, steps)
            data = cleaned.text.encode()
            done.append(
                CleanDocument(
                    name=document.name,
                    file=job.output,
                    offset=output.tell(),
                    size=len(data),
                    characters=len(cleaned.text),
                    digest=hashlib.sha256(data).digest(),
                    latin1=cleaned.encoding in ("iso8859-1", "cp1252"),
                    fault=cleaned.fault,
                )
            )
            output.write(data + b"\n")
            source_bytes += len(document.content)
    return CleanBatch(done, source_bytes)


def encode_part(job: EncodeJob) -> ShardEntry:
    """Write one shard and its index."""
    tokenizer = open_tokenizer(job.tokenizer)
    writer = ShardWriter(job.prefix, token_dtype(tokenizer.full_vocab_size))
    for document in job.documents:
        writer.add_document(np.append(tokenizer.encode(document.text()), tokenizer.end_of_text))
    return writer.close()


def _documents(items: tuple[Source | Document, ...]) -> Iterator[Document]:
    for item in items:
        if isinstance(item, Document):
            yield item
        else:
            with item.path.open("rb") as stream:
                yield from read_text(item.name, stream)
