"""Validation of a language model: the mean loss over held-out windows."""

import math
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from gpt_dist.config import ResolvedConfig
from gpt_dist.data.batches import TokenBatch
from gpt_dist.data.loader import micro_batches, prefetch
from gpt_dist.data.tokens.windows import Windows, split_labels
from gpt_dist.model import IGNORED_LABEL
from gpt_dist.topology import Topology
from gpt_dist.train.engine import Engine
from gpt_dist.train.metrics import Row


def validate(engine: Engine, windows: Windows, config: ResolvedConfig, topology: Topology) -> Row:
    """Return loss and perplexity of the first windows of a split, the same for every layout.

    The loss is in nats per token. Every process must call this; without windows the row is empty.
    """
    count = min(len(windows), config.validation.max_samples or len(windows))
    if count == 0:
        return {}

    def read() -> Iterator[TokenBatch[NDArray[np.int64]]]:
        share = topology.data_parallel_size, topology.data_parallel_rank
        for numbers in micro_batches(0, count, config.training.micro_batch_size, *share):
            batch = split_labels(windows.read(numbers % count))
            batch.labels[numbers >= count] = IGNORED_LABEL
            yield batch

    total = torch.zeros(2, dtype=torch.float64, device=topology.device)
    with closing(prefetch(read())) as batches:
        for batch in batches:
            total[0] += engine.evaluate(batch).double().sum()
            total[1] += int((batch.labels != IGNORED_LABEL).sum())
    dist.all_reduce(total, group=topology.data_parallel_group)
    loss = float(total[0] / total[1])
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return {"validation_loss": loss, "validation_perplexity": perplexity}
