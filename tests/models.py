"""Small random models as folders, with a tokenizer made of the bundled books."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from gpt_dist.config import ModelConfig
from gpt_dist.data.tokenizer import train_sentencepiece
from gpt_dist.data.tokenizer_files import SENTENCEPIECE_NAME, tokenizer_files
from gpt_dist.model import from_hugging_face, write_model_folder
from gpt_dist.model.weights import hugging_face_names, hugging_face_shapes

SAMPLE_BOOKS = Path(__file__).parents[1] / "data_prep/sample_books"
VOCAB_SIZE = 500  # no multiple of 128


def sample_texts() -> Iterator[str]:
    """The bundled books, a paragraph a line."""
    for file in sorted(SAMPLE_BOOKS.glob("*.txt")):
        paragraphs = file.read_text(encoding="utf-8").split("\n\n")
        yield "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def small_config(norm_position: str) -> ModelConfig:
    return ModelConfig(
        num_layers=2,
        hidden_size=48,
        num_heads=4,
        sequence_length=32,
        vocab_size=VOCAB_SIZE,
        norm_position="pre" if norm_position == "pre" else "post",
    )


def random_weights(config: ModelConfig) -> dict[str, Tensor]:
    """Full tensors, every one random, biases and gains too."""
    draws = torch.Generator().manual_seed(0)
    names = hugging_face_names(config)
    state = {}
    for ours, shape in hugging_face_shapes(config).items():
        mean = 0.1 if len(shape) == 1 else 0.0
        state[names[ours]] = mean + 0.2 * torch.randn(shape, generator=draws)
    return from_hugging_face(state, config)


@cache
def sample_tokenizer() -> bytes:
    """A sentencepiece model of VOCAB_SIZE tokens."""
    return train_sentencepiece(
        (line for text in sample_texts() for line in text.split("\n")), VOCAB_SIZE
    )


def write_model_folders(parent: Path) -> dict[str, Path]:
    """A model folder for each position of LayerNorm, with random weights."""
    source = parent / "tokenizer"
    source.mkdir()
    (source / SENTENCEPIECE_NAME).write_bytes(sample_tokenizer())
    folders = {}
    for norm_position in ("post", "pre"):
        config = small_config(norm_position)
        folders[norm_position] = parent / norm_position
        read = random_weights(config).__getitem__
        write_model_folder(folders[norm_position], config, read, tokenizer_files(source))
    return folders
