"""Continue text prompts with a model, and yield the text as it is generated."""

from collections.abc import Iterable, Iterator, Sequence

from gpt_dist.checkpoint.opened import OpenedModel
from gpt_dist.data.tokenizers.tokenizer import Tokenizer
from gpt_dist.errors import ConfigError
from gpt_dist.inference.generate import Sampling, generate
from gpt_dist.model import GPT


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
