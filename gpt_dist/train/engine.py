"""DeepSpeed, behind the four calls that training needs."""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from gpt_dist.checkpoint.state import TrainingState
from gpt_dist.config import Config
from gpt_dist.errors import LaunchError
from gpt_dist.topology import ModelParallelUnit, Topology
from gpt_dist.train.deepspeed_config import deepspeed_config
from gpt_dist.train.optimizer import build_optimizer


@dataclass(frozen=True)
class Update:
    """What an optimiser step did; a step whose gradient is not finite leaves the weights alone."""

    grad_norm: float
    applied: bool


class Engine:
    """An objective under ZeRO and tensor parallelism: forward, backward, step.

    DeepSpeed counts the micro-batches: backward and step are called for each, and the weights
    change at the last of a global batch.
    """

    def __init__(self, objective: nn.Module, config: Config, topology: Topology) -> None:
        _prepare_deepspeed()
        self._topology = topology
        self._clip_norm = config.optimizer.clip_norm
        # DeepSpeed leaves fp32 without ZeRO to the plain optimizer, with a norm it does not report
        # and that lets NaN through: there the norm, the clip and the check are done here.
        unpartitioned = config.parallel.zero_stage == 0
        self._plain = unpartitioned and config.training.precision == "fp32"
        self._half_without_zero = unpartitioned and not self._plain
        self.num_parameters = sum(parameter.numel() for parameter in objective.parameters())
        """Of this process's tensor-parallel slice."""
        derived = deepspeed_config(config)
        if self._plain:
            derived["gradient_clipping"] = 0.0
        objective.to(topology.device)
        if config.training.compile:
            objective.compile()
        self._engine, _, _, _ = deepspeed.initialize(
            model=objective,
            optimizer=build_optimizer(objective, config.optimizer),
            config=derived,
            mpu=ModelParallelUnit(topology),
            dist_init_required=False,
        )
        if self._half_without_zero:
            # DeepSpeed allocated the moments by a step that Adam's bias correction must not count.
            self._engine.optimizer.optimizer.state.clear()
        self._check_batch_sizes(config)

    def state(self) -> TrainingState:
        """Weights, moments and counters, to be saved or loaded."""
        return TrainingState(self._engine, self._topology)

    def forward(self, *batch: NDArray[Any]) -> Tensor:
        """The objective's loss of this process's micro-batch; a scalar."""
        loss: Tensor = self._engine(*map(self._to_device, batch))
        return loss

    def evaluate(self, *batch: NDArray[Any]) -> Tensor:
        """What the objective gives without dropout and gradients; every process must ask."""
        self._engine.eval()
        with torch.no_grad():
            result: Tensor = self._engine(*map(self._to_device, batch))
        self._engine.train()
        return result

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's share of the gradient."""
        if self._half_without_zero:
            # DeepSpeed divides these gradients by the loss scale, but does not multiply the loss.
            loss = loss * self._engine.optimizer.loss_scale_config.cur_scale
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> Update | None:
        """Count a micro-batch; at the last of a global batch, update the weights and report."""
        engine = self._engine
        if not engine.is_gradient_accumulation_boundary():
            engine.step()
            return None
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._plain:
            grad_norm = self._clip()
            engine.step()
            return Update(grad_norm, math.isfinite(grad_norm))
        if self._half_without_zero:
            return self._step_half_without_zero()
        engine.step()
        return Update(float(engine.get_global_grad_norm()), engine.was_step_applied())

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.as_tensor(array)
        if self._topology.device.type == "cuda":
            return tensor.pin_memory().to(self._topology.device, non_blocking=True)
        return tensor

    def _clip(self) -> float:
        """Scale all gradients to the clip norm; drop them if the norm is not finite."""
        topology = self._topology
        parameters = [p for p in self._engine.module.parameters() if p.grad is not None]
        owned = [
            parameter.grad
            for parameter in parameters
            if topology.tensor_parallel_rank == 0
            or getattr(parameter, "tensor_model_parallel", False)
        ]
        # On the CPU, a norm summed in fp32 is off by a part in a thousand for a large embedding.
        square = torch.stack(torch._foreach_norm(owned, 2, torch.float64)).square().sum()
        dist.all_reduce(square, group=topology.tensor_parallel_group)
        norm = float(square.sqrt())
        if not math.isfinite(norm):
            for parameter in parameters:
                parameter.grad = None
        elif self._clip_norm and norm > self._clip_norm:
            torch._foreach_mul_([p.grad for p in parameters], self._clip_norm / (norm + 1e-6))
        return norm

    def _step_half_without_zero(self) -> Update:
        """DeepSpeed looks on the gradient for what megatron-core wrote on the parameter, and would
        leave the shards of all but the first tensor-parallel rank out of the norm; and it reports
        the norm before the loss scale is divided out."""
        for parameter in self._engine.module.parameters():
            if parameter.grad is not None and getattr(parameter, "tensor_model_parallel", False):
                parameter.grad.tensor_model_parallel = True
        scale = self._engine.optimizer.loss_scale_config.cur_scale
        self._engine.step()
        grad_norm = float(self._engine.get_global_grad_norm()) / scale
        return Update(grad_norm, self._engine.was_step_applied())

    def _check_batch_sizes(self, config: Config) -> None:
        """DeepSpeed computes these itself, and silently assumes one process where it errs."""
        training, topology = config.training, self._topology
        assert training.micro_batch_size is not None
        expected = (
            training.global_batch_size,
            training.micro_batch_size,
            training.global_batch_size // training.micro_batch_size // topology.data_parallel_size,
        )
        engine = self._engine
        found = (
            engine.train_batch_size(),
            engine.train_micro_batch_size_per_gpu(),
            engine.gradient_accumulation_steps(),
        )
        if found != expected or engine.dp_world_size != topology.data_parallel_size:
            raise LaunchError(
                f"DeepSpeed {deepspeed.__version__} sees global batch, micro-batch, accumulation "
                f"{found}, not {expected}; use a version that pyproject.toml allows"
            )


def _prepare_deepspeed() -> None:
    """Quiet it, and spare it the compilation of an extension that training never calls."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
