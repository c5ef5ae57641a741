"""Near-duplicate documents and repeated passages of a corpus."""

from data_prep.duplicates.corpus import TextRange
from data_prep.duplicates.find import (
    Dropped,
    Findings,
    find_duplicates,
)
from data_prep.duplicates.passages import Cut
from data_prep.duplicates.sketch import write_sketch

__all__ = [
    "Cut",
    "Dropped",
    "Findings",
    "TextRange",
    "find_duplicates",
    "write_sketch",
]
