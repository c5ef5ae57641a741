"""Print the summary of a build."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_prep.build.selection import SHARE_TOLERANCE
from data_prep.progress import amount
from gpt_dist.data.tokens.folder import TokenManifest

_NAMES = 3


def print_summary(manifest: TokenManifest, output: Path, seconds: float) -> None:
    """Print the closing table of a build and the command to type next."""
    totals, train = manifest.totals, manifest.splits["train"]
    validation = manifest.splits["validation"]
    share, wanted = validation.tokens / totals.tokens, manifest.options.validation_fraction
    cut = train.documents + validation.documents - totals.documents_kept
    table = Table(title=f"Token folder {output}", show_header=False, title_justify="left")
    encodings: Counter[str] = Counter()
    for source in manifest.sources:
        encodings.update(source.encodings)
    rows = [
        (
            "sources",
            f"{len(manifest.sources):,} files, {amount(totals.source_bytes, 'bytes')}, "
            f"{amount(totals.text_bytes, 'bytes')} of text",
        ),
        ("documents read", f"{totals.documents_read:,}"),
        ("documents kept", f"{totals.documents_kept:,}{', 1 cut for validation' if cut else ''}"),
        *(
            (f"left out: {reason}", f"{count:,}: {_some(_names(manifest, reason))}")
            for reason, count in manifest.dropped.items()
        ),
        *(
            (f"read as {encoding}", f"{count:,}: {_some(manifest.read_as[encoding])}")
            for encoding, count in encodings.items()
        ),
        *(
            (
                f"step {step}",
                f"{effect.characters:,} characters of {effect.documents:,} documents",
            )
            for step, effect in manifest.effects.items()
        ),
        ("training", _describe(train.documents, train.tokens, len(train.shards))),
        ("validation", _describe(validation.documents, validation.tokens, len(validation.shards))),
        ("held out", f"{_percent(share)} of the tokens, {_percent(wanted)} wanted"),
        ("vocabulary", f"{manifest.vocab_size:,} tokens, stored as {manifest.dtype}"),
        ("tokens per byte", f"{totals.tokens / totals.cleaned_bytes:.3f} of clean text"),
        ("time", f"{seconds:.1f} s, {totals.text_bytes / 1e6 / seconds:.1f} MB/s of text"),
    ]
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False, width=None)
    console.print(table)
    if abs(share - wanted) > SHARE_TOLERANCE * min(wanted, 1 - wanted):
        console.print(
            f"WARNING: {_percent(share)} of the tokens are held out for validation, but "
            f"--validation-fraction asks for {_percent(wanted)}; give more text, or another "
            "fraction",
            soft_wrap=True,
        )
    console.print(
        "Next:  deepspeed launch/pretrain.py configs/pretrain/tiny.yaml "
        f"data.path={output} run.directory=runs/first",
        soft_wrap=True,
    )


def _names(manifest: TokenManifest, reason: str) -> list[str]:
    return [drop.name for drop in manifest.drops if drop.reason == reason]


def _some(names: Sequence[str]) -> str:
    more = ", …" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more


def _describe(documents: int, tokens: int, shards: int) -> str:
    return f"{documents:,} documents, {tokens:,} tokens, {shards:,} shards"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
