"""Make folders of small random models with a tokenizer of the bundled books, and damage files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_prep.tokenizer import train_sentencepiece
from gpt_dist.config import ResolvedModelConfig
from gpt_dist.data.tokenizers.folder import (
    SENTENCEPIECE_NAME,
    open_tokenizer,
    tokenizer_files,
)
from gpt_dist.errors import GptDistError
from gpt_dist.model import parameter_table, write_model_folder

SAMPLE_BOOKS = Path(__file__).parents[1] / "data_prep/sample_books"
VOCAB_SIZE = 500  # not a multiple of 128


def sample_texts() -> Iterator[str]:
    """Return the bundled books, one paragraph per line."""
    for file in sorted(SAMPLE_BOOKS.glob("*.txt")):
        paragraphs = file.read_text(encoding="utf-8").split("\n\n")
        yield "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


FAMILIES = ["openai_gpt", "gpt2", "llama"]
FAMILY_SIZES = {"llama": {"num_key_value_heads": 2, "feed_forward_size": 80}}


def small_config(family: str) -> ResolvedModelConfig:
    return ResolvedModelConfig(
        num_layers=2,
        hidden_size=48,
        num_heads=4,
        sequence_length=32,
        vocab_size=VOCAB_SIZE,
        family=family,
        **FAMILY_SIZES.get(family, {}),
    )


def from_hugging_face(
    state: Mapping[str, Tensor], config: ResolvedModelConfig
) -> dict[str, Tensor]:
    """Return full tensors of this model, the vocabulary padded with zeros, from a state dict."""
    return {
        name: spec.stored.join([state[theirs] for theirs in spec.stored.names])
        for name, spec in parameter_table(config).items()
    }


def to_hugging_face(
    tensors: Mapping[str, Tensor], config: ResolvedModelConfig
) -> dict[str, Tensor]:
    """Return the inverse of `from_hugging_face`, without the padding of the vocabulary."""
    return {
        theirs: tensor
        for name, spec in parameter_table(config).items()
        for theirs, tensor in zip(spec.stored.names, spec.stored.split(tensors[name]), strict=True)
    }


def random_weights(config: ResolvedModelConfig) -> dict[str, Tensor]:
    """Return full tensors, all of them random, even biases and gains."""
    draws = torch.Generator().manual_seed(0)
    state = {}
    for spec in parameter_table(config).values():
        for name, shape in zip(spec.stored.names, spec.stored_shapes, strict=True):
            mean = 0.1 if len(shape) == 1 else 0.0
            state[name] = mean + 0.2 * torch.randn(shape, generator=draws)
    return from_hugging_face(state, config)


@cache
def sample_tokenizer() -> bytes:
    """Return a sentencepiece model of VOCAB_SIZE tokens."""
    return train_sentencepiece(
        (line for text in sample_texts() for line in text.split("\n")), VOCAB_SIZE
    )


def count_refused(
    file: Path, read: Callable[[], object], error: type[GptDistError], count: int, size: int = 2**40
) -> int:
    """Count how often `read` raises `error` after a bit is flipped, or the file is cut there.

    The bits are drawn from the first `size` bytes. Any other exception of `read` is raised.
    """
    original = file.read_bytes()
    refused = 0
    bits = np.random.default_rng(0).integers(0, 8 * min(size, len(original)), count)
    for bit in bits.tolist():
        data = bytearray(original)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data if bit % 3 else data[: bit // 8])
        try:
            read()
        except error:
            refused += 1
    file.write_bytes(original)
    return refused


def write_model_folders(parent: Path) -> dict[str, Path]:
    """Write a model folder of each family, with random weights."""
    source = parent / "tokenizer"
    source.mkdir()
    (source / SENTENCEPIECE_NAME).write_bytes(sample_tokenizer())
    folders = {}
    for family in FAMILIES:
        config = small_config(family)
        folders[family] = parent / family
        read = random_weights(config).__getitem__
        end_of_text = open_tokenizer(source).end_of_text
        write_model_folder(
            folders[family], config, read, tokenizer_files(source), end_of_text=end_of_text
        )
    return folders
