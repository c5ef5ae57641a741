"""Fine-tune a model on a task, under deepspeed, torchrun, mpirun, srun or plain python."""

from collections.abc import Callable
from functools import partial
from typing import Any

from gpt_dist import command
from gpt_dist.config import Config, ResolvedConfig
from gpt_dist.rendezvous import Launch

EXAMPLE = (
    "deepspeed --num_gpus 2 launch/finetune.py configs/finetune/sst2.yaml "
    "model.source=runs/first data.path=data/SST-2"
)


def prepare(given: Config, launch: Launch) -> tuple[ResolvedConfig, Callable[[Any], None]]:
    from gpt_dist.finetune.run import check, finetune

    inputs = check(given, launch)
    return inputs.config, partial(finetune, inputs)


if __name__ == "__main__":
    command.train(__doc__ or "", EXAMPLE, prepare, fine_tuning=True)
