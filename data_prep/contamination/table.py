"""Print the result of a search for the texts of tests."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep.contamination.overlap import Contamination, FileOverlap

_EXAMPLES = 3
_FILES = 3  # in a table
_EXAMPLE_CHARACTERS = 80

HEADERS = (
    "file", "texts", "not judged", "dirty by 13-grams", "exact, of 8 to 12 words",
    "in train", "in validation", "too common", "share of 13-grams",
)  # fmt: skip


def row_of(overlap: FileOverlap) -> tuple[str, ...]:
    """Return the counts of one file, one for each of HEADERS."""
    share = 100 * overlap.found / overlap.grams if overlap.grams else 0
    return (
        overlap.file,
        f"{overlap.texts:,}",
        f"{overlap.not_judged:,}",
        f"{overlap.dirty:,} of {overlap.by_grams:,}",
        f"{overlap.exact:,} of {overlap.by_whole:,}",
        f"{overlap.train:,}",
        f"{overlap.validation:,}",
        f"{overlap.common:,}",
        f"{share:.3g} %",
    )


def examples_of(overlap: FileOverlap, count: int = _EXAMPLES) -> Iterable[tuple[str, str, str]]:
    """Yield place, split and passage of the first texts that were found."""
    for text in overlap.overlaps[:count]:
        kind = f"{text.found:,} of {text.grams:,} 13-grams" if text.found else "exact"
        yield text.where, f"{kind} in {' and '.join(text.splits)}", text.passage


def print_contamination(result: Contamination, tokens: Path, seconds: float) -> None:
    """Print tables with a column a file, and examples below them."""
    console = Console(highlight=False, markup=False)
    for begin in range(0, len(result.files), _FILES):
        title = None if begin else f"Texts of tests in {tokens}"
        table = Table(title=title, title_justify="left", show_header=False)
        for row in zip(HEADERS, *map(row_of, result.files[begin : begin + _FILES]), strict=True):
            table.add_row(*row)
        console.print(table)
    for overlap in result.files:
        for where, found, passage in examples_of(overlap):
            cut = "…" if len(passage) > _EXAMPLE_CHARACTERS else ""
            text = passage[:_EXAMPLE_CHARACTERS]
            console.print(f"{where}: {found}: {text}{cut}", soft_wrap=True)
    console.print(
        f"Grams that occur in more than {result.max_documents} documents were ignored. "
        f"{seconds:.1f} s",
        soft_wrap=True,
    )
