"""Time fine-tuning on short texts beside transformers padded to 512 tokens, and print a table.

Run by `make bench`. All sides start from the same model folder, with the same precision, and the
same examples in the same batches. This project trains through launch/finetune.py without the
language-model loss, which the others do not compute. Each of these is a process of its own:
`python -m tests.benchmarks.finetuning SIDE SETTINGS`.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from gpt_dist.config.file import load_config
from gpt_dist.data.batches import TaskBatch, micro_batches
from gpt_dist.data.tasks.examples import TaskSamples, encode_split
from gpt_dist.data.tasks.reading import read_split
from gpt_dist.data.tasks.transforms import Transformation
from gpt_dist.data.tokenizers.folder import open_tokenizer
from tests.benchmarks.inference import write_model
from tests.benchmarks.rounds import Figures, fast_precision, in_turn, run, run_side
from tests.models import sample_texts

CONFIG = Path("configs/finetune/sst2.yaml")
ROUNDS = 2
WARM_UP_STEPS = 2
EXAMPLES = 2000
WORDS = (3, 20)
"""Fewest and most words of a text; SST-2's training texts have 9 on average."""
LEARNING_RATE = 6.25e-5
LENGTH = 512
OURS, PADDED, LONGEST = "this project", "padded to 512", "padded to the longest of a batch"


@dataclass(frozen=True)
class Work:
    """Model, data and batches, the same for every side."""

    model: str
    """Model folder."""
    data: str
    """Folder of the task's files."""
    batch_size: int
    steps: int

    def batches(self) -> Iterator[TaskBatch[Tensor]]:
        """Yield the batch of each step, in this project's order."""
        task = load_config(CONFIG, []).task
        transformation = Transformation(task.form, open_tokenizer(Path(self.model)), LENGTH)
        split = encode_split(read_split(Path(self.data), task, "train"), transformation)
        samples = TaskSamples(split, self.batch_size, seed=0)
        for numbers in micro_batches(0, self.steps * self.batch_size, self.batch_size, 1, 0):
            batch = samples.batch(numbers)
            yield TaskBatch(
                *(torch.as_tensor(getattr(batch, f.name)) for f in dataclasses.fields(batch))
            )


def write_texts(folder: Path) -> None:
    """Write a task of random words of the sample books, with the columns of SST-2."""
    words = " ".join(sample_texts()).lower().split()
    draws = random.Random(0)
    folder.mkdir()
    for name, count in (("train.tsv", EXAMPLES), ("dev.tsv", 32)):
        texts = (" ".join(draws.choices(words, k=draws.randint(*WORDS))) for _ in range(count))
        rows = (f"{text}\t{number % 2}\n" for number, text in enumerate(texts))
        (folder / name).write_text("sentence\tlabel\n" + "".join(rows), encoding="utf-8")


def ours(work: Work, directory: Path) -> Figures:
    """Fine-tune through launch/finetune.py."""
    settings = {
        "run.directory": directory / "run",
        "run.seed": 0,
        "data.path": work.data,
        "model.source": work.model,
        "objective.auxiliary_weight": 0,
        "optimizer.learning_rate": LEARNING_RATE,
        "training.precision": fast_precision(),
        "training.epochs": "null",
        "training.max_steps": work.steps,
        "training.global_batch_size": work.batch_size,
        "training.resume": "never",
        "validation.max_samples": 1,
        "logging.interval": 1,
    }
    arguments = (f"{key}={value}" for key, value in settings.items())
    run([sys.executable, "launch/finetune.py", str(CONFIG), *arguments])
    lines = (directory / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return rates(work, [row["step_seconds"] for row in rows if "step_seconds" in row])


def rates(work: Work, seconds: list[float]) -> Figures:
    """Return the sequences a second of the counted steps."""
    counted = seconds[WARM_UP_STEPS:]
    return {"sequences": work.batch_size * len(counted) / sum(counted)}


def transformers_seconds(work: Work, pads: bool) -> list[float]:
    """Return the seconds of each step of a plain loop around transformers' GPT-1."""
    from transformers import OpenAIGPTModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = OpenAIGPTModel.from_pretrained(work.model).to(device).train()
    head = nn.Sequential(nn.Dropout(0.1), nn.Linear(model.config.n_embd, 2)).to(device)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)
    seconds = []
    for batch in work.batches():
        begin = time.perf_counter()
        tokens = F.pad(batch.tokens, (0, LENGTH - batch.tokens.size(1) if pads else 0)).to(device)
        rows = torch.arange(len(tokens), device=device)
        with torch.autocast(device, torch.bfloat16, enabled=fast_precision() == "bf16"):
            hidden = model(tokens).last_hidden_state[rows, batch.ends.to(device)]
            loss = F.cross_entropy(head(hidden), batch.targets.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.perf_counter() - begin)
    return seconds


def main() -> None:
    """Run a side and print the seconds of its steps, or without arguments print the table."""
    warnings.simplefilter("ignore")
    if sys.argv[1:]:
        side, settings = sys.argv[1:]
        print(json.dumps(transformers_seconds(Work(**json.loads(settings)), side == PADDED)))
        return
    has_gpu = torch.cuda.is_available()
    num_layers, batch_size, steps = (12, 32, 40) if has_gpu else (4, 8, 6)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", "openai_gpt", num_layers)
        write_texts(folder / "task")
        work = Work(str(folder / "model"), str(folder / "task"), batch_size, steps)

        def peer(side: str) -> Figures:
            return rates(work, run_side("finetuning", side, dataclasses.asdict(work)))

        sides = {
            OURS: partial(ours, work, folder),
            **{s: partial(peer, s) for s in (PADDED, LONGEST)},
        }
        found = in_turn(sides, ROUNDS, "fine-tuning")
    table = Table(f"fine-tuning, {fast_precision()}", "sequences/s", "ours by theirs")
    for side, figures in found.items():
        ratio = found[OURS]["sequences"] / figures["sequences"]
        table.add_row(side, f"{figures['sequences']:,.1f}", f"{ratio:.2f}")
    print(f"{num_layers} layers x 768, {batch_size} texts a step")
    Console().print(table)


if __name__ == "__main__":
    main()
