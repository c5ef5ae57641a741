"""GPT-1 (Radford et al. 2018): LayerNorm after each residual sum, learned positions, tied head."""

from typing import Any

from torch import Tensor, nn

from gpt_dist.config import ResolvedModelConfig
from gpt_dist.model.cache import LayerCache
from gpt_dist.model.decoder import GPT
from gpt_dist.model.family import Family
from gpt_dist.model.group import Group
from gpt_dist.model.hugging_face import (
    HuggingFaceConfig,
    Stored,
    Values,
    fused_thirds,
    same,
    token_rows,
    transposed,
)
from gpt_dist.model.layers import INIT_STD, Attention, FeedForward, PositionEmbedding, Rotation

NORM_EPSILON = 1e-5

BLOCK_NAMES = {
    "attention.query_key_value": "attn.c_attn",
    "attention.projection": "attn.c_proj",
    "attention_norm": "ln_1",
    "feed_forward.expansion": "mlp.c_fc",
    "feed_forward.projection": "mlp.c_proj",
    "feed_forward_norm": "ln_2",
}
"""A block's layers here, by their names in Hugging Face's GPT-1 and GPT-2."""

CONFIG_KEYS = {
    "num_layers": ("n_layer",),
    "hidden_size": ("n_embd",),
    "num_heads": ("n_head",),
    "sequence_length": ("n_positions",),
    "vocab_size": ("vocab_size",),
    "dropout": ("attn_pdrop", "embd_pdrop", "resid_pdrop"),
}

CONFIG_FIXED = {
    "layer_norm_epsilon": NORM_EPSILON,
    "initializer_range": INIT_STD,
    "tie_word_embeddings": True,
}


class Block(nn.Module):
    """Attention and feed-forward, each on a residual branch with LayerNorm after the sum."""

    def __init__(
        self, config: ResolvedModelConfig, group: Group, output_std: float = INIT_STD
    ) -> None:
        """Draw the weights, those that end a branch with standard deviation `output_std`."""
        super().__init__()
        self.attention = Attention(config, group, output_std=output_std)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=NORM_EPSILON)
        self.feed_forward = FeedForward(config, group, output_std=output_std)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=NORM_EPSILON)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, hidden: Tensor, rotation: Rotation | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """Map hidden states [B, T, D] to hidden states [B, T, D]."""
        mixed = self.dropout(self.attention(hidden, rotation, cache))
        hidden = self.attention_norm(hidden + mixed)
        output: Tensor = self.feed_forward_norm(hidden + self.dropout(self.feed_forward(hidden)))
        return output


class OpenAIGPT(GPT):
    """GPT-1."""

    def __init__(
        self, config: ResolvedModelConfig, group: Group, activation_checkpointing: bool = False
    ) -> None:
        """Draw the weights of this process's slice."""
        super().__init__(config, group, activation_checkpointing)
        self.position_embedding = PositionEmbedding(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(self.make_block() for _ in range(config.num_layers))
        self.final_norm = self.make_final_norm()
        self.head = self.make_head(tied=True)

    def make_block(self) -> nn.Module:
        """Return one block."""
        return Block(self.config, self.group)

    def make_final_norm(self) -> nn.Module:
        """Return nothing to do: the last block ends with LayerNorm."""
        return nn.Identity()

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Add the embeddings of tokens [B, T] and positions [T], with dropout: [B, T, D]."""
        hidden: Tensor = self.token_embedding(tokens) + self.position_embedding(positions)
        return self.dropout(hidden)


def stored_parameter(name: str, config: ResolvedModelConfig) -> Stored:
    """Return how `OpenAIGPTLMHeadModel` stores a parameter of this model."""
    if name == "token_embedding.weight":
        return token_rows("transformer.tokens_embed.weight", config)
    if name == "position_embedding.weight":
        return same("transformer.positions_embed.weight")
    return stored_in_block(name, config)


def stored_in_block(name: str, config: ResolvedModelConfig) -> Stored:
    """Return how GPT-1 and GPT-2 store a parameter of a block: matrices input x output."""
    _, layer, rest = name.split(".", 2)
    ours, _, kind = rest.rpartition(".")
    theirs = f"transformer.h.{layer}.{BLOCK_NAMES[ours]}.{kind}"
    if ours == "attention.query_key_value":
        return fused_thirds(theirs, config.num_heads)
    return same(theirs) if "norm" in ours or kind == "bias" else transposed(theirs)


def supported(values: Values) -> dict[str, tuple[Any, ...]]:
    """Return the values of config.json with which GPT-1 computes what this model computes."""
    return {"afn": ("gelu",), "layer_norm_epsilon": (NORM_EPSILON,), **supported_in_block(values)}


def supported_in_block(values: Values) -> dict[str, tuple[Any, ...]]:
    """Return those that GPT-1 and GPT-2 share."""
    width = values.get("n_embd", 768)
    return {
        "n_inner": (None, 4 * width if isinstance(width, int) else None),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    }


OPENAI_GPT = Family(
    model=OpenAIGPT,
    stored_parameter=stored_parameter,
    hugging_face=HuggingFaceConfig(
        architecture="OpenAIGPTLMHeadModel",
        model_type="openai-gpt",
        prefix="transformer.",
        keys=CONFIG_KEYS,
        defaults={"vocab_size": 40478},
        fixed={"afn": "gelu", **CONFIG_FIXED},
        supported=supported,
    ),
)
