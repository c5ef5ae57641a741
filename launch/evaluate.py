"""Print the perplexity of a model on held-out tokens or text files, or its score in a task.

Text is scored as it is; text that was not cleaned like the training text scores worse. In a task
the head of a fine-tuned model decides, or, with --zero-shot, the likelihood of the answers; the
scores are a line of JSON for each split.
"""

import json
import os
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import Any

from gpt_dist import command
from gpt_dist.command import add_tensor_parallel_size, model_parser, positive
from gpt_dist.config.file import load_config
from gpt_dist.errors import ConfigError
from gpt_dist.progress import show_progress
from gpt_dist.rendezvous import Launch, discover_launch

EXAMPLE = "torchrun --nproc-per-node 2 launch/evaluate.py model --tokens tokens --stride 256"


def parse() -> Namespace:
    parser = model_parser(__doc__ or "", EXAMPLE)
    add_what_is_scored(parser)
    parser.add_argument(
        "--stride",
        type=positive,
        metavar="N",
        help="tokens from one window to the next (default: the model's whole context); less gives "
        "each token more context, and takes longer",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=8,
        metavar="N",
        help="windows at once (default 8); of a task, as much text",
    )
    add_tensor_parallel_size(parser)
    arguments = parser.parse_args()
    if arguments.stride and (arguments.zero_shot or arguments.task):
        parser.error("--stride goes with --tokens or --text")
    if arguments.data and not arguments.zero_shot:
        parser.error("--data goes with --zero-shot")
    if arguments.split and not (arguments.zero_shot or arguments.task):
        parser.error("--split goes with --task or --zero-shot")
    return arguments


def add_what_is_scored(parser: ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--tokens", type=Path, metavar="DIR", help="a token folder: its validation split"
    )
    source.add_argument("--text", type=Path, nargs="+", metavar="FILE", help="UTF-8 text files")
    source.add_argument(
        "--task", type=Path, metavar="DIR", help="files of the task that MODEL was fine-tuned on"
    )
    source.add_argument(
        "--zero-shot",
        type=Path,
        metavar="CONFIG.yaml",
        help="a fine-tuning task of multiple choice, or one with task.zero_shot",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="the task's files (default: its data.path)"
    )
    parser.add_argument(
        "--split", metavar="NAME", help="of the task (default: every one named dev or dev_…)"
    )


def main(arguments: Namespace) -> None:
    launch = discover_launch(os.environ)

    from gpt_dist.topology import disconnect

    if arguments.zero_shot:
        solve_task(arguments, launch)
    elif arguments.task:
        judge_task(arguments, launch)
    else:
        measure_perplexity(arguments, launch)
    disconnect()


def measure_perplexity(arguments: Namespace, launch: Launch) -> None:
    from gpt_dist.checkpoint.opened import inspect_model
    from gpt_dist.inference.assemble import assemble
    from gpt_dist.inference.perplexity import (
        choose_stride,
        open_texts,
        open_validation_split,
        score_texts,
    )

    opened = inspect_model(arguments.model)
    stride, size = choose_stride(opened, arguments.stride), arguments.batch_size
    if arguments.tokens:
        texts = open_validation_split(arguments.tokens, opened)
    else:
        texts = open_texts(arguments.text, opened)
    model, _, topology = assemble(opened, launch, arguments.tensor_parallel_size)
    with show_progress(topology.is_main) as report:
        scores = score_texts(model, texts, stride, size, topology, report)
    if topology.is_main:
        print(json.dumps(scores, indent=2), flush=True)


def judge_task(arguments: Namespace, launch: Launch) -> None:
    from gpt_dist.finetune.task_model import evaluate_task
    from gpt_dist.inference.assemble import assemble

    what = arguments.model, arguments.task, arguments.split
    size = arguments.tensor_parallel_size
    load = partial(assemble, launch=launch, tensor_parallel_size=size)
    with show_progress(launch.rank == 0) as report:
        rows = evaluate_task(*what, load, arguments.batch_size, report)
    print_rows(rows, launch)


def solve_task(arguments: Namespace, launch: Launch) -> None:
    from gpt_dist.checkpoint.opened import inspect_model
    from gpt_dist.finetune.zero_shot import evaluate_zero_shot
    from gpt_dist.inference.assemble import assemble

    config = load_config(arguments.zero_shot, [])
    if config.task is None:
        raise ConfigError(f"{arguments.zero_shot}: has no task; see configs/finetune/")
    if not (arguments.data or config.data.path):
        raise ConfigError(f"--data: not given, and {arguments.zero_shot} has no data.path")
    folder = arguments.data or Path(config.data.folders[0].path)
    what = config.task, folder, arguments.split, inspect_model(arguments.model)
    size = arguments.tensor_parallel_size
    load = partial(assemble, launch=launch, tensor_parallel_size=size)
    with show_progress(launch.rank == 0) as report:
        rows = evaluate_zero_shot(*what, load, arguments.batch_size, report)
    print_rows(rows, launch)


def print_rows(rows: list[dict[str, Any]], launch: Launch) -> None:
    if launch.rank == 0:
        for row in rows:
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    command.run(parse, main)
