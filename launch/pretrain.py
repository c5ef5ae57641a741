"""Pre-train a GPT on a token folder, under deepspeed, torchrun, mpirun, srun or plain python."""

from collections.abc import Callable
from functools import partial
from typing import Any

from gpt_dist import command
from gpt_dist.config import Config, ResolvedConfig
from gpt_dist.rendezvous import Launch

EXAMPLE = (
    "deepspeed --num_gpus 2 launch/pretrain.py configs/pretrain/tiny.yaml data.path=tokens "
    "parallel.tensor_parallel_size=2"
)


def prepare(given: Config, launch: Launch) -> tuple[ResolvedConfig, Callable[[Any], None]]:
    from gpt_dist.train.pretrain import check, pretrain

    inputs = check(given, launch)
    return inputs.config, partial(pretrain, inputs)


if __name__ == "__main__":
    command.train(__doc__ or "", EXAMPLE, prepare, fine_tuning=False)
