"""Operations of a traced step, and the storages that are live while they run."""

import weakref
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

KINDS = ("weights", "masters", "moments", "gradients", "activations", "logits", "buffers")
"""Uses of the bytes of a process; buffers are those of communication, start and update."""

_UNWRITTEN = ("empty", "new_empty", "lift_fresh", "_local_scalar_dense", "set_")


@dataclass(frozen=True)
class TensorLike:
    """Shape and layout of a tensor that an operation was given."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorLike":
        """Describe a tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype)


@dataclass(frozen=True)
class Operation:
    """One kernel or collective."""

    function: Any
    arguments: tuple[Any, ...] = field(compare=False)
    """Its arguments, with a TensorLike for each tensor."""
    key: str
    """The arguments as text, by which equal operations are known."""
    flops: float
    bytes: int
    """Bytes that are read and written."""
    dtype: torch.dtype | None
    """Of a matrix product."""
    ranks: tuple[int, ...] = ()
    """Of a collective, whose largest tensor has `bytes`."""


class Recorder(TorchDispatchMode):
    """Records operations, and the live bytes of each kind after them, by segment of a step.

    A collective is recorded and not carried out. Where the host waits for a value, which a fake
    tensor does not have, this is recorded as `aten._local_scalar_dense`, and it gets 1.0 or 0.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.segments: dict[Any, list[tuple[Operation, tuple[int, ...]]]] = defaultdict(list)
        self.segment: Any = "start"
        self.kind = "buffers"
        """Kind of what is allocated now."""
        self._live: dict[Any, tuple[str, int]] = {}
        self._sizes = dict.fromkeys(KINDS, 0)

    def tag(self, tensors: Any, kind: str, among: tuple[str, ...] = KINDS) -> None:
        """Say what the storages of tensors are for, where they were for one of `among` so far."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                key = weakref.ref(storage, self._free)
                before, size = self._live.get(key, (kind, 0))
                if before in among:
                    self._sizes[before] -= size
                    self._live[key] = kind, storage.nbytes()
                    self._sizes[kind] += storage.nbytes()

    def _free(self, key: Any) -> None:
        kind, size = self._live.pop(key)
        self._sizes[kind] -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation on fake or real tensors."""
        kwargs = kwargs or {}
        if func.namespace == "c10d":
            return self._communicate(func, args)
        try:
            result = func(*args, **kwargs)
        except DataDependentOutputException:
            self._note(_describe(func, args, kwargs, None))
            return 1.0 if args[0].is_floating_point() else 0
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                key = weakref.ref(tensor.untyped_storage(), self._free)
                if key not in self._live:
                    self.tag(tensor, self.kind)
        if not (func.is_view or func.namespace == "prim" or func.__name__.startswith(_UNWRITTEN)):
            self._note(_describe(func, args, kwargs, result))
        return result

    def _communicate(self, func: Any, args: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        self.tag(tensors, "buffers", among=("activations", "logits"))
        groups = [x for x in args if isinstance(x, torch.ScriptObject)]
        ranks = tuple(dist.get_process_group_ranks(dist.ProcessGroup.unbox(groups[0])))
        lists = [[x for x in tree_leaves(part) if isinstance(x, Tensor)] for part in args]
        size = max(sum(x.numel() * x.itemsize for x in part) for part in lists)
        self._note(Operation(func, (), f"{size}", 0.0, size, None, ranks))
        work = FakeWork().boxed()
        return (args[0], work) if len(func._schema.returns) == 2 else work

    def _note(self, operation: Operation) -> None:
        self.segments[self.segment].append((operation, tuple(self._sizes.values())))


def _describe(func: Any, args: Any, kwargs: Any, result: Any) -> Operation:
    count = flop_registry.get(func._overloadpacket)
    tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
    arguments = tree_map_only(Tensor, TensorLike.of, (args, kwargs))
    return Operation(
        func,
        arguments,
        repr(arguments),
        float(count(*args, **kwargs, out_val=result)) if count else 0.0,
        sum(x.numel() * x.itemsize for x in tensors),
        tensors[0].dtype if count else None,
    )
