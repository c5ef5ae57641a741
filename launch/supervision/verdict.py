"""The decision how a start of a run ended, by the run's own record."""

import signal
from dataclasses import dataclass

from gpt_dist.errors import Interrupted
from gpt_dist.train.status import LAUNCHER_ENDED, Status

_UNTRAINED = "before it trained, so there was nothing to save"


@dataclass(frozen=True)
class Verdict:
    """State of a run of which no process is left, and a fact that explains it."""

    state: str
    """complete, interrupted, refused or failed."""
    why: str

    @property
    def is_final(self) -> bool:
        """Return whether starting again would not help."""
        return self.state != "failed"


def judge(
    before: Status | None,
    after: Status | None,
    exit_status: int,
    stopped: bool = False,
    told: bool = False,
) -> Verdict:
    """Return how a start ended.

    Args:
        before: The record before the start.
        after: The record once no process is left.
        exit_status: That of the launcher, which decides nothing: `deepspeed` gives 0 for a run that
            was killed.
        stopped: Whether the supervisor was asked to stop the run.
        told: Whether processes that outlived the launcher were told to end.
    """
    why = after.why.removeprefix(f"{Interrupted.__name__}: ") if after else ""
    launcher = f"its launcher {describe(exit_status)}"
    if after is None or after == before:
        if stopped:
            return Verdict("interrupted", _UNTRAINED)
        return Verdict("failed", f"it recorded nothing; {launcher}")
    if stopped and after.step is None and after.state in ("running", "failed"):
        return Verdict("interrupted", _UNTRAINED)
    where = f"rank {after.rank} on {after.host}"
    if after.state == "running":
        place = "before it trained" if after.step is None else f"after step {after.step}"
        return Verdict("failed", f"{where} ended without a word {place}; {launcher}")
    unasked = told or LAUNCHER_ENDED in why
    if after.state == "interrupted" and unasked and not stopped:
        return Verdict("failed", f"{why}; {launcher}")
    if after.state in ("complete", "interrupted", "refused"):
        return Verdict(after.state, why or f"{after.step} steps")
    return Verdict("failed", f"{where}: {why}")


def describe(exit_status: int) -> str:
    """Return how a process ended, as a phrase."""
    if exit_status >= 0:
        return f"ended with status {exit_status}"
    try:
        return f"was ended by {signal.Signals(-exit_status).name}"
    except ValueError:
        return f"was ended by signal {-exit_status}"
