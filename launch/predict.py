"""Predict with a fine-tuned model: lines of JSON in, lines of JSON with probabilities out."""

import json
import os
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

from gpt_dist import command
from gpt_dist.command import add_tensor_parallel_size, model_parser, positive
from gpt_dist.errors import ConfigError
from gpt_dist.progress import show_progress
from gpt_dist.rendezvous import discover_launch

EXAMPLE = (
    """echo '{"text": "a quiet and moving film"}' | python launch/predict.py runs/sst2/model"""
)
STANDARD_INPUT = Path("/dev/stdin")


def parse() -> Namespace:
    parser = model_parser(__doc__ or "", EXAMPLE, "the `model` folder of a fine-tuning run")
    parser.add_argument(
        "input",
        type=_input,
        nargs="?",
        default=STANDARD_INPUT,
        metavar="FILE",
        help="an object a line: text; premise, hypothesis; a, b; or context, question, choices, as "
        "the task has it (default, and -: standard input)",
    )
    parser.add_argument(
        "--batch-size", type=positive, default=16, metavar="N", help="examples at once (default 16)"
    )
    add_tensor_parallel_size(parser)
    return parser.parse_args()


def main(arguments: Namespace) -> None:
    launch = discover_launch(os.environ)
    if arguments.input == STANDARD_INPUT and launch.world_size > 1:
        raise ConfigError("FILE: several processes cannot share the standard input; give a file")

    from gpt_dist.data.tasks.examples import encode_split
    from gpt_dist.data.tasks.reading import read_unlabelled
    from gpt_dist.finetune.predict import describe
    from gpt_dist.finetune.task_model import load_task_model, open_task_model
    from gpt_dist.inference.assemble import assemble
    from gpt_dist.topology import disconnect

    opened = open_task_model(arguments.model)
    examples = read_unlabelled(arguments.input, opened.task)
    split = encode_split(examples, opened.transformation)
    size = arguments.tensor_parallel_size
    load = partial(assemble, launch=launch, tensor_parallel_size=size)
    with show_progress(launch.rank == 0) as report:
        evaluator = load_task_model(opened, load, arguments.batch_size, report)
        scores = evaluator.judge(split).scores
    if launch.rank == 0:
        for prediction in describe(opened.task, scores):
            print(json.dumps(prediction))
        print(f"{len(scores)} predictions by {arguments.model}", file=sys.stderr)
    disconnect()


def _input(text: str) -> Path:
    return STANDARD_INPUT if text == "-" else Path(text)


if __name__ == "__main__":
    command.run(parse, main)
