"""The ledger of a run: the global batches that it leaves out, since it went back before them."""

from pathlib import Path

from pydantic import NonNegativeInt, PositiveInt

from gpt_dist.checkpoint.folder import steps
from gpt_dist.errors import DataError, TrainingError, first_problem
from gpt_dist.files.entries import Record, read_small
from gpt_dist.files.folders import write_result

LEDGER_NAME = "skipped.jsonl"
MAX_ROLLBACKS = 5
"""Number of times that a run goes back to one checkpoint before it ends."""


class LeftOut(Record):
    """A line of the ledger."""

    batch: NonNegativeInt
    samples: tuple[NonNegativeInt, NonNegativeInt]
    """Its first and its last sample."""
    step: PositiveInt
    """The step that it was left out after."""
    checkpoint: NonNegativeInt
    """The step of the checkpoint that the run went back to."""
    why: str


def read_ledger(directory: Path) -> list[LeftOut]:
    """Return the batches that a run leaves out; DataError where they cannot be read."""
    path = directory / LEDGER_NAME
    try:
        lines = read_small(path).splitlines() if path.exists() else []
        return [LeftOut.model_validate_json(line) for line in lines]
    except (OSError, ValueError) as error:
        problem = first_problem(error) if isinstance(error, ValueError) else error.strerror
        raise DataError(
            f"{path}: cannot be read ({problem}); take it from a backup: without it, the run would "
            "train on other samples"
        ) from None


def leave_out(directory: Path, batch: int, size: int, step: int, why: str) -> None:
    """Have a run leave out a global batch; TrainingError where it cannot go back any more."""
    ledger, newest = read_ledger(directory), next(iter(steps(directory / "checkpoints")), None)
    if newest is None:
        raise TrainingError(f"{why}; there is no checkpoint to go back to yet; start anew")
    if [one.checkpoint for one in ledger].count(newest) >= MAX_ROLLBACKS:
        raise TrainingError(
            f"{why}; the run went back to step {newest} {MAX_ROLLBACKS} times; lower "
            "optimizer.learning_rate, or resume from an earlier checkpoint"
        )
    samples = batch * size, (batch + 1) * size - 1
    ledger.append(LeftOut(batch=batch, samples=samples, step=step, checkpoint=newest, why=why))
    text = "".join(one.model_dump_json() + "\n" for one in ledger)
    write_result(directory / LEDGER_NAME, text)
