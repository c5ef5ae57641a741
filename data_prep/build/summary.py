"""Print the summary of a build."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote

from rich.console import Console
from rich.table import Table

from data_prep.build.selection import SHARE_TOLERANCE
from data_prep.manifest import BuildManifest
from data_prep.progress import amount

_NAMES = 3


def print_summary(manifest: BuildManifest, held_out: float, output: Path, seconds: float) -> None:
    """Print the closing table of a build and the command to type next.

    Args:
        manifest: The manifest of the token folder.
        held_out: The share of its text, in bytes, that is held out for validation.
        output: The token folder.
        seconds: The time that the build took.
    """
    wanted = manifest.options.validation_fraction
    table = Table(title=f"Token folder {output}", show_header=False, title_justify="left")
    for row in (*_document_rows(manifest), *_change_rows(manifest), *_token_rows(manifest)):
        table.add_row(*row)
    rate = manifest.totals.text_bytes / 1e6 / seconds
    table.add_row("held out", f"{_percent(held_out)} of the text, {_percent(wanted)} wanted")
    table.add_row("time", f"{seconds:.1f} s, {rate:.1f} MB/s of text")
    console = Console(highlight=False, markup=False, width=None)
    console.print(table)
    if abs(held_out - wanted) > SHARE_TOLERANCE * min(wanted, 1 - wanted):
        console.print(
            f"WARNING: {_percent(held_out)} of the text is held out for validation, but "
            f"--validation-fraction asks for {_percent(wanted)}; give more text, or another "
            "fraction",
            soft_wrap=True,
        )
    console.print(
        "Next:  deepspeed launch/pretrain.py configs/pretrain/tiny.yaml "
        f"{quote(f'data.path={output}')} run.directory=runs/first",
        soft_wrap=True,
    )


def _document_rows(manifest: BuildManifest) -> Iterator[tuple[str, str]]:
    totals = manifest.totals
    packed, text = amount(totals.source_bytes, "bytes"), amount(totals.text_bytes, "bytes")
    parts = sum(split.documents for split in manifest.splits.values())
    cut = ", 1 cut for validation" if parts > totals.documents_kept else ""
    yield "sources", f"{amount(len(manifest.sources), 'files')}, {packed}, {text} of text"
    yield "documents read", f"{totals.documents_read:,}"
    yield "documents kept", f"{totals.documents_kept:,}{cut}"
    for reason, count in manifest.dropped.items():
        names = [drop.name for drop in manifest.drops if drop.reason == reason]
        yield f"left out: {reason}", f"{count:,}: {_some(names)}"


def _change_rows(manifest: BuildManifest) -> Iterator[tuple[str, str]]:
    encodings: Counter[str] = Counter()
    for source in manifest.sources:
        encodings.update(source.encodings)
    for encoding, count in encodings.items():
        yield f"read as {encoding}", f"{count:,}: {_some(manifest.read_as[encoding])}"
    for step, effect in manifest.effects.items():
        documents = amount(effect.documents, "documents")
        changes = f"{amount(effect.changes, 'changes')} in {documents}"
        yield f"step {step}", f"{changes}: {_some(effect.names)}"
    if manifest.passages.passages:
        cut = f"{manifest.passages.passages:,}, {amount(manifest.passages.bytes, 'bytes')}"
        yield "repeated passages cut", f"{cut}: {_some(manifest.passages.names)}"


def _token_rows(manifest: BuildManifest) -> Iterator[tuple[str, str]]:
    for name, split in (("training", "train"), ("validation", "validation")):
        entry = manifest.splits[split]  # type: ignore[index]
        counts = (
            amount(entry.documents, "documents"),
            amount(entry.tokens, "tokens"),
            amount(len(entry.shards), "shards"),
        )
        yield name, ", ".join(counts)
    yield "vocabulary", f"{manifest.vocab_size:,} tokens, stored as {manifest.dtype}"
    rate = manifest.totals.tokens / manifest.totals.cleaned_bytes
    yield "tokens per byte", f"{rate:.3f} of clean text"


def _some(names: Sequence[str]) -> str:
    more = ", …" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
