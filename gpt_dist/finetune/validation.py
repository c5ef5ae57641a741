"""Validation of fine-tuning: the metrics of the task on its dev splits."""

from collections.abc import Mapping

import numpy as np
import torch

from gpt_dist.config import ResolvedConfig
from gpt_dist.data.tasks.examples import EncodedSplit
from gpt_dist.finetune.head import head_shape, task_losses
from gpt_dist.finetune.predict import Judged, judge, metrics_of
from gpt_dist.topology import Topology
from gpt_dist.train.engine import Engine
from gpt_dist.train.metrics import Row


def validate(
    engine: Engine, splits: Mapping[str, EncodedSplit], config: ResolvedConfig, topology: Topology
) -> Row:
    """Return `validation_loss` of all dev examples, and `SPLIT_METRIC` of each split.

    They are the same for every layout. Every process must call this.
    """
    assert config.task is not None
    kind, _ = head_shape(config.task)
    judged = judge_splits(engine, splits, config, topology)
    losses = []
    for one in judged.values():
        assert one.targets is not None, "dev splits have labels"
        scores, targets = map(torch.tensor, one.scores), torch.tensor(one.targets)
        losses += [float(task_losses(kind, *pair)) for pair in zip(scores, targets, strict=True)]
    row: Row = {"validation_loss": float(np.mean(losses))}
    for name, metrics in metrics_of(judged, config.task).items():
        row |= {f"{name}_{metric}": value for metric, value in metrics.items()}
    return row


def judge_splits(
    engine: Engine, splits: Mapping[str, EncodedSplit], config: ResolvedConfig, topology: Topology
) -> dict[str, Judged]:
    """Return the predictions for splits; every process must call this, and gets all."""
    size, group = config.training.micro_batch_size, topology.data_parallel_group
    assert config.task is not None
    return {
        name: judge(engine.evaluate, split, config.task, size, group)
        for name, split in splits.items()
    }
