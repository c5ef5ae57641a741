"""The contract of a model family: its modules, and its translation to and from Hugging Face."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from gpt_dist.config import ModelConfig, ResolvedModelConfig
from gpt_dist.errors import ConfigError
from gpt_dist.model.group import Group
from gpt_dist.model.hugging_face import HuggingFace
from gpt_dist.model.layers import Block, Rotation

ARCHITECTURE_KEYS = ("num_key_value_heads", "feed_forward_size", "rotary_base", "norm_epsilon")
"""Keys of the model section that only some families read."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture, as a file of `families/` declares it."""

    block: Callable[[ResolvedModelConfig, Group], Block]
    """Makes a block with initial weights."""
    final_norm: Callable[[ResolvedModelConfig], nn.Module]
    """Makes the norm behind the last block."""
    rotation: Callable[[ResolvedModelConfig, Tensor], Rotation] | None
    """Makes the rotary embedding of positions [T]; None where position embeddings are learned."""
    tied_head: bool
    """Whether the logits are computed with the token embedding."""
    hugging_face: HuggingFace
    """Translates names and `config.json`."""
    problem: Callable[[ModelConfig], str | None] = lambda _config: None
    """Says which sizes the family cannot have, and the remedy; None where it has these."""

    def check(self, config: ModelConfig) -> None:
        """Refuse a model section that this family cannot have.

        Raises:
            ConfigError: A key is given that only other families read, or a size does not fit.
        """
        for key in ARCHITECTURE_KEYS:
            value = getattr(config, key)
            if value is not None and key not in self.hugging_face.keys:
                raise ConfigError(
                    f"model.{key}: {value} is given, but model.family {config.family} has no such "
                    "choice; leave the key out, or choose another family"
                )
        if problem := self.problem(config):
            raise ConfigError(problem)
