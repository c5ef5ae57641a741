"""Make a model folder of a Hugging Face folder of a known family, or of the released GPT-1."""

from argparse import Namespace
from pathlib import Path

from gpt_dist import command
from gpt_dist.command import model_parser
from gpt_dist.progress import show_progress

EXAMPLE = "python launch/import_model.py downloads/openai-gpt --output gpt1"


def parse() -> Namespace:
    parser = model_parser(__doc__ or "", EXAMPLE)
    parser.add_argument("--output", type=Path, required=True, help="the new folder")
    return parser.parse_args()


def main(arguments: Namespace) -> None:
    from gpt_dist.checkpoint.opened import open_model, save_model
    from gpt_dist.model import num_parameters

    opened = open_model(arguments.model)
    with show_progress() as report:
        save_model(opened, arguments.output, report)
    print(f"{arguments.output}: {num_parameters(opened.config):,} parameters of {arguments.model}")


if __name__ == "__main__":
    command.run(parse, main)
