"""The model families: one file an architecture; `model.family` names one of them."""

from importlib import import_module
from pkgutil import iter_modules

from gpt_dist.config import ModelConfig
from gpt_dist.errors import ConfigError
from gpt_dist.model.family import Family

FAMILIES: dict[str, Family] = {
    name: import_module(f"{__name__}.{name}").FAMILY for _, name, _ in iter_modules(__path__)
}
"""The `FAMILY` of every file beside this one, by the file's name."""


def family_of(config: ModelConfig) -> Family:
    """Return the family that a configuration names; ConfigError if a key or size does not fit."""
    family = FAMILIES[config.family]
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
