"""Fine-tune a model on a task, under deepspeed, torchrun, mpirun, srun or plain python."""

import os
from functools import partial

from gpt_dist import command
from gpt_dist.config import Config
from gpt_dist.config.file import load_config
from gpt_dist.rendezvous import discover_launch

EXAMPLE = (
    "deepspeed --num_gpus 2 launch/finetune.py configs/finetune/sst2.yaml "
    "model.source=runs/first data.path=data/SST-2"
)


def parse() -> Config:
    return load_config(*command.parse_config_arguments(__doc__ or "", EXAMPLE))


def main(given: Config) -> None:
    launch = discover_launch(os.environ)

    from gpt_dist.finetune.run import check, finetune
    from gpt_dist.train.directory import train_alone

    inputs = check(given, launch)
    train_alone(inputs.config, launch, partial(finetune, inputs))


if __name__ == "__main__":
    command.run(parse, main)
