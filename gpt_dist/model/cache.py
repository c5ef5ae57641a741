"""Cache keys and values of the tokens seen so far, so that each token is computed once."""

import torch
from torch import Tensor


class LayerCache:
    """Keys and values of one block, [2, B, G/tp, T, S], with room for `capacity` tokens."""

    def __init__(self, capacity: int) -> None:
        self.length = 0
        self._capacity = capacity
        self._pair: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values of new tokens, [B, G/tp, T, S], and return all of them."""
        if self._pair is None:
            self._pair = key.new_empty(2, *key.shape[:2], self._capacity, key.size(3))
        start, self.length = self.length, self.length + key.size(2)
        self._pair[:, :, :, start : self.length] = torch.stack([key, value])
        keys, values = self._pair[:, :, :, : self.length]
        return keys, values
