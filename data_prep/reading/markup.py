"""Read HTML and TEI: the text of their blocks, one paragraph a line.

No entity, file or address outside the markup is opened. Of HTML, all is read but the head, scripts
and the like. Of TEI (P4 or P5), the body of the text is read, and its notes after it; other XML is
left out. A file has 16 MiB and half a million tags.
"""

import codecs
import html
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BufferedReader

from lxml import etree

from data_prep.cleaning.encodings import Decoded, decode, marked_encoding
from data_prep.reading.documents import Document, LeftOut, ReadOptions, document_of

MARKUP_BYTES = 16 << 20
_MAX_TAGS = 500_000
_XHTML = "{http://www.w3.org/1999/xhtml}html"

_DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_XML_DECLARED = re.compile(rb"""(?<=<\?xml)[^>]*?\sencoding\s*=\s*["']([\w.:-]+)""")
_CHARSET_BYTES = 4096
_TAG = re.compile(rb"<[^<>]*>")
# The bytes themselves tell the encodings of Unicode, and the others are unknown or for no page.
_DECLARED_IN_VAIN = re.compile("|ascii|utf-.*|punycode|.*escape")
_OFTEN_UTF8 = ("iso8859-1", "cp1252")  # whatever they declare
_AS_BROWSERS_DO = {"iso8859-1": "cp1252"}
_SPACE = re.compile(r"[ \t\r\n\f]+")
_ANY = ReadOptions()


@dataclass(frozen=True)
class _Language:
    """Roles of tags. A tag in no set is part of the line around it."""

    blocks: frozenset[str]
    skipped: frozenset[str]
    breaks: frozenset[str]
    spaces: frozenset[str]
    verbatim: frozenset[str]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_HTML = _Language(
    blocks=_words(
        "address article aside blockquote body caption center dd details dialog dir div dl dt "
        "fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 header hr html legend li main "
        "menu nav ol p pre section summary table tbody tfoot thead tr ul"
    ),
    skipped=_words(
        "audio button canvas head iframe noscript object script select style svg template "
        "textarea title video"
    ),
    breaks=_words("br"),
    spaces=_words("td th"),
    verbatim=_words("pre"),
)
_TEI = _Language(
    blocks=_words(
        "ab argument body byline cell closer dateline div div0 div1 div2 div3 div4 div5 div6 div7 "
        "epigraph figure floatingText front head item l label lg list note opener p postscript "
        "row salute signed sp speaker stage table text trailer"
    ),
    skipped=_words("figDesc fw note teiHeader"),
    breaks=_words(""),
    spaces=_words("lb"),
    verbatim=_words(""),
)
_IN_CHOICE = _words("abbr orig sic")  # which another reading stands beside


class MarkupError(Exception):
    """Markup cannot be read whole; the message is the reason to leave it out."""


def read_markup(
    name: str, kind: str, stream: BufferedReader, options: ReadOptions
) -> Iterator[Document | LeftOut]:
    """Yield the text of an `html` file, or of each TEI text in an `xml` file."""
    data = stream.read(MARKUP_BYTES + 1)
    try:
        if kind == "html":
            yield document_of(name, html_text(data, options), "paragraphs")
            return
        decoded = _decode(data, options, _XML_DECLARED)
        texts = _xml_texts(parse_xml(decoded.text.encode("utf-8", "replace"), "utf-8"))
    except MarkupError as error:
        yield LeftOut(name, str(error))
        return
    for number, text in enumerate(texts, 1):
        label = name if len(texts) == 1 else f"{name}#{number}"
        yield document_of(label, replace(decoded, text=text), "paragraphs")


def html_text(data: bytes, options: ReadOptions = _ANY) -> Decoded:
    """Return the text of HTML or XHTML.

    Raises:
        MarkupError: It is too large, too deep, or not text in a known encoding.
    """
    decoded = _decode(data, options, _DECLARED)
    text = decoded.text.replace("\0", "")
    data = text.encode("utf-8", "replace")
    root = None
    if "<?xml" in text[:8] or _XHTML[1:-5] in text[:_CHARSET_BYTES]:
        with suppress(MarkupError):  # much XHTML is not XML
            root = parse_xml(data, "utf-8")
    if root is None:
        root = _parse_html(data)
    return replace(decoded, text="" if root is None else "\n".join(_paragraphs(root, _HTML)))


def parse_xml(data: bytes, encoding: str | None = None) -> etree._Element:
    """Parse XML without opening anything else; libxml2 refuses entities that multiply.

    Raises:
        MarkupError: It is too large, or does not parse.
    """
    _check_size(data)
    parser = etree.XMLParser(
        encoding=encoding,
        resolve_entities="internal",
        load_dtd=False,
        no_network=True,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        return etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise MarkupError("XML that does not parse") from error


def _check_size(data: bytes) -> None:
    if len(data) > MARKUP_BYTES or data.count(b"<") > _MAX_TAGS:
        raise MarkupError(f"markup of more than {MARKUP_BYTES >> 20} MiB or {_MAX_TAGS} tags")


def _parse_html(data: bytes) -> etree._Element | None:
    parser = etree.HTMLParser(
        encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True
    )
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError:
        return None  # for nothing but space
    if parser.error_log.filter_types([etree.ErrorTypes.ERR_RESOURCE_LIMIT]):
        raise MarkupError("markup that is too deep")
    return root


def _decode(data: bytes, options: ReadOptions, declaration: re.Pattern[bytes]) -> Decoded:
    """Decode markup; an encoding that it declares but is not in is named beside the real one.

    Raises:
        MarkupError: It is too large, or not text in a known encoding.
    """
    _check_size(data)
    found = declaration.search(data, 0, _CHARSET_BYTES)
    declared = _codec(found[1].decode("ascii", "replace")) if found else ""
    decoded = _decode_as_declared(data, declared if found else None, options)
    if decoded.fault:
        raise MarkupError(decoded.fault)
    names = declared, _AS_BROWSERS_DO.get(declared, declared)
    if declared and not data.isascii() and not decoded.encoding.startswith(names):
        return replace(decoded, encoding=f"{decoded.encoding} (declared {declared})")
    return decoded


def _decode_as_declared(data: bytes, declared: str | None, options: ReadOptions) -> Decoded:
    """Decode by the mark, the declared or given encoding, as UTF-8, or as the bytes seem to be."""
    if marked_encoding(data):
        return decode(data)
    if declared is not None:
        in_vain = _DECLARED_IN_VAIN.fullmatch(declared)
        if in_vain or declared in _OFTEN_UTF8:
            with suppress(UnicodeDecodeError):
                return Decoded(data.decode(), "utf-8")
        encoding = _AS_BROWSERS_DO.get(declared, declared)
        if not in_vain and not (decoded := decode(data, encoding)).fault:
            return decoded
    if options.encoding:
        return decode(data, options.encoding)
    # Tags hide from a detector how the text looks. In UTF-16 without a mark they are not found.
    text = data if b"\0" in data else _TAG.sub(b"\n", data)
    decoded = decode(text, guess=options.guess)
    return decoded if decoded.fault or text is data else decode(data, decoded.encoding)


def _codec(name: str) -> str:
    """Return Python's name of a declared encoding, or an empty one if it is not known."""
    try:
        known = codecs.lookup(name).name
        b" ".decode(known, "replace")
    except (LookupError, UnicodeError):
        return ""
    return known


def _xml_texts(root: etree._Element) -> list[str]:
    """Return the text of each TEI element, or of XHTML."""
    if root.tag == _XHTML:
        return ["\n".join(_paragraphs(root, _HTML))]
    texts = []
    for element in root.iter("{*}TEI", "{*}TEI.2"):
        bodies = [
            *element.findall("{*}text/{*}body"),
            *element.findall("{*}text/{*}group//{*}text/{*}body"),
        ]
        notes = [note for body in bodies for note in body.iterdescendants("{*}note")]
        lines = [line for part in (*bodies, *notes) for line in _paragraphs(part, _TEI)]
        texts.append("\n".join(lines))
    if not texts:
        raise MarkupError("XML that is not TEI")
    return texts


def _paragraphs(root: etree._Element, language: _Language) -> Iterator[str]:
    """Yield the lines of all blocks in an element, in order."""
    parts: list[str] = []
    verbatim = 0
    for text, tag, opens in _walk(root, language):
        change = 0
        if tag in language.verbatim:
            change = 1 if opens else -1
        if tag in language.blocks or tag in language.breaks:
            yield from _lines(parts, verbatim > 0)
            parts = []
        elif tag in language.spaces:
            parts.append(" ")
        verbatim += change
        parts.append(text)
    yield from _lines(parts, verbatim > 0)


def _lines(parts: Iterable[str], verbatim: bool) -> Iterator[str]:
    text = "".join(parts)
    lines = text.splitlines() if verbatim else [_SPACE.sub(" ", text).strip(" ")]
    for line in lines:
        if line and not line.isspace():
            yield line


def _walk(root: etree._Element, language: _Language) -> Iterator[tuple[str, str, bool]]:
    """Yield the text after each start and end tag, with the tag, and whether it is a start."""
    yield root.text or "", _local_name(root), True
    # By a stack: markup can be deeper than Python's recursion.
    stack = [(root, iter(root))]
    while stack:
        parent, children = stack[-1]
        child = next(children, None)
        if child is None:
            stack.pop()
            if stack:
                yield parent.tail or "", _local_name(parent), False
            continue
        if child.tag is etree.Entity:
            yield html.unescape(child.text) + (child.tail or ""), "", True
            continue
        tag = _local_name(child)
        hidden = tag in _IN_CHOICE and _local_name(parent) == "choice"
        if hidden or tag in language.skipped:
            yield child.tail or "", "", False
            continue
        yield child.text or "", tag, True
        stack.append((child, iter(child)))


def _local_name(element: etree._Element) -> str:
    return element.tag.rpartition("}")[2]
