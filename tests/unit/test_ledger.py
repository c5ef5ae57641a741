"""Global batches by step, with some left out."""

from __future__ import annotations

import random

import pytest

from gpt_dist.data.batches import batch_of


@pytest.mark.parametrize("seed", range(20))
def test_steps_take_the_batches_in_order_but_for_those_left_out(seed: int):
    draws = random.Random(seed)
    left_out = draws.sample(range(40), draws.randrange(0, 15))
    expected = [batch for batch in range(60) if batch not in left_out]
    assert [batch_of(step, left_out) for step in range(1, len(expected) + 1)] == expected
    assert batch_of(0, left_out) == -1
