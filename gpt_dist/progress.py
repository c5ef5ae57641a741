"""Progress of long work: how it is told, and how commands show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID

Report = Callable[[str, int, int], None]
"""Is told what is being done, how much of it this process has done, and how much it has to do."""


def silent(_name: str, _done: int, _total: int) -> None:
    """Shows nothing."""


@contextmanager
def show_progress(is_main: bool = True) -> Iterator[Report]:
    """Bars on standard error, from the first report on; where that is no terminal, the finished
    ones.
    """
    bars = Progress(console=Console(stderr=True), disable=not is_main)
    tasks: dict[str, TaskID] = {}

    def report(name: str, done: int, total: int) -> None:
        if not tasks:
            bars.start()
        if name not in tasks:
            tasks[name] = bars.add_task(name)
        bars.update(tasks[name], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()
