"""Every family against transformers; mask, padding and dropout; at tensor parallel 1, 2 and 4."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.data.batches import TokenBatch
from gpt_dist.model import family_of, parameter_table
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import Topology, form_groups
from tests.models import FAMILIES, FAMILY_SIZES, from_hugging_face

transformers = pytest.importorskip("transformers")

VOCAB_SIZE = 300  # padded to 384, so that the padding lies on the last of two processes
TOLERANCE = 1e-5


def model_config(family: str, dropout: float = 0.0) -> ResolvedModelConfig:
    return ResolvedModelConfig(
        num_layers=3,
        hidden_size=48,
        num_heads=4,
        sequence_length=24,
        vocab_size=VOCAB_SIZE,
        dropout=dropout,
        family=family,
        **FAMILY_SIZES.get(family, {}),
    )


def for_four(config: ResolvedModelConfig) -> ResolvedModelConfig:
    """The same with a key-value head for each of four tensor-parallel processes."""
    groups = config.num_key_value_heads and 4
    return config.model_copy(update={"num_key_value_heads": groups})


def reference(config: ResolvedModelConfig) -> Any:
    """A transformers model with every weight random, biases and gains too."""
    torch.manual_seed(0)
    description = family_of(config).describe(config, end_of_text=None)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**description)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.1 if parameter.dim() == 1 else 0.0, std=0.2)
    return model.eval()


def gather_logits(logits: Tensor, topology: Topology) -> Tensor:
    parts = [torch.empty_like(logits) for _ in range(topology.tensor_parallel_size)]
    dist.all_gather(parts, logits.contiguous(), group=topology.tensor_parallel_group)
    return torch.cat(parts, dim=-1)


def mean_loss(model: Any, tokens: Tensor) -> Tensor:
    from gpt_dist.train.objective import LanguageModelObjective

    objective = LanguageModelObjective(model)
    batch = TokenBatch(tokens[:, :-1], tokens[:, 1:])
    return objective(batch) / batch.weight


def compare_with_reference(
    launch: Launch, device: torch.device, family: str, tensor_parallel_size: int
) -> tuple[float, float, float]:
    """Largest differences of logits and loss, and the largest probability of a padding entry."""
    from gpt_dist.model import GPT, load_full_tensors

    topology = form_groups(launch, device, tensor_parallel_size)
    config = for_four(model_config(family)) if tensor_parallel_size == 4 else model_config(family)
    theirs = reference(config)
    model = GPT(config, topology.tensor_parallel_group).eval()
    load_full_tensors(model, from_hugging_face(theirs.state_dict(), config))
    tokens = torch.randint(VOCAB_SIZE, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = gather_logits(model.logits(model(tokens)), topology)
        loss = mean_loss(model, tokens)
        expected = theirs(tokens, labels=tokens)
    padding = logits.softmax(-1)[..., VOCAB_SIZE:].max()
    logits_difference = (logits[..., :VOCAB_SIZE] - expected.logits).abs().max()
    return float(logits_difference), float((loss - expected.loss).abs()), float(padding)


@pytest.mark.parametrize("tensor_parallel_size", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_loss_are_transformers(process_group, family, tensor_parallel_size):
    group = process_group(tensor_parallel_size)
    results = group.run(compare_with_reference, family, tensor_parallel_size)
    for rank, (logits, loss, padding) in enumerate(results):
        assert logits < TOLERANCE, f"rank {rank}"
        assert loss < TOLERANCE, f"rank {rank}"
        assert padding == 0, f"rank {rank}"


def gradients(
    launch: Launch, device: torch.device, family: str, tensor_parallel_size: int
) -> dict[str, float]:
    """The largest difference of each parameter's gradient from transformers'."""
    from gpt_dist.model import GPT, load_full_tensors

    topology = form_groups(launch, device, tensor_parallel_size)
    config = for_four(model_config(family)) if tensor_parallel_size == 4 else model_config(family)
    theirs = reference(config)
    model = GPT(config, topology.tensor_parallel_group).eval()
    load_full_tensors(model, from_hugging_face(theirs.state_dict(), config))
    tokens = torch.randint(VOCAB_SIZE, (3, 24), generator=torch.Generator().manual_seed(1))
    mean_loss(model, tokens).backward()
    theirs(tokens, labels=tokens).loss.backward()
    state = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    table = parameter_table(config).values()
    assert state.keys() == {name for spec in table for name in spec.stored.names}
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    load_full_tensors(model, from_hugging_face(state, config))
    expected = dict(model.named_parameters())
    return {name: float((found[name] - expected[name]).abs().max()) for name in expected}


@pytest.mark.parametrize("tensor_parallel_size", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_transformers(process_group, family, tensor_parallel_size):
    for differences in process_group(tensor_parallel_size).run(
        gradients, family, tensor_parallel_size
    ):
        assert max(differences.values()) < TOLERANCE, differences


def logits_before_and_after_a_change(
    launch: Launch, device: torch.device, tensor_parallel_size: int
) -> tuple[Tensor, Tensor]:
    from gpt_dist.model import GPT

    topology = form_groups(launch, device, tensor_parallel_size)
    torch.manual_seed(3)
    model = GPT(model_config("openai_gpt"), topology.tensor_parallel_group).eval()
    tokens = torch.arange(24)[None]
    changed = tokens.clone()
    changed[0, 12:] = 200
    with torch.no_grad():
        return tuple(gather_logits(model.logits(model(x)), topology)[0] for x in (tokens, changed))


@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
def test_a_token_never_sees_its_right(process_group, tensor_parallel_size):
    for before, after in process_group(tensor_parallel_size).run(
        logits_before_and_after_a_change, tensor_parallel_size
    ):
        assert torch.equal(before[:12], after[:12])
        assert not torch.equal(before[12:], after[12:])


def initial_weights(
    launch: Launch, device: torch.device, tensor_parallel_size: int
) -> dict[str, Tensor]:
    """All weights of a new model, its shards put together."""
    from gpt_dist.model import GPT

    topology = form_groups(launch, device, tensor_parallel_size)
    torch.manual_seed(5)
    model = GPT(model_config("gpt2"), topology.tensor_parallel_group)
    weights = {}
    for name, parameter in model.named_parameters():
        if getattr(parameter, "tensor_model_parallel", False):
            parts = [torch.empty_like(parameter.data) for _ in range(tensor_parallel_size)]
            dist.all_gather(parts, parameter.data, group=topology.tensor_parallel_group)
            weights[name] = torch.cat(parts, dim=parameter.partition_dim)
        else:
            weights[name] = parameter.data
    return weights


def test_initial_weights_do_not_depend_on_the_layout(process_group):
    (whole,) = process_group(1).run(initial_weights, 1)
    for shared in process_group(2).run(initial_weights, 2):
        assert whole.keys() == shared.keys()
        assert all(torch.equal(whole[name], shared[name]) for name in whole)
    matrix = whole["blocks.0.feed_forward.expansion.weight"]
    residual = whole["blocks.0.feed_forward.projection.weight"]
    assert matrix.std() == pytest.approx(0.02, rel=0.03)
    assert residual.std() == pytest.approx(0.02 / math.sqrt(6), rel=0.03)
    assert not whole["blocks.0.attention.query_key_value.bias"].any()


def draw_masks(launch: Launch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A residual mask, attention masks, and the hidden states of one training pass."""
    from gpt_dist.model import GPT

    topology = form_groups(launch, device, 2)
    torch.manual_seed(7)
    model = GPT(model_config("openai_gpt", dropout=0.5), topology.tensor_parallel_group)
    residual = model.dropout(torch.ones(100)) != 0
    # Zero queries and keys attend evenly; identity values lay the mask open.
    zeros = torch.zeros(1, 2, 24, 24)
    attention = model.blocks[0].attention.attend(zeros, zeros, torch.eye(24).expand(1, 2, 24, 24))
    with torch.no_grad():
        return residual, attention != 0, model(torch.arange(24)[None])


def test_peers_share_residual_masks_and_differ_in_attention_masks(process_group):
    (residual, attention, hidden), (residual_2, attention_2, hidden_2) = process_group(2).run(
        draw_masks
    )
    assert 0 < residual.sum() < 100
    assert torch.equal(residual, residual_2)
    lower = torch.ones(24, 24).tril().bool()
    for masks in (attention, attention_2):
        assert not masks[..., ~lower].any()
        assert 0.4 < masks[..., lower].float().mean() < 0.6
    agreement = (attention == attention_2)[..., lower].float().mean()
    assert 0.4 < agreement < 0.6
    assert torch.equal(hidden, hidden_2)
