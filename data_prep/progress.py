"""Show the progress of a command on standard error."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from gpt_dist.progress import show_progress

Advance = Callable[[int], None]


class Progress:
    """Display of the stages of a command on standard error.

    It draws progress bars on a terminal, and writes a line for each finished stage elsewhere too.
    """

    def __init__(self) -> None:
        """Write to standard error."""
        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def stage(self, title: str, unit: str, total: int | None) -> Iterator[Advance]:
        """Show one stage, and yield a function to call with the number of units done since."""
        begin = time.monotonic()
        done = 0
        with show_progress(self._console.is_terminal, lambda count: amount(count, unit)) as report:

            def advance(count: int) -> None:
                nonlocal done
                done += count
                report(title, done, total)

            yield advance
        seconds = time.monotonic() - begin
        rate = f", {done / 1e6 / max(seconds, 1e-3):,.1f} MB/s" if unit == "bytes" else ""
        self._console.print(
            f"{title}: {amount(done, unit)} in {seconds:.1f} s{rate}", soft_wrap=True
        )

    def say(self, text: str) -> None:
        """Write a line."""
        self._console.print(text, soft_wrap=True, markup=False)


def amount(count: int, unit: str) -> str:
    """Return a number with its unit, which is a plural or `s`; bytes as megabytes."""
    if unit == "bytes":
        return f"{count / 1e6:,.1f} MB"
    return f"{count:,} {unit.removesuffix('s') if count == 1 and unit != 's' else unit}"
