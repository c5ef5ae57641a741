"""The model families: one file an architecture; `model.family` names one of them."""

from gpt_dist.config import ModelConfig
from gpt_dist.errors import ConfigError
from gpt_dist.model.families.gpt2 import GPT_2
from gpt_dist.model.families.llama import LLAMA
from gpt_dist.model.families.openai_gpt import OPENAI_GPT
from gpt_dist.model.family import Family

FAMILIES: dict[str, Family] = {"openai_gpt": OPENAI_GPT, "gpt2": GPT_2, "llama": LLAMA}
"""Every family by its name in the configuration."""


def family_of(config: ModelConfig) -> Family:
    """Return the family that a configuration names; ConfigError if a key or size does not fit."""
    family = FAMILIES.get(config.family)
    if family is None:
        raise ConfigError(
            f"model.family: {config.family!r} is unknown; choose one of {', '.join(FAMILIES)}"
        )
    for key in (key for other in FAMILIES.values() for key in other.keys):
        value = getattr(config, key)
        if value is not None and key not in family.keys:
            raise ConfigError(
                f"model.{key}: {value} is given, but model.family {config.family} has no such "
                "choice; leave the key out, or choose another family"
            )
    if family.rotation and config.head_size % 2:
        raise ConfigError(
            f"model.num_heads: {config.num_heads} heads of {config.head_size} features each; "
            "rotary positions need an even number, so choose other heads or another hidden_size"
        )
    return family
