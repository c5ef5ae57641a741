"""Tell by name and first bytes how a file is read, and why another one is not."""

import codecs
import re
from collections.abc import Collection
from typing import Literal

Kind = Literal[
    "text", "jsonl", "json", "parquet", "html", "xml", "epub",
    "tar", "zip", "gz", "xz", "bz2", "zst",
]  # fmt: skip

HEAD_BYTES = 8 << 10
"""Number of first bytes that `sniff` is given."""
PACKED: frozenset[Kind] = frozenset({"gz", "xz", "bz2", "zst"})
"""Kinds that hold one file each."""
ARCHIVES: frozenset[Kind] = PACKED | {"tar", "zip"}

HIDDEN = "hidden"
NOT_REGULAR = "not a regular file"
NOT_TEXT = "not read: no text"

_SUFFIXES: dict[str, Kind] = {
    "txt": "text", "text": "text", "md": "text", "markdown": "text",
    "jsonl": "jsonl", "ndjson": "jsonl", "json": "json", "parquet": "parquet",
    "html": "html", "htm": "html", "xhtml": "html", "xml": "xml", "epub": "epub",
    "tar": "tar", "zip": "zip", "gz": "gz", "xz": "xz", "bz2": "bz2", "zst": "zst",
    "tgz": "gz", "txz": "xz", "tbz2": "bz2", "tzst": "zst",
}  # fmt: skip
_TAR_SUFFIX = re.compile(r"\.t(gz|xz|bz2|zst)$", re.IGNORECASE)
# The number in "Vol. 2" and the words after "Mr. " are no suffixes.
_SUFFIX = re.compile(r"\.(?=\w*[a-z])(\w{1,10})$", re.IGNORECASE | re.ASCII)
_UTF8_SUFFIX = re.compile(r"(?<=\.txt)\.utf-?8$", re.IGNORECASE)  # as Gutenberg names files
_NO_TEXT = (
    *("png", "jpg", "jpeg", "gif", "webp", "bmp", "ico", "tif", "tiff", "svg", "mp3", "ogg", "wav"),
    *("mp4", "avi", "mkv", "webm", "ttf", "otf", "woff", "woff2", "exe", "dll", "so", "o", "pyc"),
)
_REMEDIES = {
    **dict.fromkeys(_NO_TEXT),
    **dict.fromkeys(["pdf", "djvu", "ps"], "convert it with pdftotext or the like"),
    **dict.fromkeys(["mobi", "azw", "azw3", "fb2", "lit"], "convert it to .epub"),
    **dict.fromkeys(["doc", "docx", "odt", "rtf", "tex", "rst"], "convert it to .txt with pandoc"),
    **dict.fromkeys(["rar", "7z", "lz4", "lz", "z", "lzma", "br"], "unpack it"),
    **dict.fromkeys(["csv", "tsv", "arrow", "db", "sqlite"], "convert it to .jsonl or .parquet"),
}
_MAGIC: dict[bytes, Kind] = {
    b"\x1f\x8b\x08": "gz",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zst",
    b"PK\x03\x04": "zip",
    b"PAR1": "parquet",
}
_BZ2 = re.compile(rb"BZh[1-9]1AY&SY")
_HTML = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+)?html\b", re.I | re.S
)
_CONTROL = bytes({*range(32)} - {*b"\t\n\v\f\r\x1a\x1b"})
_MAX_CONTROL_SHARE = 0.08


def kind_of(name: str) -> Kind | None:
    """Return how a file of this name is read; None if the name has no suffix, or an unknown one."""
    found = _SUFFIX.search(_UTF8_SUFFIX.sub("", name))
    return _SUFFIXES.get(found[1].lower()) if found else None


def refusal(name: str, suffixes: Collection[str] = ()) -> str | None:
    """Return the reason and remedy if a file of this name is not read.

    Args:
        name: The name.
        suffixes: Suffixes, without a dot, that are not known but read.
    """
    found = _SUFFIX.search(_UTF8_SUFFIX.sub("", name))
    suffix = found[1].lower() if found else None
    if suffix is None or suffix in _SUFFIXES or suffix in suffixes:
        return None
    remedy = _REMEDIES.get(suffix, f"if it is text, give --read-suffix {suffix}")
    return f"not read: .{suffix}" + (f" ({remedy})" if remedy else "")


def unpacked_name(name: str) -> str:
    """Return the name of the file inside a packed one: without the last suffix, or with `.tar`."""
    if _TAR_SUFFIX.search(name):
        return _TAR_SUFFIX.sub(".tar", name)
    return name.rpartition(".")[0] if kind_of(name) in PACKED else name


def sniff(head: bytes) -> Kind | None:
    """Return how a file with these first bytes is read; None if they are not text."""
    if head[257:262] == b"ustar":
        return "tar"
    if _BZ2.match(head):
        return "bz2"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return "epub" if head[38:58] == b"application/epub+zip" else kind
    if _HTML.match(head):
        return "html"
    return "text" if _is_text(head) else None


def _is_text(head: bytes) -> bool:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    control = len(head) - len(head.translate(None, _CONTROL))
    return control <= len(head) * _MAX_CONTROL_SHARE
