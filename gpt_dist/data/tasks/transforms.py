"""Turn an example of a task into token sequences (Radford et al. 2018, section 3.3)."""

from functools import lru_cache, partial

import numpy as np

from gpt_dist.config import Form
from gpt_dist.data.tasks.reading import Example
from gpt_dist.data.tokenizers.tokenizer import Tokenizer, encode_as_trained
from gpt_dist.data.tokens.shards import Ids
from gpt_dist.errors import ConfigError, DataError

_SPECIAL = 3  # start, delimiter, extract
_SHORTEST = 6  # leaves a token to each of two texts


class Transformation:
    """Converter of one form of example into sequences of at most sequence_length tokens.

    The released code cuts each of two texts to its first `sequence_length // 2 - 2` tokens. Here,
    a text may also take the room that the other leaves, so that no text is cut that fits, and no
    token is lost that the released code keeps. In multiple choice only the context is cut, to the
    same tokens before every choice.
    """

    def __init__(self, form: Form, tokenizer: Tokenizer, sequence_length: int) -> None:
        if sequence_length < _SHORTEST:
            raise ConfigError(
                f"model.sequence_length: {sequence_length} tokens have no room for two texts; use "
                f"{_SHORTEST} or more"
            )
        self._form = form
        self._tokenizer = tokenizer
        self._sequence_length = sequence_length
        # Neighbouring rows share a passage or a premise.
        self._encode = lru_cache(maxsize=64)(partial(encode_as_trained, tokenizer))

    def sequences(self, example: Example) -> list[Ids]:
        """Return one sequence, or one for each order (similarity) or choice (multiple choice).

        Raises DataError where a question and its longest choice leave no room for the context.
        """
        texts = [self._encode(text) for text in example.texts]
        match self._form:
            case "classification":
                return [self._join(texts[0][: self._sequence_length - 2])]
            case "entailment":
                return [self._pair(*texts)]
            case "similarity":
                first, second = texts
                return [self._pair(first, second), self._pair(second, first)]
            case "multiple_choice":
                return self._choices(example, *texts)

    def _pair(self, first: Ids, second: Ids) -> Ids:
        room = self._sequence_length - _SPECIAL
        second = second[: max(self._sequence_length // 2 - 2, room - len(first))]
        return self._join(first[: room - len(second)], second)

    def _choices(self, example: Example, context: Ids, *question: Ids) -> list[Ids]:
        choices = [self._encode(choice) for choice in example.choices]
        whole = sum(map(len, question)) + max(map(len, choices))
        room = self._sequence_length - _SPECIAL - whole
        if room < 1:
            raise DataError(
                f"{example.where or example.id}: question and longest choice are {whole} tokens, "
                f"which leaves no room for the context in model.sequence_length "
                f"{self._sequence_length}; shorten them, or use a longer one"
            )
        before = np.concatenate([context[:room], *question])
        return [self._join(before, choice) for choice in choices]

    def _join(self, *texts: Ids) -> Ids:
        """Join start, the texts with a delimiter between them, and extract."""
        tokenizer = self._tokenizer
        parts: list[Ids | list[int]] = [[tokenizer.start]]
        for text in texts:
            parts += [text, [tokenizer.delimiter]]
        parts[-1] = [tokenizer.extract]
        return np.concatenate(parts, dtype=np.int32)
