"""Validation of fine-tuning: the task's metrics on its dev splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpt_dist.config import ResolvedConfig, TaskConfig
from gpt_dist.data.tasks.examples import EncodedSplit
from gpt_dist.finetune.head import head_shape, task_losses
from gpt_dist.finetune.predict import Judged, judge, metrics_of
from gpt_dist.topology import Topology
from gpt_dist.train.engine import Engine
from gpt_dist.train.metrics import Row


class TaskValidator:
    """Scores the dev splits of a task with an engine's weights, the same for every layout."""

    def __init__(
        self,
        engine: Engine,
        splits: Mapping[str, EncodedSplit],
        config: ResolvedConfig,
        topology: Topology,
    ) -> None:
        assert config.task is not None
        self._engine = engine
        self._splits = splits
        self._task: TaskConfig = config.task
        self._config = config
        self._topology = topology

    def __call__(self) -> Row:
        """`validation_loss` of all dev examples, and `SPLIT_METRIC` of each split."""
        judged = {name: self.judge(split) for name, split in self._splits.items()}
        losses = np.concatenate([self._losses(one) for one in judged.values()])
        row: Row = {"validation_loss": float(losses.mean())}
        for name, metrics in metrics_of(judged, self._task).items():
            row |= {f"{name}_{metric}": value for metric, value in metrics.items()}
        return row

    def judge(self, split: EncodedSplit) -> Judged:
        """Predictions for any split; every process calls this, and gets all."""
        size = self._config.training.micro_batch_size
        group = self._topology.data_parallel_group
        return judge(self._engine.evaluate, split, self._task, size, group)

    def _losses(self, judged: Judged) -> NDArray[Any]:
        kind = head_shape(self._task)[0]
        assert judged.targets is not None, "dev splits have labels"
        pairs = zip(judged.scores, judged.targets, strict=True)
        each = [
            task_losses(kind, torch.tensor(scores)[None], torch.tensor(target)[None])
            for scores, target in pairs
        ]
        return torch.cat(each).numpy()
