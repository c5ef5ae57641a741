"""The forms of attention, dropout and loss that compiled models use, beside torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gpt_dist.config.sections import ResolvedModelConfig
from gpt_dist.data.batches import TokenBatch
from gpt_dist.model import GPT
from gpt_dist.model.cross_entropy import IGNORED_LABEL, HeadCrossEntropy
from gpt_dist.model.dropout import keep_mask
from gpt_dist.model.layers import QUERIES_PER_BLOCK, Attention
from gpt_dist.model.regions import SingleProcess
from gpt_dist.train.objective import LanguageModelObjective

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
VALID, PADDED = 90, 96


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_loss_in_the_head_is_cross_entropy(dtype):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40, 16, generator=generator), torch.randn(PADDED, 16, generator=generator)
    labels = torch.randint(0, VALID, (40,), generator=generator)
    labels[::7] = IGNORED_LABEL
    found, expected = ([one.to(dtype).requires_grad_() for one in values] for _ in range(2))
    losses = HeadCrossEntropy.apply(*found, labels, VALID, SingleProcess())
    logits = (expected[0] @ expected[1][:VALID].t()).float()
    theirs = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="none")
    scale = torch.rand(40, generator=generator)
    (losses * scale).sum().backward()
    (theirs * scale).sum().backward()
    torch.testing.assert_close(losses, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    for one, other in zip(found, expected, strict=True):
        bound = TOLERANCE[dtype] * float(other.grad.abs().max())
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=bound)


@pytest.mark.parametrize("length", [1, 5, QUERIES_PER_BLOCK, 2 * QUERIES_PER_BLOCK + 3])
@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
def test_attention_by_blocks_is_torchs(length, key_value_heads):
    config = ResolvedModelConfig(
        family="llama",
        num_layers=1,
        hidden_size=32,
        num_heads=4,
        num_key_value_heads=key_value_heads,
        sequence_length=length,
        vocab_size=10,
        dropout=0.0,
    )
    attention = Attention(config, SingleProcess(), bias=False)
    found, expected = ([torch.empty(0)] * 3 for _ in range(2))
    torch.manual_seed(0)
    for number, heads in enumerate((4, key_value_heads, key_value_heads)):
        found[number] = torch.randn(2, heads, length, 8, requires_grad=True)
        expected[number] = found[number].detach().clone().requires_grad_()
    ours = attention._attend_by_products(*found, rate=0.0)
    theirs = F.scaled_dot_product_attention(*expected, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(ours, theirs)
    (ours * torch.arange(8.0)).sum().backward()
    (theirs * torch.arange(8.0)).sum().backward()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_masks_drop_their_rate_everywhere_and_differ_each_time(rate):
    torch.manual_seed(0)
    rows, columns = torch.arange(2000)[:, None].int(), torch.arange(1000).int()
    first, second = (keep_mask(rows, columns, rate).float() for _ in range(2))
    deviation = (rate * (1 - rate)) ** 0.5
    assert float(first.mean()) == pytest.approx(1 - rate, abs=5 * deviation / 2e6**0.5)
    for dimension, length in ((0, 2000), (1, 1000)):
        spread = first.mean(dimension).std() / (deviation / length**0.5)
        assert float(spread) == pytest.approx(1, abs=0.1)
    centred = first - first.mean()
    others = [second - second.mean(), *(centred.roll(by, 1) for by in (1, 2, 128))]
    others += [centred.roll(by, 0) for by in (1, 2, 512)]
    for other in others:
        correlation = (centred * other).mean() / deviation**2
        assert abs(float(correlation)) < 5 / 2e6**0.5


@pytest.mark.parametrize("family", ["openai_gpt", "gpt2", "llama"])
def test_forward_and_loss_are_one_graph(family):
    config = ResolvedModelConfig(
        family=family,
        num_layers=2,
        hidden_size=32,
        num_heads=2,
        sequence_length=16,
        vocab_size=50,
        dropout=0.1,
    )
    objective = LanguageModelObjective(GPT(config, SingleProcess()))
    tokens = torch.randint(0, 50, (2, 17))
    torch._dynamo.reset()
    found = torch._dynamo.explain(objective)(batch=TokenBatch(tokens[:, :-1], tokens[:, 1:]))
    assert (found.graph_count, found.graph_break_count) == (1, 0)
