"""Inputs for the tests of reading, and what is read from them."""

import io
import tarfile
from pathlib import Path

from data_prep.reading.documents import Document, LeftOut, ReadOptions
from data_prep.reading.units import plan_units, read_unit
from data_prep.sources import Source, find_sources

FIXTURES = Path(__file__).parent / "fixtures" / "text"
PLAIN = ReadOptions()
UNIT_BYTES = 64 << 20


def read_all(
    *inputs: Path, options: ReadOptions = PLAIN, unit_bytes: int = UNIT_BYTES
) -> tuple[list[Document], list[LeftOut]]:
    """Return all documents of files and folders, and what is left out of the files."""
    items = [
        item
        for source in find_sources(inputs)[0]
        for unit in plan_units(source, options, unit_bytes)
        for item in read_unit(unit, options)
    ]
    documents = [item for item in items if isinstance(item, Document)]
    return documents, [item for item in items if isinstance(item, LeftOut)]


def texts_of(*inputs: Path, options: ReadOptions = PLAIN) -> list[str]:
    """Return the texts of all documents, decoded as UTF-8."""
    return [text_of(document) for document in read_all(*inputs, options=options)[0]]


def text_of(document: Document) -> str:
    """Return the text of a document."""
    content = document.content
    return content if isinstance(content, str) else content.decode()


def reasons_in(*inputs: Path) -> dict[str, str]:
    """Return the reason for each name that is left out."""
    return {item.name: item.reason for item in read_all(*inputs)[1]}


def source_of(path: Path) -> Source:
    """Return a file as a source."""
    return Source(path.name, path)


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file to an open archive."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
