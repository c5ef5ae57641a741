"""Plan and read units: whole files, and ranges of large files of text or lines."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BufferedReader

from data_prep.reading.containers import FileReader, kind_in
from data_prep.reading.documents import DOCUMENT_BYTES, EMPTY, Document, LeftOut, ReadOptions
from data_prep.reading.rows import has_lines, read_json_range
from data_prep.reading.text import BLOCK_BYTES, is_wide, read_text_range
from data_prep.reading.unpacking import damage_named, opened
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
    return (item for _, item in read_placed(unit, options))


def read_placed(unit: Unit, options: ReadOptions) -> Iterator[tuple[int, Document | LeftOut]]:
    """Yield what `read_unit` does, each with the place in the file up to which bytes were used."""
    with damage_named(unit.source.path), opened(unit.source.path) as stream:
        for item in _items(unit, stream, options):
            yield from ((stream.tell(), part) for part in _separated(item, options.separator))


def _divides(source: Source, options: ReadOptions) -> bool:
    with opened(source.path) as stream:
        kind = kind_in(source.name, stream)
        if kind not in {"text", "jsonl", "json"} or is_wide(stream, options.encoding):
            return False
        return kind == "text" or has_lines(stream.peek(), kind)


def _items(
    unit: Unit, stream: BufferedReader, options: ReadOptions
) -> Iterator[Document | LeftOut]:
    name, path = unit.source.name, unit.source.path
    if unit.end is None:
        yield from FileReader(path, options).read(name, name, stream)
    elif kind_in(name, stream) == "text":
        yield from read_text_range(name, stream, unit.begin, unit.end, options)
    else:
        yield from read_json_range(name, stream, unit.begin, unit.end, options)


def _separated(item: Document | LeftOut, separator: str) -> Iterator[Document | LeftOut]:
    """Yield the parts of a text that is decoded already; bytes are divided where they are read."""
    if isinstance(item, LeftOut) or isinstance(item.content, bytes):
        yield item
    elif not item.content or item.content.isspace():
        yield LeftOut(item.name, EMPTY)
    elif not separator or separator not in item.content:
        yield item
    else:
        parts = item.content.split(separator)
        for number, part in enumerate((part for part in parts if part.strip()), 1):
            yield replace(item, name=f"{item.name}#{number}", content=part)
