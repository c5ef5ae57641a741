"""Gradients of a step under DeepSpeed, read off Adam's first moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from gpt_dist.topology import Topology

if TYPE_CHECKING:
    from gpt_dist.train.engine import Engine


def gradient_differences(
    engine: Engine, gradients: Mapping[str, Tensor], topology: Topology
) -> dict[str, float]:
    """The largest difference of each gradient that this process owns a part of.

    `gradients` are full tensors by name. After one step with beta_1 of 0.9 and no clipping, the
    first moment is a tenth of the gradient.
    """
    differences = {}
    for name, fragment in engine.state().owned.items():
        shard = gradients[name]
        if getattr(fragment.parameter, "tensor_model_parallel", False):
            dimension = fragment.parameter.partition_dim
            shards = shard.chunk(topology.tensor_parallel_size, dim=dimension)
            shard = shards[topology.tensor_parallel_rank]
        part = shard.flatten()[fragment.offset : fragment.offset + fragment.length]
        moment = fragment.tensors()["exp_avg"]
        differences[name] = float((moment * 10 - part).abs().max())
    return differences
