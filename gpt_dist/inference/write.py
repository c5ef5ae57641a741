"""Has a model continue prompts of text, showing it as it is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from gpt_dist.checkpoint.opened import OpenedModel
from gpt_dist.data.tokenizers.tokenizer import Tokenizer
from gpt_dist.errors import ConfigError
from gpt_dist.inference.generate import Sampling, generate
from gpt_dist.model import GPT

_INCOMPLETE = "\ufffd"
"""What the bytes of half a character are decoded to."""


def encode_prompts(prompts: Sequence[str], opened: OpenedModel) -> list[list[int]]:
    """The tokens of each prompt; an empty one is the beginning of a text.

    Raises ConfigError where one is no text, or fills the model's context, or is empty for a model
    that knows no token between texts.
    """
    tokenizer, longest = opened.tokenizer, opened.config.sequence_length
    encoded = []
    for prompt in prompts:
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise ConfigError(f"--prompt: {prompt[:40]!r} is not UTF-8 text; convert it")
        ids = tokenizer.encode(prompt).tolist()
        if not ids and tokenizer.end_of_text < opened.config.vocab_size:
            ids = [tokenizer.end_of_text]
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
    """Each prompt with its continuation, an empty line between them, in pieces to print.

    Those of the first prompt come while they are made.
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


def _decode_stream(prompt: list[int], tokens: Iterable[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Decoded behind its prompt, since a piece at the beginning loses its space."""
    ids = list(prompt)
    shown = len(tokenizer.decode(ids))
    text = ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith(_INCOMPLETE):
            yield text[shown:]
            shown = len(text)
    if text[shown:]:
        yield text[shown:]
