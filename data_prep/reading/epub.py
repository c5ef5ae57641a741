"""Read an epub: the text of its spine, in reading order, one paragraph a line."""

import posixpath
import zipfile
from collections.abc import Iterator
from urllib.parse import unquote

from data_prep.cleaning.encodings import Decoded
from data_prep.reading.documents import (
    DOCUMENT_BYTES,
    TOO_LONG,
    Document,
    LeftOut,
    ReadOptions,
    document_of,
)
from data_prep.reading.markup import MARKUP_BYTES, MarkupError, html_text, parse_xml
from data_prep.reading.unpacking import Budget, buffered

_CONTAINER = "META-INF/container.xml"
_PAGES = {"application/xhtml+xml", "text/html", "application/x-dtbook+xml", "text/x-oeb1-document"}


def read_epub(
    name: str, archive: zipfile.ZipFile, budget: Budget, options: ReadOptions
) -> Document | LeftOut:
    """Return the book, without the pages that are for navigation alone."""
    pages: list[Decoded] = []
    try:
        for page in _spine(archive, budget):
            pages.append(html_text(_member(archive, page, budget), options))
            if sum(len(page.text) for page in pages) > DOCUMENT_BYTES:
                return LeftOut(name, TOO_LONG)
    except MarkupError as error:
        return LeftOut(name, str(error))
    except (KeyError, RuntimeError):  # a page is missing, or encrypted
        return LeftOut(name, "epub without readable pages")
    text = "\n".join(page.text for page in pages if page.text)
    encoding = next((page.encoding for page in pages if page.encoding != "utf-8"), "utf-8")
    broken = sum(page.broken for page in pages)
    return document_of(name, Decoded(text, encoding, broken), "paragraphs")


def _spine(archive: zipfile.ZipFile, budget: Budget) -> Iterator[str]:
    """Yield the members of an archive that are the pages of a book."""
    container = parse_xml(_member(archive, _CONTAINER, budget))
    rootfile = container.find(".//{*}rootfile")
    package = rootfile.get("full-path", "") if rootfile is not None else ""
    root = parse_xml(_member(archive, package, budget))
    items = {item.get("id"): item for item in root.iterfind(".//{*}manifest/{*}item")}
    for reference in root.iterfind(".//{*}spine/{*}itemref"):
        item = items[reference.get("idref")]
        if item.get("media-type") in _PAGES and "nav" not in item.get("properties", "").split():
            path = unquote(item.get("href", "")).partition("#")[0]
            yield posixpath.normpath(posixpath.join(posixpath.dirname(package), path))


def _member(archive: zipfile.ZipFile, name: str, budget: Budget) -> bytes:
    with archive.open(name) as content:
        return buffered(content, budget).read(MARKUP_BYTES + 1)
