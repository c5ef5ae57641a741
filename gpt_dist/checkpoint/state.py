"""The training state of a process as fragments: described, copied, filled and proven."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import deepspeed
import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor, nn

from gpt_dist.checkpoint.fingerprint import (
    KINDS,
    LAYERS,
    Fingerprints,
    Kind,
    Place,
    check_equal,
    fingerprint,
    total,
)
from gpt_dist.checkpoint.format import Checkpoint, FragmentEntry, ParameterEntry, rank_file
from gpt_dist.checkpoint.fragments import Fragment, fragments_of
from gpt_dist.errors import CheckpointError, TrainingError
from gpt_dist.model.parameters import split_dimension
from gpt_dist.topology import Topology, gather, together

_SCALER_KEYS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class TrainingState:
    """The weights, moments and counters of an engine, in fp32, by parameter name."""

    def __init__(self, engine: DeepSpeedEngine, topology: Topology) -> None:
        self._engine = engine
        self._topology = topology
        self._precision = next(engine.module.parameters()).dtype
        self._scaler = getattr(engine.optimizer, "loss_scaler", None)
        self._partitioned = bool(engine.zero_optimization_partition_weights())
        parameters = dict(engine.module.named_parameters())
        self.entries = {name: _entry_of(one, topology) for name, one in parameters.items()}
        """Every parameter as a manifest states it, without fragments."""
        names = {id(parameter): name for name, parameter in parameters.items()}
        self._fragments = {names[id(one.parameter)]: one for one in fragments_of(engine)}
        self.owned = dict(self._share_out())
        """The fragments that this process writes: all together write each element once."""
        self.places = self._places(self.owned)

    def _share_out(self) -> Iterator[tuple[str, Fragment]]:
        """Yield `owned`; what all data-parallel processes hold is shared out among them."""
        topology = self._topology
        for name, fragment in self._fragments.items():
            if not self._is_split(name) and topology.tensor_parallel_rank > 0:
                continue
            if fragment.replicated:
                size, rank = topology.data_parallel_size, topology.data_parallel_rank
                first, last = (fragment.length * part // size for part in (rank, rank + 1))
                offset, start = fragment.offset + first, fragment.start + first
                fragment = replace(fragment, offset=offset, start=start, length=last - first)
            if fragment.length:
                yield name, fragment

    def tensors(self) -> dict[str, Tensor]:
        """Return live flat views of what this process writes, by name in its file."""
        return {
            f"{kind}/{name}": tensor
            for name, fragment in self.owned.items()
            for kind, tensor in fragment.tensors().items()
        }

    def counters(self) -> tuple[int, dict[str, float]]:
        """Return Adam's count of updates, and the state of fp16's loss scaler."""
        fragment = next(iter(self._fragments.values()))
        fragment.tensors()
        steps = int(fragment.optimizer.state[fragment.master]["step"])
        scaler = {key: getattr(self._scaler, key, None) for key in _SCALER_KEYS}
        return steps, {key: value for key, value in scaler.items() if value is not None}

    def load(self, checkpoint: Checkpoint) -> None:
        """Fill the state of all processes from a checkpoint of any layout; collective.

        Raises CheckpointError where the checkpoint is of another model, or the loaded state is not
        what was saved.
        """
        own_shapes = {name: entry.shape for name, entry in self.entries.items()}
        remedy = "take the model section of its configuration"
        checkpoint.check_shapes(own_shapes, "this model wants", remedy)
        places = gather(self._places(self._fragments))
        saved_size = checkpoint.manifest.topology.tensor_parallel_size
        same_shards = saved_size == self._topology.tensor_parallel_size
        saved: Fingerprints = {}
        if self._partitioned:  # forward keeps weights whole that it will need again
            self._engine.optimizer.checkpoint_event_prologue()
        with torch.no_grad():
            for name, parameter in self._engine.module.named_parameters():
                wanted = [of_rank.get(name) for of_rank in places]
                for kind in KINDS:
                    whole = kind == "weight" and not self._partitioned
                    whole = whole or checkpoint.manifest.version == 1  # to be fingerprinted
                    whole = whole or (self._is_split(name) and not same_shards)
                    full = checkpoint.read(kind, name, None if whole else wanted)
                    saved[f"{kind}/{name}"] = checkpoint.fingerprint(kind, name, full)
                    self._fill(parameter, self._fragments.get(name), kind, full)
        for fragment in self._fragments.values():
            step = fragment.optimizer.state[fragment.master]["step"]
            step.fill_(checkpoint.manifest.optimizer_steps)
        if self._partitioned:
            self._engine.optimizer.checkpoint_event_epilogue()
        for key, value in checkpoint.manifest.loss_scaler.items():
            if hasattr(self._scaler, key):
                number_type = type(getattr(self._scaler, key))
                setattr(self._scaler, key, number_type(value))
        found, expected = self.fingerprints(), saved | self.live_fingerprints()
        together(lambda: check_equal(found, expected, checkpoint.refuse_fingerprint))

        def refuse(problem: str) -> CheckpointError:
            return CheckpointError(f"{checkpoint.path}: {problem}; take another checkpoint")

        together(lambda: check_numbers(self.tensors(), refuse))

    def _fill(
        self, parameter: nn.Parameter, fragment: Fragment | None, kind: Kind, full: Tensor
    ) -> None:
        """Fill this process's part of a parameter or moment, and what forward uses of it."""
        shard, dimension = full, split_dimension(parameter)
        if dimension is not None:
            shards = full.chunk(self._topology.tensor_parallel_size, dimension)
            shard = shards[self._topology.tensor_parallel_rank]
        if kind == "weight" and not self._partitioned:
            parameter.copy_(shard)
        if fragment:
            part = shard.flatten()[fragment.offset : fragment.offset + fragment.length]
            fragment.tensors()[kind].copy_(part)
            if kind == "weight" and self._partitioned:
                own: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
                own.view(-1)[: fragment.length].copy_(part)

    def fingerprints(self) -> Fingerprints:
        """Return the fingerprints of the whole state, and of its weights rounded for training."""
        return total(gather(self.fingerprint_own(self.tensors(), rounded=True)))

    def fingerprint_own(self, tensors: Mapping[str, Tensor], rounded: bool) -> Fingerprints:
        """Return the fingerprints of what this process writes, given by name in its file.

        Those of the weights as forward uses them are among them if `rounded`.
        """
        found: Fingerprints = {}
        shards, precision = self._topology.tensor_parallel_size, self._precision
        for name, part in self.places.items():
            shape, split = self.entries[name].shape, self.entries[name].tensor_parallel_dimension
            place = Place.of_shard(shape, split, part.tensor_parallel_rank, shards, part.offset)
            parts = {f"{kind}/{name}": tensors[f"{kind}/{name}"] for kind in KINDS}
            if rounded:
                parts[f"{LAYERS}/{name}"] = tensors[f"weight/{name}"].to(precision).float()
            found |= zip(parts, fingerprint([*parts.values()], place), strict=True)
        return found

    def live_fingerprints(self) -> Fingerprints:
        """Return the fingerprints of the weights that forward uses on the tensor-parallel peers.

        They are computed from the layers alone, so that a wrong list of fragments shows.
        """
        peers = self._topology.tensor_parallel_group
        found: Fingerprints = {}
        for name, parameter in self._engine.module.named_parameters():
            entry = self.entries[name]
            dimension = entry.tensor_parallel_dimension
            place = Place.of_shard(entry.shape, dimension, peers.rank(), peers.size())
            with deepspeed.zero.GatheredParameters([parameter], enabled=self._partitioned):
                if dimension is not None or peers.rank() == 0:
                    (found[f"{LAYERS}/{name}"],) = fingerprint([parameter.float()], place)
        return total(gather(found, peers))

    def check_copies(self) -> None:
        """Compare what several processes hold of the state; collective.

        Raises TrainingError, on all, which names the ranks that differ from most, or all of a tie.
        """
        topology, own = self._topology, {}
        for name, parameter in self._engine.module.named_parameters():
            fragment = self._fragments.get(name)
            tensors = fragment.tensors() if fragment else {}
            if not (self._partitioned or (fragment and fragment.master is parameter)):
                tensors[LAYERS] = parameter.detach()
            shard = topology.tensor_parallel_rank if self._is_split(name) else "any"
            for kind, tensor in tensors.items():
                whole = kind == LAYERS or (fragment and fragment.replicated)
                holder = shard, "any" if whole else topology.data_parallel_rank
                own[f"{kind}/{name}", *holder] = fingerprint([tensor.float()], Place())[0]
        found, tables = [], gather(own)
        for key in {key: None for table in tables for key in table}:
            copies = {rank: table[key] for rank, table in enumerate(tables) if key in table}
            (value, most), *others = Counter(copies.values()).most_common(2)
            if others:
                tied = others[0][1] == most
                odd = [rank for rank, copy in copies.items() if tied or copy != value]
                found.append((len(odd), odd, key[0]))
        if found:
            _, odd, name = min(found)
            raise TrainingError(
                f"{name} on rank(s) {', '.join(map(str, odd))} is not what other processes hold: "
                "memory or arithmetic failed there; start again without that host or device"
            )

    def _places(self, fragments: Mapping[str, Fragment]) -> dict[str, FragmentEntry]:
        """Return the places of fragments, but empty ones, as a manifest states them."""
        file, rank = rank_file(self._topology.launch.rank), self._topology.tensor_parallel_rank
        return {
            name: FragmentEntry(
                file=file,
                tensor_parallel_rank=rank if self._is_split(name) else 0,
                offset=one.offset,
                length=one.length,
            )
            for name, one in fragments.items()
            if one.length
        }

    def _is_split(self, name: str) -> bool:
        return self.entries[name].tensor_parallel_dimension is not None


def check_numbers(tensors: Mapping[str, Tensor], refuse: Callable[[str], Exception]) -> None:
    """Raise an error for numbers that no training gives to weights or moments, given by name."""
    for name, tensor in tensors.items():
        kind, _, _ = name.partition("/")
        low, high = torch.aminmax(tensor) if kind in KINDS else (torch.zeros(()),) * 2
        if not (low.isfinite() and high.isfinite()):  # NaN where there is one
            raise refuse(f"{name} holds values that are not finite")
        if kind == "exp_avg_sq" and low < 0:
            raise refuse(f"{name} holds values that are negative")


def _entry_of(parameter: nn.Parameter, topology: Topology) -> ParameterEntry:
    """Return the entry of a parameter, without fragments."""
    # Under ZeRO 3 the parameter itself is empty between uses.
    shape = list(getattr(parameter, "ds_shape", parameter.shape))
    dimension = split_dimension(parameter)
    if dimension is not None:
        shape[dimension] *= topology.tensor_parallel_size
    return ParameterEntry(shape=tuple(shape), tensor_parallel_dimension=dimension, fragments=())


def snapshot(
    state: TrainingState, buffers: dict[str, Tensor], stands_still: bool
) -> dict[str, Tensor]:
    """Return what this process writes, in host memory, by name in its file.

    Args:
        state: The state.
        buffers: Buffers for the copies, empty at the first call. They are used again, because fresh
            memory would take longer than the copy.
        stands_still: Whether nothing changes the state until it is written. Then it is copied only
            from a GPU.
    """
    tensors = state.tensors()
    for name, tensor in tensors.items():
        if stands_still and not tensor.is_cuda:
            continue
        if name not in buffers:
            buffers[name] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        tensors[name] = buffers[name].copy_(tensor, non_blocking=True)
    tensors["rng/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
        torch.cuda.synchronize()
    return tensors


def restore_rng(checkpoint: Checkpoint, topology: Topology) -> None:
    """Restore the random state of the process that had this one's place.

    In another layout, or on another kind of device, no process had this place. Then the draws
    follow from the step, and differ between data-parallel processes as they must.
    """
    manifest, ranks = checkpoint.manifest, range(topology.launch.world_size)
    layout = (manifest.topology.world_size, manifest.topology.tensor_parallel_size)
    cpu = cuda = None
    if layout == (len(ranks), topology.tensor_parallel_size):
        # Each process reads those of all: reading shared files is collective.
        names = ("rng/cpu", "rng/cuda")
        found = [[checkpoint.read_saved(rank, name) for name in names] for rank in ranks]
        cpu, cuda = found[topology.launch.rank]
    if cpu is None or (cuda is None) == torch.cuda.is_available():
        torch.manual_seed(torch.initial_seed() + (manifest.step << 20))
        return
    try:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: its random state cannot be set ({error}); take another checkpoint"
        ) from None
