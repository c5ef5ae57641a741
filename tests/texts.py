"""Clean texts with the steps of a recipe."""

from pathlib import Path

from data_prep.cleaning.clean import CleanText, clean
from data_prep.reading.documents import Document, Form
from data_prep.steps import RECIPES

TEXTS = Path(__file__).parent / "fixtures/text"
SHARED = Path(__file__).parents[2] / "shared/data"


def cleaned(
    content: bytes | str | Path, form: Form = "text", recipe: str = "books", **changes: object
) -> CleanText:
    """Clean a text, or the text of a file, with a recipe whose steps are changed."""
    if isinstance(content, Path):
        content = content.read_bytes()
    steps = RECIPES[recipe].model_copy(update=changes)
    return clean(Document("document", content, form), steps)


def clean_text(content: bytes | str | Path, form: Form = "text", **changes: object) -> str:
    """Return the text that the books' recipe makes."""
    return cleaned(content, form, **changes).text
