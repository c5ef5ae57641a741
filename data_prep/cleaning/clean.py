"""Shim."""

from dataclasses import dataclass, field

from data_prep.clean import clean as old
from data_prep.reading.documents import Document
from data_prep.steps import Steps


@dataclass(frozen=True)
class CleanText:
    text: str
    encoding: str = "utf-8"
    fault: str | None = None
    effects: dict[str, int] = field(default_factory=dict)


def clean(document: Document, steps: Steps) -> CleanText:
    content = document.content
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    done = old(data, "sentences" if document.form == "sentences" else "book", steps.lowercase)
    return CleanText(done.text, "latin-1" if done.latin1 else "utf-8", done.fault)
