"""Spread a model over the launched processes."""

from collections.abc import Callable

from gpt_dist.checkpoint.opened import OpenedModel, share_model
from gpt_dist.errors import ConfigError
from gpt_dist.model import GPT, load_model
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import Topology, connect, form_groups

Load = Callable[[OpenedModel], tuple[GPT, OpenedModel, Topology]]
"""Calls `assemble` with the rest of its arguments."""


def assemble(
    opened: OpenedModel, launch: Launch, tensor_parallel_size: int
) -> tuple[GPT, OpenedModel, Topology]:
    """Connect the processes and load an inspected model for inference, each holding its slice.

    Also returns the model as `share_model` opens it. Raises ConfigError where it cannot be divided
    so, and ModelError or CheckpointError where it is damaged.
    """
    config = opened.config
    key, size, *_ = config.indivisible(tensor_parallel_size) or ("num_heads", config.num_heads)
    for number, what in (
        (launch.world_size, "processes launched"),
        (size, key),
        (config.padded_vocab_size, "rows of the padded vocabulary"),
    ):
        if number % tensor_parallel_size:
            raise ConfigError(
                f"--tensor-parallel-size: {tensor_parallel_size} does not divide {what}: {number}; "
                "choose a divisor"
            )
    topology = form_groups(launch, connect(launch), tensor_parallel_size)
    opened = share_model(opened, topology)
    model = load_model(opened.tensors, config, topology.tensor_parallel_group)
    opened.files.release()
    return model.to(topology.device).eval(), opened, topology
