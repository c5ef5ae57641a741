"""Cut the marks that printed pages and pictures leave in a book."""

import re

_BRACKETED = re.compile(
    r"[ \t]?[\[{](?:pg|p\.|page) ?\.? ?(?:\d{1,4}|[ivxlc]{1,7})[\]}]", re.IGNORECASE
)
_PICTURE = re.compile(r"\[(?:illustration|frontispiece|picture)(?::[^\[\]]{0,2000})?\.?\]", re.I)
_PAGE_NUMBER = re.compile(
    r"(?<=\n\n)[ \t]*(?:\d{1,4}|-+ ?\d{1,4} ?-+|page \d{1,4})[ \t]*(?=\n[ \t]*(?:\n|\Z))", re.I
)


def strip_page_marks(text: str) -> str:
    """Return a text without `[Pg 13]`, `[Illustration: ...]` and lines of a page number alone."""
    if "[" in text or "{" in text:
        text = _PICTURE.sub("", _BRACKETED.sub("", text))
    return _PAGE_NUMBER.sub("", text)
