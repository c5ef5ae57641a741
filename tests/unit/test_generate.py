"""Test generated tokens against transformers if greedy, else against the filtered distribution."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpt_dist.checkpoint.opened import open_model
from gpt_dist.command import seed
from gpt_dist.config import ResolvedModelConfig
from gpt_dist.errors import ConfigError
from gpt_dist.inference.assemble import assemble
from gpt_dist.inference.generate import (
    Sampling,
    continue_texts,
    encode_prompts,
    filtered_probabilities,
    generate,
)
from gpt_dist.model import load_model
from gpt_dist.model.layers import LayerCache, linear
from gpt_dist.rendezvous import Launch
from gpt_dist.topology import form_groups
from tests.models import FAMILIES, write_model_folders

PROMPTS = [[5, 300, 7], [44], [9, 8, 7, 6, 5, 4], [400, 401, 402]]
NEVER = 10**6
"""No token's id: nothing ends a text."""


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_model_folders(tmp_path_factory.mktemp("models"))


def load(launch: Launch, device: torch.device, folder: Path, tensor_parallel_size: int = 1) -> Any:
    opened = open_model(folder)
    group = form_groups(launch, device, tensor_parallel_size).tensor_parallel_group
    return load_model(opened.tensors, opened.config, group).eval()


def continuations(
    launch: Launch,
    device: torch.device,
    folder: Path,
    prompts: list[list[int]],
    max_tokens: int,
    sampling: Sampling,
    end_of_text: int = NEVER,
    tensor_parallel_size: int = 1,
) -> list[list[int]]:
    model = load(launch, device, folder, tensor_parallel_size)
    made: list[list[int]] = [[] for _ in prompts]
    for row, token in generate(model, prompts, max_tokens, sampling, end_of_text):
        made[row].append(token)
    return made


GREEDY = Sampling(temperature=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_transformers(process_group, model_folders, family):
    transformers = pytest.importorskip("transformers")
    folder = model_folders[family]
    (found,) = process_group(1).run(continuations, folder, PROMPTS, 20, GREEDY)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    theirs.generation_config.eos_token_id = None
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        expected = theirs.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=20, pad_token_id=0
        )
        assert tokens == expected[0, len(prompt) :].tolist()


def without_cache(launch: Launch, device: torch.device, folder: Path) -> list[list[int]]:
    model = load(launch, device, folder)
    made = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(20):
            with torch.no_grad():
                ids.append(int(model.logits(model(torch.tensor([ids])))[0, -1].argmax()))
        made.append(ids[len(prompt) :])
    return made


def cached_difference(launch: Launch, device: torch.device, folder: Path) -> float:
    """Return the largest difference of hidden states computed token by token and all at once."""
    model = load(launch, device, folder)
    tokens = torch.randint(500, (3, 32), generator=torch.Generator().manual_seed(1))
    caches = [LayerCache(32) for _ in model.blocks]
    with torch.no_grad():
        parts = [model(tokens[:, :10], caches)]
        parts += [model(tokens[:, i : i + 1], caches) for i in range(10, 32)]
        return float((torch.cat(parts, 1) - model(tokens)).abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_is_uncached(process_group, model_folders, family):
    folder, group = model_folders[family], process_group(1)
    assert group.run(cached_difference, folder)[0] < 1e-5
    (found,) = group.run(continuations, folder, PROMPTS, 20, GREEDY)
    assert found == group.run(without_cache, folder)[0]


@pytest.mark.parametrize("rows", [0, 1, 6, 7, 40])
@pytest.mark.parametrize("outputs", [48, 33])
def test_products_without_gradients_are_those_with_them(rows, outputs):
    draws = torch.Generator().manual_seed(0)
    shapes = (rows, 1, 24), (outputs, 24), (outputs,)
    hidden, weight, bias = (torch.randn(shape, generator=draws) for shape in shapes)
    for given in (bias, None):
        expected = linear(hidden, weight, given)
        with torch.no_grad():
            found = linear(hidden, weight, given)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_tensor_parallel_peers_write_the_same(process_group, model_folders):
    sampling = Sampling(temperature=1.3, top_k=50, seed=3)
    folder = model_folders["gpt2"]
    (alone,) = process_group(1).run(continuations, folder, PROMPTS, 20, sampling)
    shared = process_group(2).run(continuations, folder, PROMPTS, 20, sampling, NEVER, 2)
    assert shared == [alone, alone]


def test_a_text_ends_where_it_should(process_group, model_folders):
    folder, group = model_folders["openai_gpt"], process_group(1)
    (free,) = group.run(continuations, folder, PROMPTS, 100, GREEDY)
    # The model's 32 positions are the limit.
    assert {len(prompt + tokens) for prompt, tokens in zip(PROMPTS, free, strict=True)} == {32}
    end = free[0][5]
    (ended,) = group.run(continuations, folder, PROMPTS, 100, GREEDY, end)
    for whole, part in zip(free, ended, strict=True):
        assert part == (whole[: whole.index(end)] if end in whole else whole)
    (short,) = group.run(continuations, folder, PROMPTS, 3, GREEDY)
    assert short == [whole[:3] for whole in free]


def test_a_seed_repeats_and_neighbours_do_not_matter(process_group, model_folders):
    folder, group = model_folders["openai_gpt"], process_group(1)

    def sample(prompts: list[list[int]], seed: int) -> list[list[int]]:
        return group.run(continuations, folder, prompts, 10, Sampling(seed=seed))[0]

    assert sample(PROMPTS, 1) == sample(PROMPTS, 1) != sample(PROMPTS, 2)
    assert sample(PROMPTS, 1)[0] == sample(PROMPTS[:1], 1)[0]


LOGITS = torch.tensor([[2.0, 0.0, 1.0, -1.0, 0.5], [0.0, 3.0, 2.9, -torch.inf, -4.0]])


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(top_k=2),
        Sampling(top_k=50),
        Sampling(top_p=0.7),
        Sampling(top_p=1e-9),
        Sampling(top_p=1.0),
        Sampling(temperature=2.0, top_k=4, top_p=0.8),
    ],
)
def test_filters_are_those_of_transformers(sampling):
    transformers = pytest.importorskip("transformers")
    scores = LOGITS / sampling.temperature
    if sampling.top_k:
        scores = transformers.TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p:
        scores = transformers.TopPLogitsWarper(sampling.top_p)(None, scores)
    found = filtered_probabilities(LOGITS, sampling)
    assert torch.allclose(found, scores.softmax(-1), atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-5, 1e-40, 5e-324])
@pytest.mark.parametrize("limits", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_the_lowest_temperatures_take_the_likeliest(temperature, limits):
    found = filtered_probabilities(100 * LOGITS, Sampling(temperature, **limits))
    assert torch.equal(found, filtered_probabilities(LOGITS, GREEDY))


def first_tokens(
    launch: Launch, device: torch.device, folder: Path, sampling: Sampling, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how often each token was drawn, and its probability."""
    model = load(launch, device, folder)
    drawn = torch.zeros(500)
    for _, token in generate(model, [[5, 6]] * count, 1, sampling, NEVER):
        drawn[token] += 1
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([[5, 6]])))[0, -1]
    return drawn / count, filtered_probabilities(logits, sampling)[:500]


def test_draws_follow_the_filtered_distribution(process_group, model_folders):
    sampling = Sampling(temperature=1.5, top_k=6, top_p=0.9)
    (result,) = process_group(1).run(first_tokens, model_folders["openai_gpt"], sampling, 4000)
    drawn, expected = result
    assert 1 < (expected > 0).sum() <= 6
    assert not drawn[expected == 0].any()
    assert (drawn - expected).abs().max() < 0.03


def test_the_command_continues_prompts(model_folders):
    arguments = [str(model_folders["openai_gpt"]), "--prompt", "it was a", "the old man"]
    finished = subprocess.run(
        [sys.executable, "launch/generate.py", *arguments, "--temperature", "0"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("it was a")
    assert "\n\nthe old man" in finished.stdout


def pieces(
    launch: Launch, device: torch.device, folder: Path, prompts: list[str]
) -> tuple[list[str], str]:
    """Return the command's output in pieces, and the whole text of the first prompt's tokens."""
    opened, model = open_model(folder), load(launch, device, folder)
    tokenizer, encoded = opened.tokenizer, encode_prompts(prompts, opened)
    tokens = [token for _, token in generate(model, encoded[:1], 20, Sampling(), NEVER)]
    printed = continue_texts(model, prompts, encoded, 20, Sampling(), tokenizer)
    return list(printed), tokenizer.decode([*encoded[0], *tokens])


def test_text_streams_in_whole_characters(process_group, model_folders):
    prompts = ["it was a", "the end"]
    (result,) = process_group(1).run(pieces, model_folders["gpt2"], prompts)
    printed, expected = result
    assert len(printed) > 10
    first, second = "".join(printed).split("\n\nthe end")
    assert first == expected
    assert second


def test_unsuitable_prompts_are_refused(model_folders):
    opened = open_model(model_folders["openai_gpt"])
    assert encode_prompts([""], opened) == [[opened.tokenizer.end_of_text]]
    with pytest.raises(ConfigError, match="--prompt: 'word word"):
        encode_prompts(["word " * 100], opened)
    with pytest.raises(ConfigError, match=r"--prompt: 'caf\\udce9' is not UTF-8 text; convert it"):
        encode_prompts(["caf\udce9"], opened)


@pytest.mark.parametrize("text", ["18446744073709551616", "-1", "4294967296"])
def test_a_seed_out_of_range_is_refused(text):
    assert seed("4294967295") == 2**32 - 1
    with pytest.raises(ArgumentTypeError, match=f"{text} is not a whole number from 0 to 42949672"):
        seed(text)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"num_heads": 3, "hidden_size": 48}, "num_heads: 3;"),
        ({"num_key_value_heads": 1}, "num_key_value_heads: 1;"),
        ({"feed_forward_size": 97}, "feed_forward_size: 97;"),
    ],
)
def test_a_model_that_cannot_be_shared_is_refused_by_name(sizes, expected):
    config = ResolvedModelConfig.model_validate({"family": "llama", "vocab_size": 400, **sizes})
    opened: Any = SimpleNamespace(config=config)
    with pytest.raises(ConfigError, match=f"--tensor-parallel-size: 2 does not divide {expected}"):
        assemble(opened, Launch("test", 0, 2, 0, 2), 2)
