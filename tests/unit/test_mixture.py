"""Test that mixtures keep their shares, and lose or repeat no window where weights change."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from gpt_dist.data.batches import micro_batches
from gpt_dist.data.tokens.mixture import Mixture, Phase, continue_phases
from gpt_dist.data.tokens.windows import ShuffledWindows, Windows

LENGTH = 4
SIZES = {"a": 5, "b": 17, "c": 400}


class Marked:
    """Stand-in for a token stream whose ids, beyond a mark, are their positions."""

    def __init__(self, mark: int, windows: int) -> None:
        self.num_tokens = windows * LENGTH + 1
        self._mark = mark

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.arange(self._mark + start, self._mark + stop)


FOLDERS = {
    name: ShuffledWindows(Windows(Marked(10**6 * number, size), LENGTH), seed=7)
    for number, (name, size) in enumerate(SIZES.items())
}


def phases(*weights: tuple[int, dict[str, float]]) -> tuple[Phase, ...]:
    return tuple(Phase(from_sample=first, weights=each) for first, each in weights)


def drawn(mixture: Mixture, samples: np.ndarray) -> list[tuple[str, int]]:
    """Return the folder of each sample, and its number in the folder."""
    found = dict[int, tuple[str, int]]()
    for name, places, numbers in mixture.locate(samples):
        found |= zip(places.tolist(), ((name, one) for one in numbers.tolist()), strict=True)
    return [found[place] for place in range(len(samples))]


def windows_of(mixture: Mixture, samples: np.ndarray) -> list[tuple[str, int]]:
    """Return the folder and the window of each sample, as its tokens show them."""
    first = mixture.batch(samples).tokens[:, 0]
    names = list(SIZES)
    return [(names[one // 10**6], one % 10**6 // LENGTH) for one in first.tolist()]


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 1.0},
        {"a": 0.7, "b": 0.3},
        {"a": 1, "b": 1e-3},
        {"a": 0.1, "b": 0.2, "c": 0.7},
        {"a": 3, "b": 3, "c": 3},
        {str(number): 1 / (number + 1) for number in range(40)},
        {str(number): 1 for number in range(40)},
    ],
)
@pytest.mark.parametrize("start", [0, 2**32 - 50, 10**12])
def test_counts_stay_at_their_shares_and_grow_one_at_a_time(weights, start):
    numbers = np.arange(start, start + 3000)
    counts = Phase(from_sample=0, weights=weights).counts(numbers)
    assert np.array_equal(sum(counts.values()), numbers)
    steps = np.stack([np.diff(each) for each in counts.values()])
    assert steps.min() >= 0
    assert (steps.sum(0) == 1).all()
    rounding = start * len(weights) / 2**32  # shares are whole numbers of 2**-32
    for name, each in counts.items():
        share = weights[name] / sum(weights.values())
        assert np.abs(each - numbers * share).max() <= len(weights) / 2 + rounding, name


def test_each_folder_goes_on_at_its_next_window_over_changes():
    changes = (
        (0, {"a": 0.5, "b": 0.5}),
        (37, {"a": 0.1, "c": 0.9}),
        (90, {"c": 1}),
        (91, {"a": 1, "b": 2, "c": 3}),
        (700, {"b": 1}),
    )
    mixture = Mixture(FOLDERS, phases(*changes))
    numbers: dict[str, list[int]] = {name: [] for name in FOLDERS}
    for name, number in drawn(mixture, np.arange(900)):
        numbers[name].append(number)
    for name, each in numbers.items():
        assert each == list(range(len(each))), name
    for (first, weights), (stop, _) in pairwise([*changes, (900, {})]):
        found = Counter(name for name, _ in drawn(mixture, np.arange(first, stop)))
        assert found.keys() <= weights.keys()
        for name, weight in weights.items():
            assert abs(found[name] - (stop - first) * weight / sum(weights.values())) <= 1.5


def test_every_epoch_of_a_folder_has_each_window_once():
    mixture = Mixture(FOLDERS, phases((0, {"a": 0.5, "b": 0.5}), (40, {"a": 0.2, "b": 0.8})))
    windows = windows_of(mixture, np.arange(400))
    for name in ("a", "b"):
        own = [window for folder, window in windows if folder == name]
        order = FOLDERS[name].window_numbers(np.arange(len(own)))
        assert own == order.tolist()
        size = SIZES[name]
        for first in range(0, len(own) - size + 1, size):
            assert sorted(own[first : first + size]) == list(range(size))


def test_one_folder_is_that_folder_alone():
    samples = np.array([12, 3, 3, 999, 0])
    mixed, alone = (
        Mixture(FOLDERS, phases((0, {"b": 0.3}))).batch(samples),
        FOLDERS["b"].batch(samples),
    )
    assert np.array_equal(mixed.tokens, alone.tokens)
    assert np.array_equal(mixed.labels, alone.labels)
    assert mixed.tokens.dtype == alone.tokens.dtype


@pytest.mark.parametrize("data_parallel_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_layouts_draw_the_same_samples(data_parallel_size, micro_batch_size):
    mixture = Mixture(FOLDERS, phases((0, {"a": 0.4, "b": 0.6}), (18, {"b": 0.1, "c": 0.9})))
    found = []
    for rank in range(data_parallel_size):
        for start in range(0, 72, 24):
            for part in micro_batches(
                start, start + 24, micro_batch_size, data_parallel_size, rank
            ):
                found += windows_of(mixture, part)
    assert Counter(found) == Counter(windows_of(mixture, np.arange(72)))


def test_a_run_killed_and_resumed_at_random_draws_what_its_history_says():
    """Each part plans other weights; what it drew after its last checkpoint does not count."""
    draws = np.random.default_rng(3)
    history = plan = phases((0, {"a": 1, "b": 1}), (60, {"a": 1, "b": 3}))
    made: list[tuple[str, int]] = []
    consumed = 0
    for _ in range(30):
        saved = consumed + int(draws.integers(0, 25))
        mixture = Mixture(FOLDERS, history)
        assert drawn(mixture, np.arange(consumed)) == made, "the past changes"
        made += drawn(mixture, np.arange(consumed, saved))
        consumed = saved
        if draws.integers(0, 2):
            names = [name for name in SIZES if draws.integers(0, 2)] or ["c"]
            plan = phases((0, {name: float(draws.integers(1, 9)) for name in names}))
        history = continue_phases(history, plan, consumed)
    for name in SIZES:
        own = [number for folder, number in made if folder == name]
        assert own == list(range(len(own)))
    assert len({phase.from_sample for phase in history}) == len(history) > 5


def test_going_on_with_the_same_plan_changes_nothing():
    plan = phases((0, {"a": 1, "b": 1}), (60, {"a": 1}), (80, {"b": 1}))
    for consumed in (0, 1, 59, 60, 61, 80, 81):
        assert continue_phases(plan, plan, consumed) == plan


def test_a_later_plan_holds_from_the_checkpoint_on():
    history = phases((0, {"a": 1}), (60, {"b": 1}))
    plan = phases((0, {"a": 1}), (20, {"c": 1}), (90, {"b": 1}))
    expected = phases((0, {"a": 1}), (40, {"c": 1}), (90, {"b": 1}))
    assert continue_phases(history, plan, 40) == expected
