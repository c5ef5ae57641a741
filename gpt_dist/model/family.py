"""The contract of a model family: its modules, and its translation to and from Hugging Face."""

from collections.abc import Callable
from dataclasses import dataclass

from gpt_dist.config import ModelConfig, ResolvedModelConfig
from gpt_dist.errors import ConfigError
from gpt_dist.model.decoder import GPT
from gpt_dist.model.hugging_face import HuggingFaceConfig, Stored

ARCHITECTURE_KEYS = ("num_key_value_heads", "feed_forward_size", "rotary_base", "norm_epsilon")
"""Keys of the model section that only some families read."""


@dataclass(frozen=True)
class Family:
    """One architecture, as a file of `families/` declares it."""

    model: type[GPT]
    """The module; its parameters are the only declaration of names, shapes and initial values."""
    stored_parameter: Callable[[str, ResolvedModelConfig], Stored]
    """Gives the form in which Hugging Face's class stores a parameter, by its name here."""
    hugging_face: HuggingFaceConfig
    """Translates `config.json`."""
    keys: frozenset[str] = frozenset()
    """Those of ARCHITECTURE_KEYS that the family reads."""
    problem: Callable[[ModelConfig], str | None] = lambda _config: None
    """Says which sizes the family cannot have, and the remedy; None where it has these."""

    def check(self, config: ModelConfig) -> None:
        """Refuse a model section that this family cannot have.

        Raises:
            ConfigError: A key is given that only other families read, or a size does not fit.
        """
        for key in ARCHITECTURE_KEYS:
            value = getattr(config, key)
            if value is not None and key not in self.keys:
                raise ConfigError(
                    f"model.{key}: {value} is given, but model.family {config.family} has no such "
                    "choice; leave the key out, or choose another family"
                )
        if problem := self.problem(config):
            raise ConfigError(problem)
