"""Heads and the fine-tuning loss against transformers, at tensor parallel 1 and 2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gpt_dist.data.batches import TaskBatch
from gpt_dist.data.tasks.examples import EncodedSplit, collate
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import form_groups
from tests.distributed.test_model import TOLERANCE, model_config
from tests.models import from_hugging_face

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 300, "n_positions": 24, "n_embd": 48, "n_layer": 3, "n_head": 4}
LENGTHS = [[9, 6, 7], [12, 12, 4]]  # of two examples with three sequences each


def randomised(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.1 if parameter.dim() == 1 else 0.0, std=0.2)
    return model.eval()


def batch(lengths: list[list[int]]) -> TaskBatch[Tensor]:
    """Random sequences of these lengths, as `data.examples.collate` lays them out."""
    draws = torch.Generator().manual_seed(1)
    rows = [length for example in lengths for length in example]
    tokens = torch.randint(1, 300, (len(rows), max(rows)), generator=draws)
    labels = torch.full_like(tokens, -1)
    for row, length in enumerate(rows):
        tokens[row, length:] = 0
        labels[row, : length - 1] = tokens[row, 1:length]
    owners = torch.tensor([number for number, example in enumerate(lengths) for _ in example])
    targets = torch.tensor([2, 1])
    ends = torch.tensor(rows) - 1
    return TaskBatch(tokens, labels, ends, owners, targets)


def objective(theirs: Any, launch: Launch, device: torch.device, tensor: int, **head: Any) -> Any:
    """Our objective with the weights of their transformer, and a head of random ones."""
    from gpt_dist.finetune.objective import TaskHead, TaskObjective
    from gpt_dist.model import GPT, load_full_tensors

    topology = form_groups(launch, device, tensor)
    config = model_config("openai_gpt")
    model = GPT(config, topology.tensor_parallel_group)
    load_full_tensors(model, from_hugging_face(theirs.state_dict(), config))
    made = TaskHead(48, dropout=0.0, **head)
    torch.manual_seed(2)
    # Scores about 1: of a larger squared error, fp32 does not hold what TOLERANCE asks for.
    torch.nn.init.normal_(made.linear.weight, std=0.1)
    torch.nn.init.normal_(made.linear.bias, std=0.5)
    return TaskObjective(model, made, auxiliary_weight=0.5)


def compare_choices(
    launch: Launch, device: torch.device, tensor: int, lengths: list[list[int]]
) -> dict[str, float]:
    """Differences of our multiple-choice loss, its parts and its gradients from transformers'."""
    from gpt_dist.model import load_full_tensors

    theirs = randomised(
        transformers.OpenAIGPTDoubleHeadsModel(transformers.OpenAIGPTConfig(**SIZES, num_labels=1))
    )
    ours = objective(theirs, launch, device, tensor, kind="choices", outputs=1)
    summary = theirs.multiple_choice_head.summary
    summary.load_state_dict(ours.head.linear.state_dict())
    inputs = batch(lengths)
    shape = (len(lengths), len(lengths[0]), -1)
    labels = torch.cat([torch.full((len(inputs.ends), 1), -100), inputs.labels[:, :-1]], 1)
    labels[labels == -1] = -100
    result = theirs(
        inputs.tokens.view(shape),
        mc_token_ids=inputs.ends.view(shape[:2]),
        labels=labels.view(shape),
        mc_labels=inputs.targets,
    )
    loss = ours.train()(inputs) / inputs.weight
    differences = {"scores": float((ours.eval()(inputs) - result.mc_logits).abs().max())}
    ours.auxiliary_weight = 0.0
    class_loss = ours.train()(inputs) / inputs.weight
    differences["class loss"] = float((class_loss - result.mc_loss).abs())
    differences["language-model loss"] = float((loss - class_loss - 0.5 * result.loss).abs() * 2)
    loss.backward()
    (result.mc_loss + 0.5 * result.loss).backward()
    found = {name: parameter.grad for name, parameter in ours.model.named_parameters()}
    grads = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    load_full_tensors(ours.model, from_hugging_face(grads, model_config("openai_gpt")))
    for name, expected in ours.model.named_parameters():
        differences[f"gradient of {name}"] = float((found[name] - expected).abs().max())
    weight = ours.head.linear.weight.grad - summary.weight.grad
    return differences | {"gradient of the head": float(weight.abs().max())}


@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
def test_multiple_choice_is_double_heads(process_group, tensor_parallel_size):
    group = process_group(tensor_parallel_size)
    # transformers averages the language model's loss over tokens, the paper over sequences first:
    # the two agree where all sequences are equally long.
    equal = [[8, 8, 8], [8, 8, 8]]
    for differences in group.run(compare_choices, tensor_parallel_size, equal):
        assert differences == pytest.approx(dict.fromkeys(differences, 0.0), abs=TOLERANCE)
    for differences in group.run(compare_choices, tensor_parallel_size, LENGTHS):
        assert differences["scores"] < TOLERANCE
        assert differences["class loss"] < TOLERANCE


def compare_pooled(
    launch: Launch, device: torch.device, tensor: int, kind: str, outputs: int
) -> dict[str, float]:
    """Differences from the same head on the hidden states of transformers' model."""
    from gpt_dist.model import load_full_tensors

    theirs = randomised(transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**SIZES)))
    ours = objective(theirs, launch, device, tensor, kind=kind, outputs=outputs)
    ours.auxiliary_weight = 0.0
    inputs = batch(LENGTHS)
    if kind == "score":
        inputs = replace(inputs, targets=torch.tensor([0.5, -3.0]))
    head = torch.nn.Linear(48, outputs)
    head.load_state_dict(ours.head.linear.state_dict())
    hidden = theirs.transformer(inputs.tokens).last_hidden_state
    ends = torch.stack([hidden[row, end] for row, end in enumerate(inputs.ends)])
    scores = head(ends.view(2, 3, 48).sum(1))
    expected = (
        torch.nn.functional.mse_loss(scores[:, 0], inputs.targets)
        if kind == "score"
        else torch.nn.functional.cross_entropy(scores, inputs.targets)
    )
    ours_scores = ours.eval()(inputs)
    loss = ours.train()(inputs) / inputs.weight
    loss.backward()
    expected.backward()
    found = {name: parameter.grad for name, parameter in ours.model.named_parameters()}
    grads = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    load_full_tensors(ours.model, from_hugging_face(grads, model_config("openai_gpt")))
    differences = {
        "loss": float((loss - expected).abs()),
        "scores": float((ours_scores.view(2, -1) - scores).abs().max()),
        "head": float((ours.head.linear.weight.grad - head.weight.grad).abs().max()),
    }
    for name, reference in ours.model.named_parameters():
        differences[name] = float((found[name] - reference).abs().max())
    return differences


@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
@pytest.mark.parametrize(("kind", "outputs"), [("classes", 3), ("score", 1)])
def test_classes_and_scores_read_transformers_hidden_states(
    process_group, tensor_parallel_size, kind, outputs
):
    group = process_group(tensor_parallel_size)
    for differences in group.run(compare_pooled, tensor_parallel_size, kind, outputs):
        assert differences == pytest.approx(dict.fromkeys(differences, 0.0), abs=TOLERANCE)


def random_split() -> EncodedSplit:
    """Six examples of two to four random sequences, some as long as the context."""
    lengths = [[9, 6, 7], [24, 12, 4], [3, 24], [17, 5, 8, 11], [4, 4], [22, 20, 6]]
    rows = [length for example in lengths for length in example]
    return EncodedSplit(
        tokens=np.random.default_rng(1).integers(1, 300, sum(rows), dtype=np.int32),
        sequence_starts=np.cumsum([0, *rows]),
        example_starts=np.cumsum([0, *map(len, lengths)]),
        targets=None,
        ids=tuple("abcdef"),
    )


def alone_and_together(
    launch: Launch, device: torch.device, tensor: int, kind: str
) -> dict[str, float]:
    """How much the scores of each example of some batches differ from those that it has alone."""
    from gpt_dist.train.objective import to_device

    theirs = randomised(transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**SIZES)))
    outputs = 3 if kind == "classes" else 1
    ours = objective(theirs, launch, device, tensor, kind=kind, outputs=outputs)
    split, draws = random_split(), np.random.default_rng(2)

    @torch.no_grad()
    def scores(numbers: list[int]) -> list[Tensor]:
        found = ours.eval()(to_device(collate(split, np.array(numbers)), device))
        return [row[row != -torch.inf] for row in found]  # fewer choices than another example's

    alone = [scores([number])[0] for number in range(len(split))]
    differences = {}
    for _ in range(10):
        numbers = draws.permutation(len(split))[: draws.integers(2, len(split) + 1)].tolist()
        for number, row in zip(numbers, scores(numbers), strict=True):
            assert row.shape == alone[number].shape
            differences[f"{number} in {numbers}"] = float((row - alone[number]).abs().max())
    return differences


@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
@pytest.mark.parametrize("kind", ["classes", "score", "choices"])
def test_neighbours_padding_and_order_change_nothing(process_group, tensor_parallel_size, kind):
    group = process_group(tensor_parallel_size)
    for differences in group.run(alone_and_together, tensor_parallel_size, kind):
        assert differences == pytest.approx(dict.fromkeys(differences, 0.0), abs=TOLERANCE)


def test_the_choices_of_an_example_share_a_dropout_mask():
    from gpt_dist.finetune.objective import TaskHead

    torch.manual_seed(0)
    head = TaskHead(64, "choices", 1, dropout=0.5)
    scores = head(torch.ones(6, 64), torch.tensor([0, 0, 0, 1, 1, 1]), 2).detach()
    torch.testing.assert_close(scores, scores[:, :1].expand(2, 3))
    assert abs(scores[0, 0] - scores[1, 0]) > 0.01
