"""Estimates of many layouts in order, the first of them beyond doubt."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO

from gpt_dist.config import ResolvedConfig
from gpt_dist.progress import Report
from planning.estimate import Estimate, Planner
from planning.machines import Machine


def search(
    layouts: Sequence[ResolvedConfig], world_size: int, machine: Machine, report: Report
) -> list[Estimate]:
    """Return the estimates of layouts: those that fit by time, then the others by memory.

    The first has been traced in full depth, unless it is known exactly and leaves much room.
    """
    planner, estimates = Planner(world_size, machine), []
    with redirect_stdout(StringIO()):  # DeepSpeed prints how much memory there is
        for number, layout in enumerate(layouts, 1):
            estimates.append(planner.estimate(layout))
            report("layouts", number, len(layouts))
        estimates.sort(key=_order)
        while not (estimates[0].is_full or (estimates[0].is_exact and estimates[0].has_room)):
            estimates[0] = planner.estimate(estimates[0].config, full=True)
            estimates.sort(key=_order)
    return estimates


def _order(one: Estimate) -> tuple[bool, float]:
    return not one.fits, one.seconds if one.fits else one.peak
