"""The training state of a process as fragments: what it writes, and how it is filled again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor, nn

from gpt_dist.checkpoint.format import Checkpoint, FragmentEntry, ParameterEntry
from gpt_dist.checkpoint.fragments import Fragment, fragments_of
from gpt_dist.errors import CheckpointError
from gpt_dist.topology import Topology

_RNG = ("cpu", "cuda")
_SCALER_KEYS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class TrainingState:
    """The weights, moments and counters of an engine, in fp32, by parameter name."""

    def __init__(self, engine: DeepSpeedEngine, topology: Topology) -> None:
        self._engine = engine
        self._topology = topology
        self._names = {id(p): name for name, p in engine.module.named_parameters()}

    def owned(self) -> Iterator[tuple[str, Fragment]]:
        """The fragments that this process writes: together, all processes write each element once.

        What all data-parallel processes hold is shared out among them.
        """
        topology = self._topology
        for name, fragment in self._fragments():
            if not _is_split(fragment.parameter) and topology.tensor_parallel_rank > 0:
                continue
            if fragment.replicated:
                size, rank = topology.data_parallel_size, topology.data_parallel_rank
                bounds = [fragment.length * part // size for part in (rank, rank + 1)]
                fragment = fragment.part(*bounds)
            if fragment.length:
                yield name, fragment

    def describe(self, file: str) -> dict[str, ParameterEntry]:
        """The manifest entries of what this process writes to `file`."""
        return {
            name: ParameterEntry(
                shape=_full_shape(fragment.parameter, self._topology),
                tensor_parallel_dimension=_split_dimension(fragment.parameter),
                fragments=(
                    FragmentEntry(
                        file=file,
                        tensor_parallel_rank=self._topology.tensor_parallel_rank,
                        offset=fragment.offset,
                        length=fragment.length,
                    ),
                ),
            )
            for name, fragment in self.owned()
        }

    def counters(self) -> tuple[int, dict[str, float]]:
        """Adam's count of updates, and the state of fp16's loss scaler."""
        _, fragment = next(self._fragments())
        fragment.tensors()
        steps = int(fragment.optimizer.state[fragment.master]["step"])
        scaler = {key: getattr(self._scaler(), key, None) for key in _SCALER_KEYS}
        return steps, {key: value for key, value in scaler.items() if value is not None}

    def load(self, checkpoint: Checkpoint) -> None:
        """Fill every fragment of this process from a checkpoint of any layout.

        Raises CheckpointError where the checkpoint is of another model.
        """
        self._check_shapes(checkpoint)
        manifest, topology = checkpoint.manifest, self._topology
        with torch.no_grad():
            for name, fragment in self._fragments():
                place = (topology.tensor_parallel_size, topology.tensor_parallel_rank)
                for kind, tensor in fragment.tensors().items():
                    checkpoint.read_part(kind, name, *place, fragment.offset, tensor)
                step = fragment.optimizer.state[fragment.master]["step"]
                step.fill_(manifest.optimizer_steps)
            self._refresh_weights(checkpoint)
        for key, value in manifest.loss_scaler.items():
            if hasattr(self._scaler(), key):
                number_type = type(getattr(self._scaler(), key))
                setattr(self._scaler(), key, number_type(value))

    def _refresh_weights(self, checkpoint: Checkpoint) -> None:
        """Give the weights of forward and backward the values of the fp32 ones."""
        optimizer, topology = self._engine.optimizer, self._topology
        if self._engine.zero_optimization_partition_weights():
            for _, fragment in self._fragments():
                own: Tensor = fragment.parameter.ds_tensor  # type: ignore[attr-defined]
                own.view(-1)[: fragment.length].copy_(fragment.tensors()["weight"])
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
            return
        for name, parameter in self._engine.module.named_parameters():
            place = (topology.tensor_parallel_size, topology.tensor_parallel_rank)
            checkpoint.read_part("weight", name, *place, 0, parameter.detach())

    def _check_shapes(self, checkpoint: Checkpoint) -> None:
        saved = checkpoint.manifest.parameters
        own = {
            name: _full_shape(parameter, self._topology)
            for name, parameter in self._engine.module.named_parameters()
        }
        for name in sorted(own.keys() | saved.keys()):
            found = saved[name].shape if name in saved else None
            if found != own.get(name):
                raise CheckpointError(
                    f"{checkpoint.path}: {name} has shape {found}, this model wants "
                    f"{own.get(name)}; take the model section of its configuration"
                )

    def _fragments(self) -> Iterator[tuple[str, Fragment]]:
        for fragment in fragments_of(self._engine):
            yield self._names[id(fragment.parameter)], fragment

    def _scaler(self) -> object:
        optimizer = self._engine.optimizer
        unfused = getattr(optimizer, "loss_scale_config", None)
        return unfused or getattr(optimizer, "loss_scaler", None)


def _is_split(parameter: nn.Parameter) -> bool:
    return bool(getattr(parameter, "tensor_model_parallel", False))


def _split_dimension(parameter: nn.Parameter) -> int | None:
    return int(parameter.partition_dim) if _is_split(parameter) else None  # type: ignore[attr-defined]


def _full_shape(parameter: nn.Parameter, topology: Topology) -> tuple[int, ...]:
    # Under ZeRO 3 the parameter itself is empty between uses.
    shape = list(getattr(parameter, "ds_shape", parameter.shape))
    dimension = _split_dimension(parameter)
    if dimension is not None:
        shape[dimension] *= topology.tensor_parallel_size
    return tuple(shape)


def snapshot(state: TrainingState, buffers: dict[str, Tensor]) -> None:
    """Copy what this process writes into host memory, by name in its file.

    Buffers are made at the first call and used again: fresh memory would take longer than the copy.
    """
    for name, fragment in state.owned():
        for kind, tensor in fragment.tensors().items():
            key = f"{kind}/{name}"
            if key not in buffers:
                buffers[key] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            buffers[key].copy_(tensor, non_blocking=True)
    buffers["rng/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        buffers["rng/cuda"] = torch.cuda.get_rng_state()
        torch.cuda.synchronize()


def restore_rng(checkpoint: Checkpoint, topology: Topology) -> None:
    """Go on with the random numbers of the process that had this one's place.

    In another layout, or on another kind of device, there is none such; then the draws follow from
    the step, and differ between data-parallel processes as they must.
    """
    manifest = checkpoint.manifest
    layout = (manifest.topology.world_size, manifest.topology.tensor_parallel_size)
    states = {}
    if layout == (topology.launch.world_size, topology.tensor_parallel_size):
        states = {kind: checkpoint.read_saved(topology.launch.rank, f"rng/{kind}") for kind in _RNG}
    cpu, cuda = map(states.get, _RNG)
    if cpu is None or (cuda is None) == torch.cuda.is_available():
        torch.manual_seed(torch.initial_seed() + (manifest.step << 20))
        return
    try:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: a random state that is none ({error}); take another checkpoint"
        ) from None
