"""Print the perplexity of a model on held-out tokens or text files, under any launcher.

Text is scored as it is: one that was not cleaned like the training text scores worse.
"""

import json
import os
from argparse import Namespace
from pathlib import Path

from gpt_dist import command
from gpt_dist.inference.arguments import add_tensor_parallel_size, model_parser, positive
from gpt_dist.inference.evaluate import (
    Texts,
    choose_stride,
    open_validation_split,
    score_texts,
    score_tokens,
)
from gpt_dist.inference.model import assemble, open_model
from gpt_dist.rendezvous import discover_launch
from gpt_dist.topology import disconnect

EXAMPLE = "torchrun --nproc-per-node 2 launch/evaluate.py model --tokens tokens --stride 256"


def parse() -> Namespace:
    parser = model_parser(__doc__ or "", EXAMPLE)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--tokens", type=Path, metavar="DIR", help="a token folder: its validation split"
    )
    source.add_argument("--text", type=Path, nargs="+", metavar="FILE", help="UTF-8 text files")
    parser.add_argument(
        "--stride",
        type=positive,
        metavar="N",
        help="tokens from one window to the next (default: the model's whole context); less gives "
        "each token more context, and takes longer",
    )
    parser.add_argument(
        "--batch-size", type=positive, default=8, metavar="N", help="windows at once (default 8)"
    )
    add_tensor_parallel_size(parser)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    launch = discover_launch(os.environ)
    opened = open_model(arguments.model)
    stride, size = choose_stride(opened, arguments.stride), arguments.batch_size
    if arguments.tokens:
        stream = open_validation_split(arguments.tokens, opened)
        model, topology = assemble(opened, launch, arguments.tensor_parallel_size)
        scores = score_tokens(model, stream, stride, size, topology)
    else:
        texts = Texts(arguments.text, opened)
        model, topology = assemble(opened, launch, arguments.tensor_parallel_size)
        scores = score_texts(model, texts, stride, size, topology)
    if topology.is_main:
        print(json.dumps(scores, indent=2), flush=True)
    disconnect()


if __name__ == "__main__":
    command.run(main)
