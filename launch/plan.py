"""Predict memory and time of a pre-training run for each legal layout, without its GPUs.

The real training step is traced on tensors without memory. Keys of the layout that CONFIG.yaml
leaves out are varied: tensor-parallel size, ZeRO stage, micro-batch size, activation checkpointing.
"""

import os
import sys
from argparse import Namespace

from gpt_dist import command
from gpt_dist.config import Config
from gpt_dist.config.file import load_config
from gpt_dist.progress import show_progress
from planning.gpus import CPU, GPUS, INTERCONNECTS

EXAMPLE = "python launch/plan.py configs/pretrain/gpt-13b.yaml --gpus 64 --gpu H100"
PIPE_WIDTH = 200


def parse() -> tuple[Config, Namespace]:
    parser = command.config_parser(__doc__ or "", EXAMPLE)
    parser.add_argument(
        "--gpus", type=command.positive, default=8, metavar="N", help="processes (default 8)"
    )
    parser.add_argument(
        "--gpu",
        choices=[*GPUS, CPU],
        default="H100",
        help="their kind (default H100); cpu: this machine, where each operation is tried out",
    )
    parser.add_argument(
        "--gpus-per-host", type=command.positive, default=8, metavar="N", help="default 8"
    )
    parser.add_argument(
        "--interconnect",
        choices=INTERCONNECTS,
        default="ib400",
        help="network of each GPU to other hosts (default ib400)",
    )
    parser.add_argument(
        "--all", action="store_true", help="vary the keys that CONFIG.yaml gives too; minutes"
    )
    arguments = parser.parse_intermixed_args()
    if arguments.gpus > arguments.gpus_per_host and arguments.gpus % arguments.gpus_per_host:
        parser.error(f"--gpus: {arguments.gpus} is no multiple of --gpus-per-host")
    return load_config(arguments.config, arguments.overrides), arguments


def main(given: tuple[Config, Namespace]) -> None:
    config, arguments = given
    # The trace is of tensors on the CPU, also where there is a GPU.
    os.environ["DS_ACCELERATOR"] = "cpu"

    from rich.console import Console

    from planning.layouts import check_plannable, describe_data, legal_layouts
    from planning.machines import find_machine
    from planning.report import show, start_command
    from planning.search import search

    check_plannable(config)
    vocab_size, samples, source = describe_data(config)
    per_host = min(arguments.gpus_per_host, arguments.gpus)
    layouts = legal_layouts(config, arguments.gpus, per_host, vocab_size, samples, arguments.all)
    machine = find_machine(arguments.gpu, arguments.gpus, per_host, arguments.interconnect)
    with show_progress() as report:
        ranked = search(list(layouts), arguments.gpus, machine, report)
    knows_steps = bool(samples or config.training.max_steps)
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    console = Console(highlight=False, markup=False, width=width)
    show(console, ranked, knows_steps, f"vocabulary {vocab_size:,}, {source}")
    print("start with:")
    print(start_command(ranked[0], str(arguments.config), arguments.overrides))


if __name__ == "__main__":
    command.run(parse, main)
