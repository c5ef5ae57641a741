"""Validation of a language model: the mean loss over held-out windows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from gpt_dist.config import ResolvedConfig
from gpt_dist.data.batches import TokenBatch
from gpt_dist.data.loader import BatchPlan, prefetch
from gpt_dist.data.tokens.windows import Windows, split_labels
from gpt_dist.model import IGNORED_LABEL
from gpt_dist.topology import Topology
from gpt_dist.train.engine import Engine
from gpt_dist.train.metrics import Row


class PerplexityValidator:
    """Loss and perplexity of the first windows of a split, the same for every layout."""

    def __init__(
        self, engine: Engine, windows: Windows, config: ResolvedConfig, topology: Topology
    ) -> None:
        self._engine = engine
        self._windows = windows
        self._topology = topology
        self._count = min(len(windows), config.validation.max_samples or 2**63)
        self._plan = BatchPlan.of(config, topology.data_parallel_size, topology.data_parallel_rank)

    def __call__(self) -> Row:
        """`validation_loss` in nats per token and `validation_perplexity`; all processes ask."""
        if self._count == 0:
            return {}
        total = torch.zeros(2, dtype=torch.float64, device=self._topology.device)
        with closing(prefetch(self._batches())) as batches:
            for batch in batches:
                total[0] += self._engine.evaluate(batch).double().sum()
                total[1] += int((batch.labels != IGNORED_LABEL).sum())
        dist.all_reduce(total, group=self._topology.data_parallel_group)
        loss_mean = float(total[0] / total[1])
        perplexity = math.exp(loss_mean) if loss_mean < 700 else math.inf
        return {"validation_loss": loss_mean, "validation_perplexity": perplexity}

    def _batches(self) -> Iterator[TokenBatch[NDArray[np.int64]]]:
        """This process's micro-batches; all get the same number, filled up with void rows."""
        for numbers in self._plan.over(self._count):
            batch = split_labels(self._windows.read(numbers % self._count))
            batch.labels[numbers >= self._count] = IGNORED_LABEL
            yield batch
