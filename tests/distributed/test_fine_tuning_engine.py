"""Fine-tuning under DeepSpeed, in every stage, against transformers: loss, scores, gradients."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt_dist.config import Config
from gpt_dist.data.batches import TaskBatch
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import form_groups
from tests.distributed.test_head import SIZES, batch, objective, randomised
from tests.distributed.test_model import TOLERANCE, model_config
from tests.models import from_hugging_face
from tests.moments import gradient_differences

transformers = pytest.importorskip("transformers")

CHOICES = 3
LENGTHS = [[8] * CHOICES, [8] * CHOICES]  # equal: transformers averages L1 over all tokens at once


def choices_of_theirs(theirs: Any, head: Any, inputs: TaskBatch[Tensor]) -> tuple[Tensor, Tensor]:
    """Scores and L2 + L1 / 2 of `OpenAIGPTDoubleHeadsModel`."""
    theirs.multiple_choice_head.summary.load_state_dict(head.state_dict())
    shape = (len(LENGTHS), CHOICES, -1)
    labels = torch.nn.functional.pad(inputs.labels[:, :-1], (1, 0), value=-100)
    result = theirs(
        inputs.tokens.view(shape),
        mc_token_ids=inputs.ends.view(shape[:2]),
        labels=labels.masked_fill(labels == -1, -100).view(shape),
        mc_labels=inputs.targets,
    )
    return result.mc_logits, result.mc_loss + 0.5 * result.loss


def classes_of_theirs(theirs: Any, head: Any, inputs: TaskBatch[Tensor]) -> tuple[Tensor, Tensor]:
    """Scores and L2 of a linear layer on `OpenAIGPTModel`'s hidden states."""
    hidden = theirs.transformer(inputs.tokens).last_hidden_state
    ends = hidden[torch.arange(len(hidden)), inputs.ends]
    scores = head(ends.view(len(LENGTHS), CHOICES, -1).sum(1))
    return scores, torch.nn.functional.cross_entropy(scores, inputs.targets)


def step_beside_theirs(
    launch: Launch, device: torch.device, stage: int, tensor: int, kind: str
) -> dict[str, float]:
    """Differences of a step under DeepSpeed from transformers' loss, scores and gradients."""
    from gpt_dist.train.engine import Engine

    topology = form_groups(launch, device, tensor)
    settings = transformers.OpenAIGPTConfig(**SIZES, num_labels=1)
    theirs = randomised(transformers.OpenAIGPTDoubleHeadsModel(settings))
    made = objective(
        theirs, launch, device, tensor, kind=kind, outputs=3 if kind == "classes" else 1
    )
    made.auxiliary_weight = 0.5 if kind == "choices" else 0.0
    head = torch.nn.Linear(48, made.head.linear.out_features)
    head.load_state_dict(made.head.linear.state_dict())
    inputs = batch(LENGTHS)
    reference = choices_of_theirs if kind == "choices" else classes_of_theirs
    scores, expected = reference(theirs, head, inputs)
    expected.backward()
    size, rank = topology.data_parallel_size, topology.data_parallel_rank
    config = Config.model_validate(
        {
            "model": model_config("openai_gpt"),
            "parallel": {"zero_stage": stage, "tensor_parallel_size": tensor},
            "training": {"global_batch_size": 2, "micro_batch_size": 2 // size, "compile": False},
            "optimizer": {"clip_norm": 0},
        }
    )
    engine = Engine(made, config, topology)
    own = TaskBatch(*(getattr(inputs, f.name).chunk(size)[rank] for f in fields(inputs)))
    own = replace(own, owners=own.owners - own.owners[0])
    found = engine.evaluate(own)
    loss, _ = engine.train_batch([own], 1e-3)
    differences = {
        "loss": abs(float(loss) - float(expected)),
        "scores": float((found - scores.chunk(size)[rank]).abs().max()),
    }
    their_head = theirs.multiple_choice_head.summary if kind == "choices" else head
    gradients = {f"head.linear.{k}": p.grad for k, p in their_head.named_parameters()}
    of_theirs = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, gradient in from_hugging_face(of_theirs, config.model).items():
        gradients[f"model.{name}"] = gradient
    return differences | gradient_differences(engine, gradients, topology)


@pytest.mark.parametrize("kind", ["choices", "classes"])
@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_step_is_transformers(process_group, zero_stage, tensor_parallel_size, kind):
    by_rank = process_group(2).run(step_beside_theirs, zero_stage, tensor_parallel_size, kind)
    assert len(by_rank[0].keys() | by_rank[1].keys()) == 2 + 2 + 3 * 12 + 2
    for differences in by_rank:
        assert differences == pytest.approx(dict.fromkeys(differences, 0.0), abs=TOLERANCE)
