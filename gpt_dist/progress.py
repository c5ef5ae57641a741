"""Report the progress of long work, and show it on the console."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID

Report = Callable[[str, int, int], None]
"""Called with the name of the work, the amount this process has done, and the amount to do."""


def silent(_name: str, _done: int, _total: int) -> None:
    """Show nothing."""


@contextmanager
def show_progress(is_main: bool = True) -> Iterator[Report]:
    """Show bars on standard error once there is a report; only finished ones without a terminal."""
    bars = Progress(console=Console(stderr=True), disable=not is_main)
    tasks: dict[str, TaskID] = {}

    def report(name: str, done: int, total: int) -> None:
        if name not in tasks:
            bars.start()
            tasks[name] = bars.add_task(name)
        bars.update(tasks[name], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()
