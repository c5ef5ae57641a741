"""Near-duplicate documents and repeated passages of a corpus."""

from data_prep.duplicates.find import (
    PASSAGE_WORDS,
    THRESHOLD,
    Dropped,
    Findings,
    find_duplicates,
)
from data_prep.duplicates.passages import Cut
from data_prep.duplicates.sketch import write_sketch

__all__ = [
    "PASSAGE_WORDS",
    "THRESHOLD",
    "Cut",
    "Dropped",
    "Findings",
    "find_duplicates",
    "write_sketch",
]
