"""Test that training samples come in a permutation that does not depend on the processes."""

from __future__ import annotations

import numpy as np
import pytest

from gpt_dist.data.batches import micro_batches, prefetch
from gpt_dist.data.permutation import permute
from gpt_dist.data.tokens.windows import ShuffledWindows, Windows
from gpt_dist.errors import DataError


class Counting:
    """Stream in which token i is i."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.arange(start, stop)


@pytest.mark.parametrize("size", [*range(1, 40), 1000, 99_991])
def test_permute_is_a_permutation(size):
    images = permute(np.arange(size), size, key=size * 17)
    assert sorted(images.tolist()) == list(range(size))


def test_permute_looks_random():
    size, trials = 20, 4000
    counts = np.zeros((size, size))
    for key in range(trials):
        counts[np.arange(size), permute(np.arange(size), size, key)] += 1
    expected = trials / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = (size - 1) ** 2
    assert abs(chi_square - degrees) < 6 * np.sqrt(2 * degrees)
    order = permute(np.arange(50_000), 50_000, 3)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02


def test_permute_far_into_a_huge_range():
    positions = np.arange(10**15, 10**15 + 1000)
    images = permute(positions, 2 * 10**15, key=5)
    assert len(set(images.tolist())) == 1000
    assert images.min() >= 0
    assert images.max() < 2 * 10**15


def test_windows_predict_every_token_but_the_first_once():
    windows = Windows(Counting(35), sequence_length=8)
    assert len(windows) == 4
    tokens = windows.read(np.arange(4))
    assert tokens.shape == (4, 9)
    assert tokens[:, 1:].ravel().tolist() == list(range(1, 33))
    assert tokens[:, :-1].ravel().tolist() == list(range(32))


def test_every_window_of_an_epoch_comes_once_in_an_order_of_its_own():
    samples = ShuffledWindows(Windows(Counting(8 * 77 + 1), 8), seed=1)
    epochs = samples.window_numbers(np.arange(3 * 77)).reshape(3, 77)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(77))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = ShuffledWindows(Windows(Counting(8 * 77 + 1), 8), seed=2)
    assert other.window_numbers(np.arange(77)).tolist() != epochs[0].tolist()


def test_a_sample_is_read_the_same_alone_and_in_any_batch():
    samples = ShuffledWindows(Windows(Counting(8 * 77 + 1), 8), seed=1)
    together = samples.batch(np.arange(70, 90))
    alone = [samples.batch(np.array([number])) for number in range(70, 90)]
    assert np.array_equal(together.tokens, [batch.tokens[0] for batch in alone])
    assert np.array_equal(together.labels, [batch.labels[0] for batch in alone])
    assert np.array_equal(together.tokens[:, 1:], together.labels[:, :-1])


def test_text_shorter_than_a_window_is_refused():
    with pytest.raises(DataError, match="shorter than one window"):
        ShuffledWindows(Windows(Counting(8), 8), seed=1)


@pytest.mark.parametrize(
    ("data_parallel_size", "micro_batch_size"), [(1, 8), (1, 2), (2, 2), (4, 1)]
)
def test_the_global_batch_does_not_depend_on_how_it_is_shared(data_parallel_size, micro_batch_size):
    for step in (0, 7):
        parts = [
            list(micro_batches(8 * step, 8 * step + 8, micro_batch_size, data_parallel_size, rank))
            for rank in range(data_parallel_size)
        ]
        assert len({len(part) for part in parts}) == 1
        numbers = np.concatenate([batch for part in parts for batch in part])
        assert sorted(numbers.tolist()) == list(range(8 * step, 8 * step + 8))


def test_processes_get_equally_many_full_micro_batches_of_any_number():
    parts = [list(micro_batches(0, 7, 2, 3, rank)) for rank in range(3)]
    assert [[batch.tolist() for batch in part] for part in parts] == [
        [[0, 1], [6, 7]],
        [[2, 3], [8, 9]],
        [[4, 5], [10, 11]],
    ]


def test_prefetch_keeps_order_and_passes_errors_on():
    def items():
        yield from range(10)
        raise DataError("shard 7")

    fetched = prefetch(items(), depth=2)
    assert [next(fetched) for _ in range(10)] == list(range(10))
    with pytest.raises(DataError, match="shard 7"):
        next(fetched)


def test_closing_a_prefetch_ends_its_thread():
    import threading

    def endless():
        while True:
            yield 1

    fetched = prefetch(endless())
    next(fetched)
    fetched.close()
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())
