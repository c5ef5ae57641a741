"""DeepSpeed behind the few calls that training needs."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from gpt_dist.checkpoint.state import TrainingState
from gpt_dist.config import Config
from gpt_dist.data.batches import TokenBatch
from gpt_dist.errors import LaunchError
from gpt_dist.model import probe_tokens
from gpt_dist.topology import ModelParallelUnit, Topology
from gpt_dist.train.deepspeed_config import deepspeed_config
from gpt_dist.train.gradients import check_gradients, name_ranks
from gpt_dist.train.objective import Objective, to_device
from gpt_dist.train.optimizer import build_optimizer


@dataclass(frozen=True)
class Update:
    """Outcome of an optimizer step, which a gradient that is not finite leaves unapplied."""

    grad_norm: float
    applied: bool
    bad_ranks: tuple[int, ...]
    """Ranks that cause the gradient not to be finite, as far as it can be told."""


class Engine:
    """Trains and evaluates an objective under ZeRO and tensor parallelism."""

    def __init__(self, objective: Objective[Any], config: Config, topology: Topology) -> None:
        _prepare_deepspeed()
        self._objective = objective
        self._topology = topology
        self._model = config.model
        self._clip_norm = config.optimizer.clip_norm
        # DeepSpeed leaves fp32 without ZeRO to the plain optimizer, with a norm it does not report
        # and that lets NaN through: there the norm, the clip and the check are done here.
        unpartitioned = config.parallel.zero_stage == 0
        self._plain = unpartitioned and config.training.precision == "fp32"
        self._half_without_zero = unpartitioned and not self._plain
        self.num_parameters = sum(parameter.numel() for parameter in objective.parameters())
        """Parameters of this process's tensor-parallel slice."""
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
        size = self._engine.dp_world_size
        if size != topology.data_parallel_size:
            # It silently assumes that there is no tensor parallelism where it cannot use its `mpu`.
            raise LaunchError(
                f"DeepSpeed {deepspeed.__version__} sees {size} data-parallel processes, not "
                f"{topology.data_parallel_size}; use a version that pyproject.toml allows"
            )

    def state(self) -> TrainingState:
        """Return the weights, moments and counters, to be saved or loaded."""
        return TrainingState(self._engine, self._topology)

    def train_batch(
        self, micro_batches: Sequence[TokenBatch[Any]], learning_rate: float
    ) -> tuple[float, Update]:
        """Make one optimizer step; every process must call this.

        Args:
            micro_batches: This process's share of the global batch.
            learning_rate: That of this step.

        Returns:
            The mean loss of the whole global batch, the same on every process, and the outcome.
        """
        engine = self._engine
        assert len(micro_batches) == engine.gradient_accumulation_steps()
        weight = self._global_weight(micro_batches)
        loss = torch.zeros((), device=engine.device)
        for number, batch in enumerate(micro_batches):
            if number:
                engine.step()  # counts the micro-batch before; the weights stay
            loss += self._accumulate_gradient(batch, weight)
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate
        figures = check_gradients(engine, loss)
        grad_norm, applied = self._update_weights()
        *flags, loss_sum = figures.tolist()
        size = self._topology.tensor_parallel_size
        if not applied:
            # With an offloaded optimizer, DeepSpeed adds the next gradients to those not finite.
            getattr(engine.optimizer, "averaged_gradients", {}).clear()
        return loss_sum / size, Update(grad_norm, applied, name_ranks(flags, size))

    def evaluate(self, batch: TokenBatch[Any]) -> Tensor:
        """Return the objective's scores of a batch, without dropout; every process must call."""
        self._engine.eval()
        with torch.no_grad():
            scores = self._call(batch)
        self._engine.train()
        return scores

    def probe_loss(self) -> float:
        """The live model's loss on fixed tokens, without dropout; every process must ask."""
        tokens, labels = probe_tokens(self._model)
        # Compiling for these shapes would take longer than they do.
        with torch.compiler.set_stance("force_eager"):
            return float(self.evaluate(TokenBatch(tokens, labels)).mean())

    def _call(self, batch: TokenBatch[Any]) -> Tensor:
        # ZeRO 3 warns of positional arguments that are no tensors.
        result: Tensor = self._engine(batch=to_device(batch, self._topology.device))
        return result

    def _global_weight(self, micro_batches: Sequence[TokenBatch[Any]]) -> Tensor:
        """Return the weight of the whole global batch, a scalar in fp32 on the device."""
        own = sum(map(self._objective.weight, micro_batches))
        weight = torch.full((), own, dtype=torch.float64, device=self._engine.device)
        dist.all_reduce(weight, group=self._topology.data_parallel_group)
        return weight.clamp(min=1).float()

    def _accumulate_gradient(self, batch: TokenBatch[Any], weight: Tensor) -> Tensor:
        """Add the gradient of a micro-batch; return its part of the mean loss, on the device."""
        loss = self._call(batch) / weight
        # DeepSpeed takes the mean over data-parallel processes, but this is to be summed.
        scale: float = self._topology.data_parallel_size
        if self._half_without_zero:
            # DeepSpeed divides these gradients by the loss scale, but does not multiply the loss.
            scale *= self._engine.optimizer.loss_scale_config.cur_scale
        self._engine.backward(loss * scale, scale_wrt_gas=False)
        return loss.detach()

    def _update_weights(self) -> tuple[float, bool]:
        """Let the optimizer step; return the gradient's norm, and whether the step was applied."""
        engine = self._engine
        if self._plain:
            grad_norm = self._clip()
            engine.step()
            return grad_norm, math.isfinite(grad_norm)
        scale = self._prepare_half_without_zero() if self._half_without_zero else 1.0
        engine.step()
        return float(engine.get_global_grad_norm()) / scale, engine.was_step_applied()

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

    def _prepare_half_without_zero(self) -> float:
        """Mark the gradients of tensor-parallel shards, and return the scale of their norm.

        DeepSpeed looks on the gradient for the mark that megatron-core put on the parameter, and
        reports the norm with the loss scale in it.
        """
        for parameter in self._engine.module.parameters():
            if parameter.grad is not None and getattr(parameter, "tensor_model_parallel", False):
                parameter.grad.tensor_model_parallel = True
        return float(self._engine.optimizer.loss_scale_config.cur_scale)


def _prepare_deepspeed() -> None:
    """Make DeepSpeed quiet, and spare it the compilation of an extension that is never called."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
