"""The parts of the training state that a process holds, located for every ZeRO stage."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor, nn

from gpt_dist.checkpoint.fingerprint import KINDS
from gpt_dist.model.adamw import MasterAdamW


@dataclass(frozen=True)
class Fragment:
    """A run of consecutive elements of one parameter that this process holds in fp32.

    `offset` and `length` are in the flattened tensor-parallel shard of the parameter; the same
    elements begin at `start` in `master`, the tensor that the optimizer updates.
    """

    parameter: nn.Parameter
    offset: int
    length: int
    master: Tensor
    start: int
    optimizer: torch.optim.Optimizer
    replicated: bool = False
    """Whether every data-parallel process holds the same elements."""

    def tensors(self) -> dict[str, Tensor]:
        """Return live flat views [length] of weight and moments: writing changes the state."""
        state = self.optimizer.state[self.master]
        if not state:
            # As torch.optim.AdamW, fused, makes it at its first step.
            state["step"] = torch.zeros((), device=self.master.device)
            for kind in KINDS[1:]:
                state[kind] = torch.zeros_like(self.master)
        whole = {"weight": self.master.detach(), **{kind: state[kind] for kind in KINDS[1:]}}
        end = self.start + self.length
        return {kind: tensor.view(-1)[self.start : end] for kind, tensor in whole.items()}


def fragments_of(engine: DeepSpeedEngine) -> Iterator[Fragment]:
    """Yield all fragments that this process holds."""
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return _stage_3(engine, optimizer)
    if isinstance(optimizer, MasterAdamW):
        return _whole(optimizer)
    return _stage_1_and_2(engine, optimizer)


def _whole(optimizer: MasterAdamW) -> Iterator[Fragment]:
    for parameter, master in zip(optimizer.weights, optimizer.masters, strict=True):
        yield Fragment(parameter, 0, parameter.numel(), master, 0, optimizer, replicated=True)


def _stage_1_and_2(engine: DeepSpeedEngine, optimizer: Any) -> Iterator[Fragment]:
    is_bf16 = isinstance(optimizer, BF16_Optimizer)
    name = "fp32_groups_flat_partition" if is_bf16 else "single_partition_of_fp32_groups"
    groups = getattr(optimizer, name)
    for parameter in engine.module.parameters():
        mapping = parameter._hp_mapping
        if mapping is not None:
            own, start = mapping.lp_fragment_address, mapping.hp_fragment_address.start
            master = groups[mapping.param_group_index]
            yield Fragment(parameter, own.start, own.numel, master, start, optimizer.optimizer)


def _stage_3(
    engine: DeepSpeedEngine, optimizer: DeepSpeedZeroOptimizer_Stage3
) -> Iterator[Fragment]:
    for parameter in engine.module.parameters():
        group, start, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        offset = size * dist.get_rank(optimizer.dp_process_group)
        length = max(0, min(size, parameter.ds_numel - offset))
        master = optimizer.fp32_partitioned_groups_flat[group]
        yield Fragment(parameter, offset, length, master, start, optimizer.optimizer)
