"""Train one model by one library for a few steps, and print the times of the steps as JSON.

Run as a program, one side a process: `python -m tests.benchmarks.training_sides SIDE SETTINGS`,
where SETTINGS is a `Work` in JSON. All sides see the same batches.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

from gpt_dist.data.batches import micro_batches
from gpt_dist.data.tokens.folder import TokenFolder
from gpt_dist.data.tokens.windows import ShuffledWindows, Windows
from gpt_dist.memory import keep_freed_memory, peak_memory

LEARNING_RATE = 1e-4
BETAS = (0.9, 0.999)
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0

Step = Callable[[Tensor, Tensor], None]
"""Trains on tokens and labels [B, T]."""
MakeStep = Callable[["Work"], Step]


@dataclass(frozen=True)
class Work:
    """Model, batch and precision, the same for every side."""

    tokens: str
    """Token folder."""
    num_layers: int
    hidden_size: int
    num_heads: int
    vocab_size: int
    """Size of the vocabulary with its padding."""
    sequence_length: int
    batch_size: int
    steps: int
    precision: str
    dropout: float = 0.0

    @property
    def device(self) -> str:
        """Return the kind of device to train on."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the tokens [B, T] and labels [B, T] of each step, in this project's order."""
        windows = Windows(TokenFolder(Path(self.tokens)).split("train"), self.sequence_length)
        samples = ShuffledWindows(windows, seed=0)
        for numbers in micro_batches(0, self.steps * self.batch_size, self.batch_size, 1, 0):
            batch = samples.batch(numbers)
            tokens, labels = (
                torch.as_tensor(np.asarray(part, np.int64)).to(self.device)
                for part in (batch.tokens, batch.labels)
            )
            yield tokens, labels

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which the peers compute the loss."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device, torch.bfloat16)


class PlainAttention(nn.Module):
    """Causal self-attention of a plain GPT-2."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.heads, self.dropout = work.num_heads, work.dropout
        self.fused = nn.Linear(work.hidden_size, 3 * work.hidden_size)
        self.out = nn.Linear(work.hidden_size, work.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Mix hidden states [B, T, D] over time."""
        parts = self.fused(hidden).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class PlainBlock(nn.Module):
    """Pre-LayerNorm block of a plain GPT-2."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        width = work.hidden_size
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = PlainAttention(work)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(work.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states [B, T, D]."""
        hidden = hidden + self.dropout(self.attention(self.norms[0](hidden)))
        return hidden + self.dropout(self.feed_forward(self.norms[1](hidden)))


class PlainGPT(nn.Module):
    """GPT-2 in the form of nanoGPT: one process, autocast, a tied head, the loss in the model."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.tokens = nn.Embedding(work.vocab_size, work.hidden_size)
        self.positions = nn.Embedding(work.sequence_length, work.hidden_size)
        self.dropout = nn.Dropout(work.dropout)
        self.blocks = nn.Sequential(*(PlainBlock(work) for _ in range(work.num_layers)))
        self.norm = nn.LayerNorm(work.hidden_size)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of tokens [B, T] and their labels."""
        positions = torch.arange(tokens.size(1), device=tokens.device)
        hidden = self.dropout(self.tokens(tokens) + self.positions(positions))
        logits = F.linear(self.norm(self.blocks(hidden)), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def nanogpt(work: Work) -> Step:
    """Return the step of a plain GPT-2, compiled."""
    model = PlainGPT(work).to(work.device)
    return _step(work, model, torch.compile(model))


def hugging_face(work: Work) -> Step:
    """Return the step of transformers' GPT-1 in a plain loop."""
    model = _hugging_face_model(work)

    def loss(tokens: Tensor, labels: Tensor) -> Tensor:
        logits = model(tokens).logits
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())

    return _step(work, model, loss)


def _hugging_face_model(work: Work) -> nn.Module:
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    rates = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), work.dropout)
    config = OpenAIGPTConfig(
        vocab_size=work.vocab_size,
        n_positions=work.sequence_length,
        n_embd=work.hidden_size,
        n_layer=work.num_layers,
        n_head=work.num_heads,
        **rates,
    )
    return OpenAIGPTLMHeadModel(config).to(work.device).train()


def _step(work: Work, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """Return one step: loss under autocast, backward, clipping, fused AdamW."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)

    def step(tokens: Tensor, labels: Tensor) -> None:
        with work.autocast():
            value = loss(tokens, labels)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def bare(work: Work) -> Step:
    """Return the step of this project's model and optimizer in a plain loop, without DeepSpeed."""
    from gpt_dist.config import OptimizerConfig
    from gpt_dist.config.sections import ResolvedModelConfig
    from gpt_dist.data.batches import TokenBatch
    from gpt_dist.model import GPT
    from gpt_dist.model.adamw import MasterAdamW
    from gpt_dist.model.regions import SingleProcess
    from gpt_dist.train.objective import LanguageModelObjective

    keep_freed_memory()
    config = ResolvedModelConfig(
        num_layers=work.num_layers,
        hidden_size=work.hidden_size,
        num_heads=work.num_heads,
        sequence_length=work.sequence_length,
        vocab_size=work.vocab_size,
        dropout=work.dropout,
    )
    objective = LanguageModelObjective(GPT(config, SingleProcess()))
    objective.to(work.device, torch.bfloat16 if work.precision == "bf16" else torch.float32)
    objective.compile()
    settings = OptimizerConfig(betas=BETAS, weight_decay=WEIGHT_DECAY)
    optimizer = MasterAdamW(objective.parameters(), settings)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE

    def step(tokens: Tensor, labels: Tensor) -> None:
        loss = objective(batch=TokenBatch(tokens, labels)) / labels.numel()
        loss.backward()
        norms = [
            torch.linalg.vector_norm(one, dtype=torch.float32) for one in optimizer.gradients()
        ]
        optimizer.grad_scale = (torch.stack(norms).norm() / CLIP_NORM).clamp(min=1)
        optimizer.found_inf = ~optimizer.grad_scale.isfinite() * torch.ones(())
        optimizer.step()

    return step


def trainer(work: Work) -> list[float]:
    """Train transformers' GPT-1 by its Trainer with DeepSpeed, and return the steps' times."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        """Notes the time before the first step and after each."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_train_begin(self, *_: object, **__: object) -> None:
            self.times.append(time.perf_counter())

        def on_step_end(self, *_: object, **__: object) -> None:
            synchronize()
            self.times.append(time.perf_counter())

    class InOrder(Trainer):
        """Takes the samples in the order of the other sides."""

        def _get_train_sampler(self, *_: object) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    def loss(outputs: Any, labels: Tensor, **_: object) -> Tensor:
        return F.cross_entropy(outputs.logits.float().flatten(0, 1), labels.flatten())

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # As a launcher would set them.
    os.environ.update(
        RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    settings = {
        "train_micro_batch_size_per_gpu": work.batch_size,
        "gradient_clipping": CLIP_NORM,
        # transformers' GPT-1 does not run with weights of half precision.
        "torch_autocast": {"enabled": work.precision == "bf16", "dtype": "bfloat16"},
        "zero_optimization": {"stage": 0},
        "zero_allow_untested_optimizer": True,
    }
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            directory,
            max_steps=work.steps,
            per_device_train_batch_size=work.batch_size,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            max_grad_norm=CLIP_NORM,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            use_cpu=work.device == "cpu",
            deepspeed=settings,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        samples = [
            {"input_ids": row.cpu(), "labels": targets.cpu()}
            for tokens, labels in work.batches()
            for row, targets in zip(tokens, labels, strict=True)
        ]
        InOrder(
            _hugging_face_model(work),
            arguments,
            train_dataset=samples,
            callbacks=[clock],
            compute_loss_func=loss,
        ).train()
    return [after - before for before, after in pairwise(clock.times)]


def synchronize() -> None:
    """Wait for a GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_loop(work: Work, make_step: MakeStep) -> list[float]:
    """Make the steps in a plain loop, and return their times."""
    step = make_step(work)
    seconds = []
    for tokens, labels in work.batches():
        begin = time.perf_counter()
        step(tokens, labels)
        synchronize()
        seconds.append(time.perf_counter() - begin)
    return seconds


SIDES: dict[str, Callable[[Work], list[float]]] = {
    "bare": partial(in_loop, make_step=bare),
    "nanogpt": partial(in_loop, make_step=nanogpt),
    "hugging face": partial(in_loop, make_step=hugging_face),
    "hugging face trainer, deepspeed": trainer,
}


def main() -> None:
    """Run a side and print its figures."""
    warnings.simplefilter("ignore")
    side, settings = sys.argv[1:]
    torch.manual_seed(0)
    work = Work(**json.loads(settings))
    seconds = SIDES[side](work)
    print(json.dumps({"seconds": seconds, "bytes": peak_memory(torch.device(work.device))}))


if __name__ == "__main__":
    main()
