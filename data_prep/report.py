"""Show the progress of a command, and the summary of a build."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from gpt_dist.data.tokens.folder import TokenManifest

# A held-out share that differs from the wanted one by more than this factor gets a warning.
_SHARE_FACTOR = 2

Advance = Callable[[int], None]


class Progress:
    """Display of the stages of a command on standard error.

    It draws progress bars on a terminal, and writes a line for each finished stage elsewhere too.
    """

    def __init__(self) -> None:
        """Find out whether standard error is a terminal."""
        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def stage(self, title: str, unit: str, total: int | None) -> Iterator[Advance]:
        """Show one stage, and yield a function to call with the number of units done since."""
        begin = time.monotonic()
        done = 0
        with RichProgress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            TextColumn("{task.fields[done]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        ) as bars:
            task = bars.add_task(title, total=total, done="")

            def advance(count: int) -> None:
                nonlocal done
                done += count
                bars.update(task, advance=count, done=_amount(done, unit))

            yield advance
        seconds = time.monotonic() - begin
        self._console.print(f"{title}: {_amount(done, unit)} in {seconds:.1f} s", soft_wrap=True)


def print_summary(manifest: TokenManifest, output: Path, seconds: float) -> None:
    """Print the closing table of a build and the command to type next."""
    totals, train = manifest.totals, manifest.splits["train"]
    validation = manifest.splits["validation"]
    share, wanted = validation.tokens / totals.tokens, manifest.options.validation_fraction
    cut = train.documents + validation.documents - totals.documents_kept
    table = Table(title=f"Token folder {output}", show_header=False, title_justify="left")
    rows = [
        ("sources", f"{len(manifest.sources)} files, {_amount(totals.source_bytes, 'bytes')}"),
        ("documents read", f"{totals.documents_read:,}"),
        ("documents kept", f"{totals.documents_kept:,}{', 1 cut for validation' if cut else ''}"),
        *((f"left out: {reason}", f"{count:,}") for reason, count in manifest.dropped.items()),
        ("read as Latin-1", f"{totals.decoded_as_latin1:,}"),
        ("training", _describe(train.documents, train.tokens, len(train.shards))),
        ("validation", _describe(validation.documents, validation.tokens, len(validation.shards))),
        ("held out", f"{_percent(share)} of the tokens, {_percent(wanted)} wanted"),
        ("vocabulary", f"{manifest.vocab_size:,} tokens, stored as {manifest.dtype}"),
        ("tokens per byte", f"{totals.tokens / totals.cleaned_bytes:.3f} of clean text"),
        ("time", f"{seconds:.1f} s, {totals.source_bytes / 1e6 / seconds:.1f} MB/s"),
    ]
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False, width=None)
    console.print(table)
    if not wanted / _SHARE_FACTOR <= share <= wanted * _SHARE_FACTOR:
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


def _describe(documents: int, tokens: int, shards: int) -> str:
    return f"{documents:,} documents, {tokens:,} tokens, {shards:,} shards"


def _amount(count: int, unit: str) -> str:
    return f"{count / 1e6:,.1f} MB" if unit == "bytes" else f"{count:,} {unit}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
