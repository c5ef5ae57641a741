"""Report the progress of long work, and show it on the console."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn

Report = Callable[[str, int, int | None], None]
"""Called with the name of the work, the amount this process has done, and the amount to do."""


def silent(_name: str, _done: int, _total: int | None) -> None:
    """Show nothing."""


@contextmanager
def show_progress(
    is_main: bool = True, show: Callable[[int], str] | None = None
) -> Iterator[Report]:
    """Show bars on standard error once there is a report; only finished ones without a terminal.

    With `show`, which gives the text of an amount, bars have that text, and go when they are done.
    """
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[shown]}"))
    bars = Progress(*columns, console=Console(stderr=True), disable=not is_main)
    bars.live.transient = show is not None
    tasks: dict[str, TaskID] = {}

    def report(name: str, done: int, total: int | None) -> None:
        if name not in tasks:
            bars.start()
            tasks[name] = bars.add_task(name, total=total, shown="")
        bars.update(tasks[name], completed=done, total=total, shown=show(done) if show else "")

    try:
        yield report
    finally:
        if tasks:
            bars.stop()
