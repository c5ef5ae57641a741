"""Pre-train a GPT on a token folder, under deepspeed, torchrun, mpirun, srun or plain python."""

import os
from functools import partial

from gpt_dist import command
from gpt_dist.config import Config
from gpt_dist.config.file import load_config
from gpt_dist.rendezvous import discover_launch

EXAMPLE = (
    "deepspeed --num_gpus 2 launch/pretrain.py configs/pretrain/tiny.yaml data.path=tokens "
    "parallel.tensor_parallel_size=2"
)


def parse() -> Config:
    return load_config(*command.parse_config_arguments(__doc__ or "", EXAMPLE))


def main(given: Config) -> None:
    launch = discover_launch(os.environ)

    from gpt_dist.train.directory import train_alone
    from gpt_dist.train.pretrain import check, pretrain

    inputs = check(given, launch)
    train_alone(inputs.config, launch, partial(pretrain, inputs))


if __name__ == "__main__":
    command.run(parse, main)
