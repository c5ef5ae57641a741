"""The contract of a model family: its modules, and its translation to and from Hugging Face."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.model.group import Group
from gpt_dist.model.hugging_face import HuggingFace
from gpt_dist.model.layers import Block, Rotation


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
