"""The loss is a mean over all predicted tokens of a global batch, however labels are masked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from gpt_dist.config import IGNORED_LABEL
from gpt_dist.config.file import load_config
from gpt_dist.config.resolution import resolve
from gpt_dist.data.batches import TokenBatch
from gpt_dist.model import GPT
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import form_groups

PREDICTED = [1, 30, 0, 7]
"""Labels of each row of a global batch."""


def step_beside_the_whole_batch(
    launch: Launch, device: torch.device, zero_stage: int
) -> dict[str, tuple[float, float]]:
    """Make a step of several micro-batches, and compute its figures from the whole batch too."""
    from gpt_dist.train.engine import Engine
    from gpt_dist.train.objective import LanguageModelObjective

    overrides = ["training.global_batch_size=4", "training.micro_batch_size=1"]
    overrides += ["model.sequence_length=32", f"parallel.zero_stage={zero_stage}"]
    config = load_config(Path("configs/pretrain/tiny.yaml"), overrides)
    config = resolve(config, launch.world_size, vocab_size=200, samples=100)
    topology = form_groups(launch, device, tensor_parallel_size=1)
    torch.manual_seed(0)
    model = GPT(config.model, topology.tensor_parallel_group)
    tokens, labels = torch.randint(200, (2, 4, 32))
    for row, predicted in zip(labels, PREDICTED, strict=True):
        row[predicted:] = IGNORED_LABEL
    logits = model.logits(model(tokens))
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    norm = torch.stack([gradient.double().norm() for gradient in gradients]).norm()

    engine = Engine(LanguageModelObjective(model), config, topology)
    own = [[row] for row in range(topology.data_parallel_rank, 4, topology.data_parallel_size)]
    batches = [TokenBatch(tokens[rows], labels[rows]) for rows in own]
    loss, update = engine.train_batch(batches, 1e-3)
    return {"loss": (float(loss), float(expected)), "grad norm": (update.grad_norm, float(norm))}


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("data_parallel_size", [1, 2])
def test_unequal_masks_weigh_no_token_more(process_group, data_parallel_size, zero_stage):
    for figures in process_group(data_parallel_size).run(step_beside_the_whole_batch, zero_stage):
        for name, (found, expected) in figures.items():
            assert found == pytest.approx(expected, rel=1e-6), name
