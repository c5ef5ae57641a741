"""Time generation and evaluation beside transformers, and print a table.

Run by `make bench`. Both sides open the same model folder in fp32, in turn, each in a fresh process
(`python -m tests.benchmarks.inference SIDE SETTINGS`). They must generate the same greedy tokens
and find the same loss.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.data.tokenizers.folder import SENTENCEPIECE_NAME
from gpt_dist.model import write_model_folder
from tests.benchmarks.rounds import Figures, in_turn, run_side
from tests.models import random_weights, sample_tokenizer

ROUNDS = 2
REPEATS = 2
OURS, PEER = "this project", "transformers"
NEVER = 10**6
"""No token's id: nothing ends a text."""
VOCAB_SIZE = 40_064


@dataclass(frozen=True)
class Work:
    """Model and amount of work, the same for both sides."""

    folder: str
    """Model folder."""
    generates: bool
    prompt_tokens: int = 32
    new_tokens: int = 64
    windows: int = 8
    """Windows of 512 tokens that are scored."""

    def ids(self, *shape: int) -> np.ndarray:
        """Return random tokens."""
        return np.random.default_rng(0).integers(3, VOCAB_SIZE, shape)


@dataclass(frozen=True)
class Side:
    """Functions of one library."""

    generate: Callable[[list[list[int]], int], list[list[int]]]
    """Continues prompts greedily by a number of tokens."""
    score: Callable[[np.ndarray], float]
    """Returns the mean loss of a stream of tokens."""


def ours(work: Work) -> Side:
    """Return this project's functions, as launch/generate.py and launch/evaluate.py call them."""
    from gpt_dist.checkpoint.opened import inspect_model
    from gpt_dist.inference.assemble import assemble
    from gpt_dist.inference.generate import Sampling, generate
    from gpt_dist.inference.perplexity import Texts, score_texts
    from gpt_dist.rendezvous import discover_launch

    opened = inspect_model(Path(work.folder))
    model, _, topology = assemble(opened, discover_launch(os.environ), 1)

    def continue_prompts(prompts: list[list[int]], count: int) -> list[list[int]]:
        made: list[list[int]] = [[] for _ in prompts]
        for row, token in generate(model, prompts, count, Sampling(temperature=0), NEVER):
            made[row].append(token)
        return made

    def score(ids: np.ndarray) -> float:
        texts = Texts([(len(ids), lambda start, stop: ids[start:stop])])
        return score_texts(model, texts, model.config.sequence_length, 8, topology)["loss"]

    return Side(continue_prompts, score)


def peer(work: Work) -> Side:
    """Return transformers' functions."""
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(work.folder, dtype=torch.float32)
    model.to(device).eval()
    model.generation_config.eos_token_id = None
    length = model.config.n_positions

    def continue_prompts(prompts: list[list[int]], count: int) -> list[list[int]]:
        tokens = torch.tensor(prompts, device=device)
        found = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        return found[:, tokens.size(1) :].tolist()

    @torch.no_grad()
    def score(ids: np.ndarray) -> float:
        total = torch.zeros((), dtype=torch.float64, device=device)
        windows = torch.from_numpy(ids[:-1]).view(-1, length).split(8)
        labels = torch.from_numpy(ids[1:]).view(-1, length).split(8)
        for inputs, targets in zip(windows, labels, strict=True):
            logits = model(inputs.to(device)).logits.flatten(0, 1)
            total += F.cross_entropy(logits, targets.flatten().to(device), reduction="sum")
        return float(total) / (len(ids) - 1)

    return Side(continue_prompts, score)


SIDES = {OURS: ours, PEER: peer}


def measure(side: Side, work: Work) -> dict[str, object]:
    """Return the rates of one side in tokens a second, and what it generated and scored."""
    rates: dict[str, float] = {}
    made = []
    for batch_size in (1, 16) if work.generates else ():
        prompts = work.ids(batch_size, work.prompt_tokens).tolist()
        side.generate(prompts, 4)
        seconds, tokens = _time(lambda prompts=prompts: side.generate(prompts, work.new_tokens))
        rates[f"generation, batch {batch_size}"] = batch_size * work.new_tokens / seconds
        made.append(tokens)
    ids = work.ids(work.windows * 512 + 1)
    side.score(ids[: 512 + 1])
    seconds, loss = _time(lambda: side.score(ids))
    rates["evaluation"] = (len(ids) - 1) / seconds
    return {"rates": rates, "tokens": made, "loss": loss}


def _time(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the median seconds of some calls, and what they return."""
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), result


def compare(work: Work, name: str, table: Table) -> None:
    """Add the rows of a model; exit if the sides generate or score differently."""
    results = []

    def run_one(side: str) -> Figures:
        results.append(run_side("inference", side, dataclasses.asdict(work)))
        return results[-1]["rates"]

    sides = {side: partial(run_one, side) for side in SIDES}
    found = in_turn(sides, ROUNDS, name)
    for one in results:
        same_loss = math.isclose(one["loss"], results[0]["loss"], rel_tol=1e-5)
        if one["tokens"] != results[0]["tokens"] or not same_loss:
            sys.exit(f"{name}: the sides differ in tokens or loss")
    for what, rate in found[OURS].items():
        theirs = found[PEER][what]
        table.add_row(f"{what}, {name}", f"{rate:,.0f}", f"{theirs:,.0f}", f"{rate / theirs:.2f}")


def write_model(folder: Path, family: str, num_layers: int = 12) -> None:
    """Write a model folder of GPT-1's width with random weights."""
    config = ResolvedModelConfig(
        num_layers=num_layers,
        hidden_size=768,
        num_heads=12,
        sequence_length=512,
        vocab_size=VOCAB_SIZE,
        family=family,
    )
    weights = random_weights(config)
    files = {SENTENCEPIECE_NAME: sample_tokenizer()}
    write_model_folder(folder, config, weights.__getitem__, files, end_of_text=None)


def main() -> None:
    """Run a side and print its figures, or without arguments print the table."""
    warnings.simplefilter("ignore")
    if sys.argv[1:]:
        side, settings = sys.argv[1:]
        work = Work(**json.loads(settings))
        print(json.dumps(measure(SIDES[side](work), work)))
        return
    table = Table("work, fp32, tokens/s", OURS, PEER, "ours by theirs")
    windows = 256 if torch.cuda.is_available() else Work.windows
    # transformers has no cache for GPT-1.
    for family, name, generates in (("openai_gpt", "GPT-1", False), ("gpt2", "GPT-2", True)):
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / family
            write_model(folder, family)
            compare(Work(str(folder), generates, windows=windows), name, table)
    Console().print(table)


if __name__ == "__main__":
    main()
