"""Mixtures: samples of several token folders in stated shares, which may change during a run."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt

from gpt_dist.config import DataConfig
from gpt_dist.data.batches import TokenBatch
from gpt_dist.data.tokens.windows import ShuffledWindows
from gpt_dist.files.entries import Record

_ONE = 2**32
"""A share of 1: shares are whole numbers, so that counts are exact however long a run is."""

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Phase(Record):
    """Weights of token folders, by digest, from one sample on; those of weight 0 are left out."""

    from_sample: NonNegativeInt
    weights: Annotated[dict[str, Weight], Field(min_length=1)]

    def counts(self, numbers: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Return how many samples each folder gives, of the phase's first `numbers` samples.

        The folder with the largest weight takes its share of the samples, rounded; the next one its
        share of those that are left, and so on. So one more sample adds one to exactly one count,
        and a count differs from its share by at most half the number of folders.
        """
        order = sorted(self.weights, key=lambda digest: (-self.weights[digest], digest))
        sums = [*accumulate(self.weights[digest] for digest in reversed(order))]
        counts, left = {}, numbers.astype(np.uint64)
        for digest, total in zip(order, reversed(sums), strict=True):
            share = np.uint64(round(self.weights[digest] / total * _ONE))
            high, low = np.divmod(left, np.uint64(_ONE))
            taken = high * share + (low * share + np.uint64(_ONE // 2)) // np.uint64(_ONE)
            counts[digest], left = taken.astype(np.int64), left - taken
        return counts


def plan_phases(data: DataConfig, digests: Sequence[str], batch_size: int) -> tuple[Phase, ...]:
    """Return the phases of a run of data.path, whose folders have these digests, from its start."""
    plan = [(0, [folder.weight for folder in data.folders])]
    plan += [(change.step * batch_size, change.weights) for change in data.changes]
    return tuple(
        Phase(
            from_sample=sample,
            weights={one: weight for one, weight in zip(digests, weights, strict=True) if weight},
        )
        for sample, weights in plan
    )


def continue_phases(
    history: Sequence[Phase], plan: Sequence[Phase], consumed: int
) -> tuple[Phase, ...]:
    """Return the phases of a run that consumed samples by its history and goes on by a plan."""
    begun = [phase for phase in history if phase.from_sample < consumed]
    now = [phase for phase in plan if phase.from_sample <= consumed][-1]
    if not begun or begun[-1].weights != now.weights:
        begun.append(now.model_copy(update={"from_sample": consumed}))
    return (*begun, *(phase for phase in plan if phase.from_sample > consumed))


class Mixture:
    """Endless training samples of several token folders.

    Sample number i is of the folder that its phase decides, and the n-th sample of a folder is
    that folder's own shuffled window n: nothing is lost or repeated where weights change.
    """

    def __init__(self, folders: Mapping[str, ShuffledWindows], phases: Sequence[Phase]) -> None:
        """Mix folders, given by digest, of which each has windows of the same length."""
        self._folders = folders
        self._phases = phases
        self._starts = [phase.from_sample for phase in phases]
        self._given: list[dict[str, int]] = [{}]
        """Number of samples that each folder gave before each phase."""
        for phase, stop in zip(phases, self._starts[1:], strict=False):
            given = self._given[-1]
            counts = phase.counts(np.array([stop - phase.from_sample])).items()
            self._given.append(given | {one: given.get(one, 0) + int(n[0]) for one, n in counts})
        self.tokens_per_sample = next(iter(folders.values())).tokens_per_sample

    def locate(
        self, samples: NDArray[np.int64]
    ) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield folders, the places of their samples among these, and their numbers in the folder.

        A folder whose samples are of two phases comes twice.
        """
        current = np.searchsorted(self._starts, samples, side="right") - 1
        for number in np.unique(current).tolist():
            phase, places = self._phases[number], np.flatnonzero(current == number)
            within = samples[places] - phase.from_sample
            after = phase.counts(within + 1)
            for digest, before in phase.counts(within).items():
                chosen = after[digest] > before
                if chosen.any():
                    first = self._given[number].get(digest, 0)
                    yield digest, places[chosen], first + before[chosen]

    def batch(self, samples: NDArray[np.int64]) -> TokenBatch[NDArray[np.int64]]:
        """Return the batch of these samples."""
        tokens, labels = np.empty((2, len(samples), int(self.tokens_per_sample)), dtype=np.int64)
        for digest, places, numbers in self.locate(samples):
            part = self._folders[digest].batch(numbers)
            tokens[places], labels[places] = part.tokens, part.labels
        return TokenBatch(tokens, labels)
