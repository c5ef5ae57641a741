"""Plan and read units: whole files, and ranges of large files of text or lines."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader, FileIO

from data_prep.reading.containers import BUFFER_BYTES, FileReader, damage_named
from data_prep.reading.documents import DOCUMENT_BYTES, Document, LeftOut, ReadOptions
from data_prep.reading.rows import has_lines, read_json_range
from data_prep.reading.text import BLOCK_BYTES, is_wide, read_text_range
from data_prep.sources import Source


@dataclass(frozen=True)
class Unit:
    """Part of one source for one worker to read: its bytes `begin` to `end`, or the whole."""

    source: Source
    begin: int
    end: int | None
    """None for the whole."""


def plan_units(source: Source, options: ReadOptions, unit_bytes: int) -> list[Unit]:
    """Divide a file of more than 32 MiB of text or lines into ranges; keep any other whole.

    The documents of all units, one after another, do not depend on `unit_bytes`, which is rounded
    to blocks of 16 MiB.

    Raises:
        DataError: The file cannot be opened.
    """
    with damage_named(source.path):
        size = source.path.stat().st_size
        if size <= DOCUMENT_BYTES or not _divides(source, options):
            return [Unit(source, 0, None)]
    step = max(1, unit_bytes // BLOCK_BYTES) * BLOCK_BYTES
    return [Unit(source, begin, min(begin + step, size)) for begin in range(0, size, step)]


def read_unit(unit: Unit, options: ReadOptions) -> Iterator[Document | LeftOut]:
    """Yield the documents of a unit in order, and what is left out.

    A document belongs to the unit in which it begins.

    Raises:
        DataError: The file is damaged, or goes beyond a limit; the message names it.
    """
    with damage_named(unit.source.path):
        for item in _items(unit, options):
            yield from _separated(item, options.separator)


def _divides(source: Source, options: ReadOptions) -> bool:
    with BufferedReader(FileIO(source.path), BUFFER_BYTES) as stream:
        kind = FileReader(source.path, options).kind(source.name, stream)
        if kind not in {"text", "jsonl", "json"} or is_wide(stream, options.encoding):
            return False
        return kind == "text" or has_lines(stream.peek(), kind)


def _items(unit: Unit, options: ReadOptions) -> Iterator[Document | LeftOut]:
    source = unit.source
    reader = FileReader(source.path, options)
    with BufferedReader(FileIO(source.path), BUFFER_BYTES) as stream:
        kind = reader.kind(source.name, stream)
        if unit.end is None:
            yield from reader.read(source.name, source.name, stream)
        elif kind == "text":
            yield from read_text_range(source.name, stream, unit.begin, unit.end, options)
        else:
            yield from read_json_range(source.name, stream, unit.begin, unit.end, options)


def _separated(item: Document | LeftOut, separator: str) -> Iterator[Document | LeftOut]:
    """Yield the parts of a text that was decoded; those of bytes are separated already."""
    if (
        not separator
        or isinstance(item, LeftOut)
        or isinstance(item.content, bytes)
        or separator not in item.content
    ):
        yield item
        return
    parts = [part for part in item.content.split(separator) if part and not part.isspace()]
    for number, part in enumerate(parts, 1):
        yield Document(f"{item.name}#{number}", part, item.form)
