"""Continue prompts with a model: sample the text, or at temperature 0 take the likeliest token.

A text ends where the model ends it, after --max-tokens, or when the model's context is full.
"""

import os
from argparse import Namespace

from gpt_dist import command
from gpt_dist.command import (
    add_tensor_parallel_size,
    model_parser,
    positive,
    probability,
    seed,
    temperature,
)
from gpt_dist.rendezvous import discover_launch

EXAMPLE = 'python launch/generate.py model --prompt "it was a dark" "once upon" --top-k 40'


def parse() -> Namespace:
    parser = model_parser(__doc__ or "", EXAMPLE)
    parser.add_argument("--prompt", nargs="+", required=True, metavar="TEXT", help="to continue")
    parser.add_argument(
        "--max-tokens", type=positive, default=100, metavar="N", help="new tokens (default 100)"
    )
    parser.add_argument(
        "--temperature",
        type=temperature,
        default=1.0,
        metavar="T",
        help="above 1 more varied, below 1 less, 0 always the likeliest token (default 1)",
    )
    parser.add_argument(
        "--top-k", type=positive, metavar="K", help="draw from the K likeliest tokens only"
    )
    parser.add_argument(
        "--top-p",
        type=probability,
        metavar="P",
        help="draw from the likeliest tokens that together reach probability P only",
    )
    parser.add_argument(
        "--seed", type=seed, default=42, metavar="S", help="of the draws (default 42)"
    )
    add_tensor_parallel_size(parser)
    return parser.parse_args()


def main(arguments: Namespace) -> None:
    launch = discover_launch(os.environ)

    from gpt_dist.checkpoint.opened import inspect_model
    from gpt_dist.inference.assemble import assemble
    from gpt_dist.inference.generate import Sampling, continue_texts, encode_prompts
    from gpt_dist.topology import disconnect

    opened = inspect_model(arguments.model)
    prompts = encode_prompts(arguments.prompt, opened)
    model, _, topology = assemble(opened, launch, arguments.tensor_parallel_size)
    sampling = Sampling(
        arguments.temperature, arguments.top_k, arguments.top_p, seed=arguments.seed
    )
    for text in continue_texts(
        model, arguments.prompt, prompts, arguments.max_tokens, sampling, opened.tokenizer
    ):
        if topology.is_main:
            print(text, end="", flush=True)
    disconnect()


if __name__ == "__main__":
    command.run(parse, main)
