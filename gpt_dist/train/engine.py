"""DeepSpeed behind the few calls that training needs."""

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import Tensor

from gpt_dist.checkpoint.state import TrainingState
from gpt_dist.config import ResolvedConfig
from gpt_dist.data.batches import TokenBatch
from gpt_dist.errors import LaunchError
from gpt_dist.model.parameters import split_dimension
from gpt_dist.topology import Topology, model_parallel_unit
from gpt_dist.train.objective import Objective, to_device
from gpt_dist.train.optimizer import build_optimizer, deepspeed_config


@dataclass(frozen=True)
class Update:
    """Outcome of an optimizer step, which is not applied if a gradient is not finite."""

    grad_norm: float
    applied: bool
    bad_ranks: tuple[int, ...]
    """Ranks, or groups of ranks, whose gradient is not finite."""


class Engine:
    """Trains and evaluates an objective under ZeRO and tensor parallelism."""

    def __init__(
        self, objective: Objective[Any], config: ResolvedConfig, topology: Topology
    ) -> None:
        _prepare_deepspeed()
        self._topology = topology
        self._clip_norm = config.optimizer.clip_norm
        # For fp32 without ZeRO, DeepSpeed does not report the norm and lets NaN through: there the
        # norm, the clip and the check are done here.
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
            mpu=model_parallel_unit(topology),
            dist_init_required=False,
        )
        if self._half_without_zero:
            # DeepSpeed allocated the moments by a step that Adam's bias correction must not count.
            self._engine.optimizer.optimizer.state.clear()
        # DeepSpeed silently assumes no tensor parallelism where it cannot use its `mpu`.
        if self._engine.dp_world_size != topology.data_parallel_size:
            raise LaunchError(
                f"DeepSpeed {deepspeed.__version__} sees {self._engine.dp_world_size} "
                f"data-parallel processes, not {topology.data_parallel_size}; use a version that "
                "pyproject.toml allows"
            )

    def state(self) -> TrainingState:
        """Return the weights, moments and counters, to be saved or loaded."""
        return TrainingState(self._engine, self._topology)

    def train_batch(
        self, micro_batches: Sequence[TokenBatch[Any]], learning_rate: float
    ) -> tuple[float, Update]:
        """Make one optimizer step with this process's share of a global batch; collective.

        Returns the mean loss of the whole global batch, the same on every process, and the outcome.
        """
        engine = self._engine
        assert len(micro_batches) == engine.gradient_accumulation_steps()
        own = sum(batch.weight for batch in micro_batches)
        weight = torch.full((), own, dtype=torch.float64, device=engine.device)
        dist.all_reduce(weight, group=self._topology.data_parallel_group)
        weight = weight.clamp(min=1).float()
        loss = torch.zeros((), device=engine.device)
        for number, batch in enumerate(micro_batches):
            if number:
                engine.step()  # counts the micro-batch before; the weights stay
            part = self._call(batch) / weight
            # DeepSpeed takes the mean over data-parallel processes, but the parts must be summed.
            scale = self._topology.data_parallel_size * self._missing_loss_scale()
            engine.backward(part * scale, scale_wrt_gas=False)
            loss += part.detach()
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate
        figures = _check_gradients(engine, loss)
        grad_norm, applied = self._update_weights()
        *flags, loss_sum = figures.tolist()
        size = self._topology.tensor_parallel_size
        if not applied:
            # With an offloaded optimizer, DeepSpeed adds the next gradients to those not finite.
            getattr(engine.optimizer, "averaged_gradients", {}).clear()
        return loss_sum / size, Update(grad_norm, applied, _name_ranks(flags, size))

    def evaluate(self, batch: TokenBatch[Any]) -> Tensor:
        """Return the objective's scores of a batch, without dropout; every process must call."""
        self._engine.eval()
        with torch.no_grad():
            scores = self._call(batch)
        self._engine.train()
        return scores

    def _call(self, batch: TokenBatch[Any]) -> Tensor:
        # ZeRO 3 warns of positional arguments that are no tensors.
        return self._engine(batch=to_device(batch, self._topology.device))

    def _update_weights(self) -> tuple[float, bool]:
        """Let the optimizer step; return the gradient's norm, and whether the step was applied."""
        engine = self._engine
        if self._plain:
            grad_norm = self._clip()
            engine.step()
            return grad_norm, math.isfinite(grad_norm)
        scale = self._missing_loss_scale()
        if self._half_without_zero:
            # DeepSpeed looks on the gradient for the mark that megatron-core put on the parameter.
            for parameter in engine.module.parameters():
                if parameter.grad is not None:
                    parameter.grad.tensor_model_parallel = split_dimension(parameter) is not None
        engine.step()
        return float(engine.get_global_grad_norm()) / scale, engine.was_step_applied()

    def _missing_loss_scale(self) -> float:
        """Return the loss scale in half precision without ZeRO, else 1.

        There DeepSpeed divides the gradients by it, but does not multiply the loss, and reports the
        norm with the scale in it.
        """
        if not self._half_without_zero:
            return 1.0
        return float(self._engine.optimizer.loss_scale_config.cur_scale)

    def _clip(self) -> float:
        """Scale all gradients to the clip norm; drop them if the norm is not finite."""
        parameters = [p for p in self._engine.module.parameters() if p.grad is not None]
        is_first = self._topology.tensor_parallel_rank == 0
        owned = [p.grad for p in parameters if is_first or split_dimension(p) is not None]
        # On the CPU, a norm summed in fp32 is off by a part in a thousand for a large embedding.
        square = torch.stack(torch._foreach_norm(owned, 2, torch.float64)).square().sum()
        dist.all_reduce(square, group=self._topology.tensor_parallel_group)
        norm = float(square.sqrt())
        if not math.isfinite(norm):
            for parameter in parameters:
                parameter.grad = None
        elif self._clip_norm and norm > self._clip_norm:
            torch._foreach_mul_([p.grad for p in parameters], self._clip_norm / (norm + 1e-6))
        return norm


def _prepare_deepspeed() -> None:
    """Make DeepSpeed quiet, and skip the compilation of an extension that is never called."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_init_required=False, verbose=False)


def _check_gradients(engine: DeepSpeedEngine, loss: Tensor) -> Tensor:
    """Make a gradient of every process NaN if a reduced gradient of any process is not finite.

    DeepSpeed skips a step whose gradient norm is not finite. The norm counts a parameter that
    tensor parallelism replicates on the first tensor-parallel rank only, so DeepSpeed would apply
    a NaN that another rank has in it. The host does not wait for the device here.

    `engine` is between its last backward pass and its step, and `loss` is this process's part of
    the mean loss. Returns a tensor [world size + 1] on the device, the same on every process: for
    each rank 0, or 1 where its gradient is not finite, or 2 where its loss is not either; then the
    sum of `loss`.
    """
    held = _held_gradients(engine)
    size = dist.get_world_size()
    figures = torch.zeros(size + 1, dtype=torch.float64, device=engine.device)
    if held:
        # Unlike a sum, the largest magnitude overflows in no precision.
        largest = torch.stack(torch._foreach_norm(held, math.inf))
        figures[dist.get_rank()] = ~largest.isfinite().all() * (1 + ~loss.isfinite())
    figures[size] = loss
    dist.all_reduce(figures)
    for gradient in held[:1]:
        gradient[(0,) * gradient.dim()] += torch.where(figures[:size].any(), math.nan, 0.0)
    return figures


def _name_ranks(flags: Sequence[float], tensor_parallel_size: int) -> tuple[int, ...]:
    """Return the ranks that cause a gradient not to be finite, by the flags of all ranks.

    These are the ranks whose loss is not finite. If there are none, they are whole data-parallel
    groups: the sum of their gradients does not tell which rank is the cause.
    """
    groups = {rank % tensor_parallel_size for rank, flag in enumerate(flags) if flag}
    peers = (rank for rank in range(len(flags)) if rank % tensor_parallel_size in groups)
    return tuple(rank for rank, flag in enumerate(flags) if flag == 2) or tuple(peers)


def _held_gradients(engine: DeepSpeedEngine) -> list[Tensor]:
    """Return the reduced gradients of this process; only their norms if the host has them."""
    optimizer = engine.optimizer
    if isinstance(optimizer, BF16_Optimizer):
        return list(optimizer.fp32_groups_gradients_flat)
    if engine.zero_cpu_offload():
        return list(optimizer.norm_for_param_grads.values())
    if engine.zero_optimization():
        return [part for group in optimizer.averaged_gradients.values() for part in group]
    return [p.grad for p in engine.module.parameters() if p.grad is not None]
