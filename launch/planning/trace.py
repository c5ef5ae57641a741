"""Traces the real engine: two steps of one process on fake tensors, in a fake process group."""

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import Variable
from torch.testing._internal.distributed.fake_pg import FakeStore

from gpt_dist.config import ResolvedConfig
from gpt_dist.data.batches import TokenBatch
from gpt_dist.model import GPT
from gpt_dist.model.adamw import MasterAdamW
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import Topology
from gpt_dist.train.engine import Engine
from gpt_dist.train.objective import LanguageModelObjective
from planning.operations import Operation, Recorder

STEPS = 2
"""The first step allocates what the others keep, and ZeRO 3 learns the order of the weights."""


@dataclass(frozen=True)
class Segment:
    """A part of a step: its number, the micro-batch, and the phase.

    Phases are `start`, `before`, `forward`, `head` (twice), `between`, `backward` and `update`;
    forward and backward have the place of their block: `first`, `middle` or `last`.
    """

    step: int
    micro_batch: int
    phase: str
    place: str = ""


Trace = dict[Segment, list[tuple[Operation, tuple[int, ...]]]]
"""The operations of each segment with the live bytes of each kind after them."""


def trace(config: ResolvedConfig, world_size: int, on_gpu: bool) -> Trace:
    """Trace two steps of the last rank, which under ZeRO 2 holds the most.

    `on_gpu` traces the kernels of attention and dropout that a GPU has.
    """
    with ExitStack() as stack:
        # DeepSpeed collects garbage again and again: what is there already need not be looked at.
        gc.freeze()
        stack.callback(gc.unfreeze)
        for context in _replacements(on_gpu, world_size):
            stack.enter_context(context)
        topology = stack.enter_context(_fake_topology(config, world_size))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        recorder = Recorder()
        model = GPT(
            config.model,
            topology.tensor_parallel_group,
            config.training.activation_checkpointing,
            config.parallel.sequence_parallel,
        )
        objective = LanguageModelObjective(model)
        _Marks(recorder, objective)
        stack.enter_context(recorder)
        recorder.segment = Segment(0, 0, "start")
        recorder.tag(list(objective.parameters()), "weights")
        engine = Engine(objective, config, topology)
        for step in range(STEPS):
            _tag_state(recorder, engine)
            recorder.segment = Segment(step, 0, "before")
            engine.train_batch(_batches(config, topology), 1e-3)
        return dict(recorder.segments)


def _replacements(on_gpu: bool, world_size: int) -> Iterator[Any]:
    """Yield contexts that replace what fake tensors, or the CPU, would do differently."""
    place = {"RANK": str(world_size - 1), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    yield patch.dict(os.environ, place | {"CUDA_DEVICE_MAX_CONNECTIONS": "1"})
    yield warnings.catch_warnings(action="ignore")
    # Modules swap fake tensors instead of setting them, which the weak references to them forbid.
    yield patch("torch.utils.swap_tensors", lambda old, new: setattr(old, "data", new.data))
    # The processes of a fake group have nothing to compare.
    name = "deepspeed.runtime.zero.partitioned_param_coordinator.assert_ints_same_as_other_ranks"
    yield patch(name, lambda _: None)
    # A compiled graph cannot be traced, but the operations that it is made of can.
    yield from compiled_forms()
    if on_gpu:
        yield patch("gpt_dist.model.layers.Attention._attend_by_products", _fused_attention)
        yield patch("gpt_dist.model.dropout.dropout", _fused_dropout)


def compiled_forms() -> Iterator[Any]:
    """Yield contexts in which a model that is not compiled takes the forms of a compiled one."""
    for module in ("decoder", "dropout"):
        yield patch(f"gpt_dist.model.{module}.uses_compiled_forms", lambda: True)


def _fused_attention(_: Any, query: Tensor, key: Tensor, value: Tensor, rate: float) -> Tensor:
    """Attend as F.scaled_dot_product_attention does on a GPU."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    output: Tensor = flash(query, key, value, rate, is_causal=True)[0]
    return output


def _fused_dropout(values: Tensor, rate: float, _: Any) -> Tensor:
    return torch.native_dropout(values, rate, train=True)[0] if rate else values


@contextmanager
def _fake_topology(config: ResolvedConfig, world_size: int) -> Iterator[Topology]:
    """Give the last rank's groups of a world where nothing is sent."""
    parts, last = config.parallel.tensor_parallel_size, world_size - 1
    dist.init_process_group("fake", rank=last, world_size=world_size, store=FakeStore())
    try:
        yield Topology(
            launch=Launch("plan", last, world_size, last, world_size),
            device=torch.device("cpu"),
            tensor_parallel_size=parts,
            tensor_parallel_rank=parts - 1,
            data_parallel_size=world_size // parts,
            data_parallel_rank=world_size // parts - 1,
            tensor_parallel_group=dist.new_group(list(range(world_size - parts, world_size))),
            data_parallel_group=dist.new_group(list(range(parts - 1, world_size, parts))),
        )
    finally:
        dist.destroy_process_group()


_ALLOCATED = {"head": "logits", "between": "buffers", "update": "buffers"}
"""Kinds of what phases allocate; others allocate activations."""


class _Marks:
    """Tells a recorder where a segment of a step begins."""

    def __init__(self, recorder: Recorder, objective: LanguageModelObjective) -> None:
        self._recorder = recorder
        self._in_backward = False
        self._blocks = objective.model.blocks
        objective.register_forward_pre_hook(lambda *_: self._begin_micro_batch())
        objective.register_forward_hook(lambda _, __, loss: self._watch_backward(loss))
        for number, block in enumerate(self._blocks):
            block.register_forward_pre_hook(lambda *_, at=number: self._enter(at))
            block.register_forward_hook(lambda _, __, output, at=number: self._leave(at, output))
        for parameter in objective.parameters():
            parameter.register_post_accumulate_grad_hook(self._tag_gradient)

    def _mark(self, phase: str, place: str = "") -> None:
        now = self._recorder.segment
        self._recorder.segment = Segment(now.step, now.micro_batch, phase, place)
        self._recorder.kind = _ALLOCATED.get(phase, "activations")

    def _place(self, number: int) -> str:
        return {0: "first", len(self._blocks) - 1: "last"}.get(number, "middle")

    def _begin_micro_batch(self) -> None:
        now = self._recorder.segment
        follows = now.phase == "update"
        self._recorder.segment = Segment(now.step, now.micro_batch + follows, "before")
        self._mark("before")

    def _enter(self, number: int) -> None:
        if not self._in_backward:  # where blocks are computed again
            self._mark("forward", self._place(number))

    def _leave(self, number: int, output: Tensor) -> None:
        if self._in_backward:
            return
        output.register_hook(lambda _: self._mark("backward", self._place(number)))
        if number == len(self._blocks) - 1:
            self._mark("head")

    def _watch_backward(self, loss: Tensor) -> None:
        def begin(_: Tensor) -> None:
            self._in_backward = True
            self._mark("head")
            Variable._execution_engine.queue_callback(end)

        def end() -> None:
            self._in_backward = False
            self._mark("update")

        self._mark("between")
        loss.register_hook(begin)

    def _tag_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._recorder.tag(parameter.grad, "gradients")


def _tag_state(recorder: Recorder, engine: Engine) -> None:
    """Tell what the tensors of the engine's state are for."""
    outer, parameters = engine._engine.optimizer, list(engine._engine.module.parameters())
    optimizer = getattr(outer, "optimizer", outer)
    for name, value in vars(outer).items():
        if "grad" in name or "fp32" in name:
            recorder.tag(value, "gradients" if "grad" in name else "masters")
    recorder.tag([group["params"] for group in optimizer.param_groups], "masters")
    recorder.tag([list(state.values()) for state in optimizer.state.values()], "moments")
    recorder.tag([parameters, [getattr(p, "ds_tensor", None) for p in parameters]], "weights")
    if isinstance(optimizer, MasterAdamW):
        recorder.tag(optimizer.gradients(), "gradients")


def _batches(config: ResolvedConfig, topology: Topology) -> list[TokenBatch[Any]]:
    rows, training = config.training.micro_batch_size, config.training
    tokens = np.zeros((rows, config.model.sequence_length), np.int64)
    count = training.global_batch_size // (rows * topology.data_parallel_size)
    return [TokenBatch(tokens, tokens)] * count
