"""Continue prompts with a model: greedily, or by sampling from filtered probabilities."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from gpt_dist.checkpoint.opened import OpenedModel
from gpt_dist.data.tokenizers.tokenizer import Tokenizer
from gpt_dist.errors import ConfigError
from gpt_dist.model import GPT
from gpt_dist.model.layers import LayerCache


@dataclass(frozen=True)
class Sampling:
    """Rules by which a token is chosen from a distribution."""

    temperature: float = 1.0
    """Divisor of the logits; 0 takes the likeliest token."""
    top_k: int | None = None
    """Only this many of the likeliest tokens can be drawn."""
    top_p: float | None = None
    """Only the likeliest tokens that together reach this probability can be drawn."""
    seed: int = 42
    """Prompt i draws from its own generator, seeded with seed + i."""


def encode_prompts(prompts: Sequence[str], opened: OpenedModel) -> list[list[int]]:
    """Return the tokens of each prompt; an empty prompt is the beginning of a text.

    ConfigError is raised if a prompt is not UTF-8 text, fills the model's context, or is empty
    though the model has no end-of-text token.
    """
    tokenizer, longest = opened.tokenizer, opened.config.sequence_length
    encoded = []
    for prompt in prompts:
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise ConfigError(f"--prompt: {prompt[:40]!r} is not UTF-8 text; convert it")
        ids = tokenizer.encode(prompt).tolist()
        if not ids and opened.end_of_text is not None:
            ids = [opened.end_of_text]
        if not 0 < len(ids) < longest:
            raise ConfigError(
                f"--prompt: {prompt[:40]!r} has {len(ids)} tokens; the model needs at least one "
                f"and continues {longest - 1} at most"
            )
        encoded.append(ids)
    return encoded


def continue_texts(
    model: GPT,
    prompts: Sequence[str],
    encoded: list[list[int]],
    max_tokens: int,
    sampling: Sampling,
    tokenizer: Tokenizer,
) -> Iterator[str]:
    """Yield each prompt with its continuation, in pieces to print, with empty lines between.

    The pieces of the first prompt come while they are generated.
    """
    made: list[list[int]] = [[] for _ in prompts]
    steps = generate(model, encoded, max_tokens, sampling, tokenizer.end_of_text)

    def first_tokens() -> Iterator[int]:
        for row, token in steps:
            made[row].append(token)
            if row == 0:
                yield token

    for row, prompt in enumerate(prompts):
        yield prompt if row == 0 else f"\n{prompt}"
        tokens = made[row] if row else first_tokens()
        yield from _decode_stream(encoded[row], tokens, tokenizer)
        yield "\n"


def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampling: Sampling,
    end_of_text: int,
) -> Iterator[tuple[int, int]]:
    """Continue each prompt, and yield (number of the prompt, new token) as tokens are generated.

    A prompt ends at `end_of_text`, which is not yielded, after `max_tokens`, or when it fills the
    model's sequence_length, since later positions were never trained. All prompts step together
    from the end of the shortest; a longer one is fed its own tokens meanwhile, so that no prompt
    needs padding. Every process of the model's group yields the same.
    """
    longest = model.config.sequence_length
    assert all(0 < len(prompt) <= longest for prompt in prompts), "a prompt is empty or too long"
    limits = [min(len(prompt) + max_tokens, longest) for prompt in prompts]
    draws = [torch.Generator().manual_seed(sampling.seed + i) for i in range(len(prompts))]
    caches = [LayerCache(max(limits)) for _ in model.blocks]
    device = next(model.parameters()).device
    position = min(map(len, prompts))
    tokens = torch.tensor([prompt[:position] for prompt in prompts], device=device)  # [B, T]
    active = set(range(len(prompts)))
    while active := {row for row in active if position < limits[row]}:
        with torch.no_grad():
            logits = _next_logits(model, tokens, caches)  # [B, V]
        rows = [row for row in sorted(active) if position >= len(prompts[row])]
        chosen = _choose(logits[rows], [draws[row] for row in rows], sampling)
        made = dict(zip(rows, chosen, strict=True))
        for row, token in made.items():
            if token == end_of_text:
                active.discard(row)
            else:
                yield row, token
        column = [
            [prompt[position] if position < len(prompt) else made.get(row, 0)]
            for row, prompt in enumerate(prompts)
        ]
        tokens = torch.tensor(column, device=device)
        position += 1


def filtered_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the distributions [..., V] to draw tokens from, given logits [..., V].

    Temperature is applied first, then top_k, then top_p (Holtzman et al. 2020) to the rest.
    """
    if sampling.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, best, 1.0)
    # Differences of 0 and below cannot overflow, whatever temperature divides them.
    below_best = (logits - logits.amax(-1, keepdim=True)).double()
    probabilities = (below_best / sampling.temperature).softmax(-1).float()
    ranked, order = probabilities.sort(stable=True, descending=True)
    if sampling.top_k is not None:
        ranked[..., sampling.top_k :] = 0
        ranked /= ranked.sum(-1, keepdim=True)
    if sampling.top_p is not None:
        before = ranked.cumsum(-1) - ranked
        ranked = ranked.masked_fill(before >= sampling.top_p, 0)
    filtered = torch.zeros_like(ranked).scatter_(-1, order, ranked)
    return filtered / filtered.sum(-1, keepdim=True)


def _decode_stream(prompt: list[int], tokens: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Decode tokens after their prompt, since a piece at the beginning loses its space."""
    ids = list(prompt)
    shown = len(tokenizer.decode(ids))
    text = ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith("\ufffd"):  # which the bytes of half a character decode to
            yield text[shown:]
            shown = len(text)
    yield text[shown:]


def _choose(logits: Tensor, draws: Sequence[torch.Generator], sampling: Sampling) -> list[int]:
    """Return a token for each row of logits [R, V], drawn from the row's own generator."""
    if sampling.temperature == 0:
        best: list[int] = logits.argmax(-1).tolist()
        return best
    rows = zip(filtered_probabilities(logits, sampling), draws, strict=True)
    return [int(torch.multinomial(row, 1, generator=generator)) for row, generator in rows]


def _next_logits(model: GPT, tokens: Tensor, caches: Sequence[LayerCache]) -> Tensor:
    """Return the logits [B, V] of the next tokens, on the CPU: the same on every host."""
    logits = model.logits(model(tokens, caches)[:, -1])  # [B, V/tp]
    assert isinstance(model.group, ProcessGroup)
    parts = [torch.empty_like(logits) for _ in range(model.group.size())]
    dist.all_gather(parts, logits.contiguous(), group=model.group)
    return torch.cat(parts, dim=-1).float().cpu()
