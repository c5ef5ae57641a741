"""Turn a sharded checkpoint into a model folder that `transformers` opens; needs no GPU."""

from argparse import Namespace
from pathlib import Path

from gpt_dist import command
from gpt_dist.errors import ConfigError
from gpt_dist.progress import show_progress

EXAMPLE = "python launch/consolidate.py runs/first/checkpoints/step-00000500 --output model"


def parse() -> Namespace:
    parser = command.argument_parser(__doc__ or "", EXAMPLE)
    parser.add_argument(
        "checkpoint",
        type=command.existing_model,
        help="a checkpoint, or the directory of a run for its newest one",
    )
    parser.add_argument("--output", type=Path, required=True, help="the new model folder")
    return parser.parse_args()


def main(arguments: Namespace) -> None:
    from gpt_dist.checkpoint.format import Checkpoint
    from gpt_dist.checkpoint.opened import model_path, open_model, save_model
    from gpt_dist.finetune.task_model import save_task_model
    from gpt_dist.model import num_parameters

    best = model_path(arguments.checkpoint)
    if best != arguments.checkpoint:
        raise ConfigError(
            f"{arguments.checkpoint}: the best weights of this finished fine-tuning run are the "
            f"model folder {best} already; for others give one of its checkpoints"
        )
    opened = open_model(arguments.checkpoint)
    with show_progress() as report:
        if opened.fine_tuned and opened.step is not None:
            save_task_model(Checkpoint(opened.tokenizer_folder), arguments.output, report)
        else:
            save_model(opened, arguments.output, report)
    parameters = num_parameters(opened.config)
    print(f"{arguments.output}: {parameters:,} parameters of {opened.tokenizer_folder}")


if __name__ == "__main__":
    command.run(parse, main)
