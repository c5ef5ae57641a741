"""DeepSpeed behind the few calls that training needs."""

import logging
import math
import warnings
from collections.abc import Sequence
from functools import cached_property
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
from gpt_dist.model.adamw import MasterAdamW, build_optimizer
from gpt_dist.model.parameters import split_dimension
from gpt_dist.topology import Topology, model_parallel_unit
from gpt_dist.train.compilation import compile_in_place, is_worthwhile
from gpt_dist.train.objective import Objective, to_device
from gpt_dist.train.optimizer import deepspeed_config, is_partitioned
from gpt_dist.train.profile import Phases

# Places in the figures of a step, which end in a flag of each rank.
_LOSS, _SQUARE, _ALERTS = range(3)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Update:
    """Outcome of an optimizer step, the same on every process.

    The host waits for the device only where it reads a property.
    """

    def __init__(self, figures: Tensor, tensor_parallel_size: int) -> None:
        """Have the sums of `_sum_figures` copied to the host, behind the work under way."""
        self._figures = figures.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if figures.is_cuda else None
        if self._copied:
            self._copied.record()
        self._tensor_parallel_size = tensor_parallel_size
        self._first_flag = len(figures) - dist.get_world_size()

    @cached_property
    def _values(self) -> list[float]:
        if self._copied:
            self._copied.synchronize()
        values: list[float] = self._figures.tolist()
        return values

    @property
    def loss(self) -> float:
        """Mean loss of the global batch."""
        return self._values[_LOSS]

    @property
    def grad_norm(self) -> float:
        """Norm of the gradient before it is clipped."""
        return math.sqrt(self._values[_SQUARE])

    @property
    def applied(self) -> bool:
        """Whether every gradient was finite, so that the weights have changed."""
        return math.isfinite(self._values[_SQUARE]) and not any(self._values[self._first_flag :])

    @property
    def alerts(self) -> list[bool]:
        """Which of the alerts given to `train_batch` any process has raised."""
        return [bool(value) for value in self._values[_ALERTS : self._first_flag]]

    @property
    def bad_ranks(self) -> tuple[int, ...]:
        """Ranks that cause a gradient not to be finite.

        These are the ranks whose loss is not finite. If there are none, they are whole
        data-parallel groups: the sum of their gradients does not tell which rank is the cause.
        """
        size, flags = self._tensor_parallel_size, self._values[self._first_flag :]
        groups = {rank % size for rank, flag in enumerate(flags) if flag}
        peers = (rank for rank in range(len(flags)) if rank % size in groups)
        return tuple(rank for rank, flag in enumerate(flags) if flag == 2) or tuple(peers)


class Engine:
    """Trains and evaluates an objective under ZeRO and tensor parallelism."""

    def __init__(
        self, objective: Objective[Any], config: ResolvedConfig, topology: Topology
    ) -> None:
        _prepare_deepspeed()
        self._topology = topology
        self._clip_norm = config.optimizer.clip_norm
        self._partitioned = is_partitioned(config, topology.data_parallel_size)
        self.num_parameters = sum(parameter.numel() for parameter in objective.parameters())
        """Parameters of this process's tensor-parallel slice."""
        self.phases = Phases(topology.device)
        """Measures the parts of a step where that is profiled."""
        objective.to(topology.device)
        self._optimizer: MasterAdamW | None = None
        if not self._partitioned:
            objective.to(PRECISIONS[config.training.precision])
            self._optimizer = MasterAdamW(objective.parameters(), config.optimizer)
            is_first = topology.tensor_parallel_rank == 0
            owned = [is_first or split_dimension(p) is not None for p in objective.parameters()]
            # Otherwise the optimizer takes the gradients as they are.
            self._accumulates = config.training.global_batch_size > config.training.micro_batch_size
            self._owned = torch.tensor(owned, dtype=torch.float64, device=topology.device)
        self.compiled = is_worthwhile(config, topology)
        if self.compiled:
            compile_in_place(objective, topology)
        self._engine, _, _, _ = deepspeed.initialize(
            model=objective,
            optimizer=self._optimizer or build_optimizer(objective.parameters(), config.optimizer),
            config=deepspeed_config(config, self._partitioned),
            mpu=model_parallel_unit(topology),
            dist_init_required=False,
        )
        self._engine.enable_backward_allreduce = self._partitioned
        # DeepSpeed silently assumes no tensor parallelism where it cannot use its `mpu`.
        if self._engine.dp_world_size != topology.data_parallel_size:
            raise LaunchError(
                f"DeepSpeed {deepspeed.__version__} sees {self._engine.dp_world_size} "
                f"data-parallel processes, not {topology.data_parallel_size}; use a version that "
                "pyproject.toml allows"
            )
        if config.training.profile:
            self._watch_reductions()

    def _watch_reductions(self) -> None:
        """Have DeepSpeed's own reductions, which are parts of its backward pass, counted apart."""
        engine, bucketed = self._engine, "reduce_independent_p_g_buckets_and_remove_grads"
        for owner, name in ((engine, "allreduce_gradients"), (engine.optimizer, bucketed)):
            if method := getattr(
                owner, name, None
            ):  # an optimizer of whole gradients has no buckets
                setattr(owner, name, self.phases("reduction")(method))

    def state(self) -> TrainingState:
        """Return the weights, moments and counters, to be saved or loaded."""
        return TrainingState(self._engine, self._topology)

    def train_batch(
        self,
        micro_batches: Sequence[TokenBatch[Any]],
        learning_rate: float,
        alerts: Sequence[bool] = (),
    ) -> tuple[Tensor, Update]:
        """Make one optimizer step with this process's share of a global batch; collective.

        `alerts` are what this process has to tell the others. Returns the mean loss of the whole
        global batch, on the device and the same on every process, and the outcome. The host does
        not wait for the device, except in DeepSpeed where that holds the state.
        """
        engine = self._engine
        assert len(micro_batches) == engine.gradient_accumulation_steps()
        own = sum(batch.weight for batch in micro_batches)
        weight = torch.full((), own, dtype=torch.float64, device=engine.device)
        dist.all_reduce(weight, group=self._topology.data_parallel_group)
        weight = weight.clamp(min=1).float()
        # DeepSpeed takes the mean over data-parallel processes, but the parts must be summed.
        processes = self._topology.data_parallel_size if self._partitioned else 1
        loss = torch.zeros((), device=engine.device)
        for number, batch in enumerate(micro_batches):
            if number:
                engine.step()  # counts the micro-batch before; the weights stay
            with self.phases("forward"):
                part = self._call(batch) / weight
            with self.phases("backward"):
                engine.backward(part * processes, scale_wrt_gas=False)
                if self._optimizer and self._accumulates:
                    self._optimizer.collect()
            loss += part.detach()
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate
        size = self._topology.tensor_parallel_size
        with self.phases("optimizer"):
            if self._optimizer:
                figures = self._update_masters(self._optimizer, loss / size, alerts)
            else:
                figures = self._update_partitioned(loss / size, alerts)
        return figures[_LOSS], Update(figures, size)

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

    def _update_masters(
        self, optimizer: MasterAdamW, loss: Tensor, alerts: Sequence[bool]
    ) -> Tensor:
        """Reduce the gradients, clip and apply them; return the figures of the step.

        They are not applied where a process has one that is not finite. `loss` is this process's
        part of the mean loss.
        """
        topology = self._topology
        gradients = optimizer.gradients()
        if topology.data_parallel_size > 1:
            group = topology.data_parallel_group
            with self.phases("reduction"):
                for handle in [
                    dist.all_reduce(one, group=group, async_op=True) for one in gradients
                ]:
                    handle.wait()
        # On the CPU, the norm of a large embedding in fp32 is off by a part in a thousand.
        rows = [torch.linalg.vector_norm(one, dim=-1, dtype=torch.float32) for one in gradients]
        squares = torch.stack([norms.double().square().sum() for norms in rows])
        owned = squares @ self._owned / topology.data_parallel_size
        figures = _sum_figures(loss, owned, alerts, squares.isfinite().all())
        optimizer.found_inf = figures[-dist.get_world_size() :].any().float()
        optimizer.grad_scale = torch.ones_like(optimizer.found_inf)
        if self._clip_norm:
            norm = figures[_SQUARE].sqrt() + 1e-6
            optimizer.grad_scale = (norm / self._clip_norm).clamp(min=1).float()
        self._engine.step()
        return figures

    def _update_partitioned(self, loss: Tensor, alerts: Sequence[bool]) -> Tensor:
        """Have DeepSpeed clip and apply the gradients; return the figures of the step.

        DeepSpeed skips a step whose gradient norm is not finite. The norm counts a parameter that
        tensor parallelism replicates on the first tensor-parallel rank only, so DeepSpeed would
        apply a NaN that another rank has in it. So a gradient of every process is made NaN if a
        reduced gradient of any process is not finite.
        """
        engine, held = self._engine, _held_gradients(self._engine)
        # Unlike sums, they overflow in no precision; and torch's infinity norm is slow on the CPU.
        bounds = [bound.float() for one in held for bound in torch.aminmax(one)]
        is_finite = torch.stack([*bounds, loss.new_zeros(())]).isfinite().all()
        figures = _sum_figures(loss, loss.new_zeros(()), alerts, is_finite)
        poison = torch.where(figures[-dist.get_world_size() :].any(), math.nan, 0.0)
        for gradient in held[:1]:
            gradient[(0,) * gradient.dim()] += poison
        engine.step()
        if engine.was_step_applied():
            figures[_SQUARE] = float(engine.get_global_grad_norm()) ** 2
        else:
            figures[_SQUARE] = math.nan
            # With an offloaded optimizer, DeepSpeed adds the next gradients to those not finite.
            getattr(engine.optimizer, "averaged_gradients", {}).clear()
        return figures


def _prepare_deepspeed() -> None:
    """Make DeepSpeed quiet, and skip the compilation of an extension that is never called."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_init_required=False, verbose=False)


def _sum_figures(loss: Tensor, square: Tensor, alerts: Sequence[bool], is_finite: Tensor) -> Tensor:
    """Return figures of a step, summed over all processes, on the device; the host does not wait.

    These are `loss`, `square`, the `alerts`, and a flag of each rank: 0, or 1 where its gradient is
    not finite, or 2 where its loss is not either.
    """
    first_flag = _ALERTS + len(alerts)
    size = first_flag + dist.get_world_size()
    figures = torch.zeros(size, dtype=torch.float64, device=loss.device)
    figures[_LOSS], figures[_SQUARE] = loss, square
    for place, alert in enumerate(alerts, _ALERTS):
        figures[place] = float(alert)
    figures[first_flag + dist.get_rank()] = ~is_finite * (1 + ~loss.isfinite())
    dist.all_reduce(figures)
    return figures


def _held_gradients(engine: DeepSpeedEngine) -> list[Tensor]:
    """Return the reduced gradients of this process; only their norms if the host has them."""
    optimizer = engine.optimizer
    if isinstance(optimizer, BF16_Optimizer):
        return list(optimizer.fp32_groups_gradients_flat)
    if engine.zero_cpu_offload():
        return list(optimizer.norm_for_param_grads.values())
    return [part for group in optimizer.averaged_gradients.values() for part in group]
