"""Score a model by its perplexity on a token folder's held-out text, or on text files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from gpt_dist.checkpoint.opened import OpenedModel
from gpt_dist.data.tokens.folder import TokenFolder, TokenStream
from gpt_dist.data.tokens.shards import Ids
from gpt_dist.errors import ConfigError, DataError
from gpt_dist.files.entries import file_sha256
from gpt_dist.inference.perplexity import SlidingWindows, total_loss
from gpt_dist.model import GPT
from gpt_dist.progress import Report, silent
from gpt_dist.topology import Topology

PerplexityScores = dict[str, float]


class Texts:
    """Text files as token streams; each starts with the end-of-text token, as in training."""

    def __init__(self, files: Sequence[Path], opened: OpenedModel) -> None:
        """Encode files; raise DataError if one cannot be read or has no token to predict."""
        tokenizer = opened.tokenizer
        texts = [_read_text(file) for file in files]
        # The released GPT-1 has no such token: its first token is context only.
        before = [] if opened.end_of_text is None else [opened.end_of_text]
        self.streams: list[Ids] = [
            np.concatenate([np.array(before, dtype=np.int32), tokenizer.encode(text)])
            for text in texts
        ]
        for file, ids in zip(files, self.streams, strict=True):
            if len(ids) < 2:
                raise DataError(f"{file}: has no token that can be predicted; leave it out")
        self.bytes = sum(len(text.encode()) for text in texts)
        self.words = sum(len(text.split()) for text in texts)


def open_validation_split(path: Path, opened: OpenedModel) -> TokenStream:
    """Open a token folder's held-out tokens; raise DataError if another tokenizer made them."""
    folder = TokenFolder.open(path)
    own = opened.tokenizer_folder / folder.manifest.tokenizer.name
    differs = own.is_file() and file_sha256(own) != folder.manifest.tokenizer.sha256
    if differs or folder.vocab_size != opened.config.vocab_size:
        raise DataError(
            f"{path}: its {folder.vocab_size} tokens are of another tokenizer than the model's "
            f"{opened.config.vocab_size}; give the token folder that the model was trained on, or "
            "score text files with --text"
        )
    stream = folder.split("validation")
    if stream.num_tokens < 2:
        raise DataError(f"{path}: holds out no text; score text files with --text")
    return stream


def choose_stride(opened: OpenedModel, stride: int | None) -> int:
    """Return the tokens from one window to the next; raise ConfigError beyond the context."""
    length = opened.config.sequence_length
    if stride is not None and stride > length:
        raise ConfigError(
            f"--stride: {stride} is more than the model's {length} tokens of context, and would "
            "leave tokens out; give less"
        )
    return stride or length


def score_tokens(
    model: GPT,
    stream: TokenStream,
    stride: int,
    batch_size: int,
    topology: Topology,
    report: Report = silent,
) -> PerplexityScores:
    """Return mean loss and perplexity of a split."""
    windows = SlidingWindows(stream.num_tokens, model.config.sequence_length, stride)
    group = topology.data_parallel_group
    total = total_loss(model, windows, stream.read, batch_size, group, partial(report, "scoring"))
    return _per_token(total, stream.num_tokens - 1)


def score_texts(
    model: GPT,
    texts: Texts,
    stride: int,
    batch_size: int,
    topology: Topology,
    report: Report = silent,
) -> PerplexityScores:
    """Return mean loss and perplexity of texts, with figures that do not depend on a tokenizer."""
    total, tokens = 0.0, 0
    for number, ids in enumerate(texts.streams, 1):
        windows = SlidingWindows(len(ids), model.config.sequence_length, stride)
        total += total_loss(
            model,
            windows,
            lambda start, stop, ids=ids: ids[start:stop],  # type: ignore[misc]
            batch_size,
            topology.data_parallel_group,
            partial(report, "scoring" if len(texts.streams) == 1 else f"text {number}"),
        )
        tokens += len(ids) - 1
    return {
        **_per_token(total, tokens),
        "bits_per_byte": total / texts.bytes / math.log(2),
        "perplexity_per_word": _exp(total / texts.words),
    }


def _per_token(total: float, tokens: int) -> PerplexityScores:
    return {"tokens": tokens, "loss": total / tokens, "perplexity": _exp(total / tokens)}


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _read_text(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a readable UTF-8 text ({error}); give another") from None
    if not text.strip():
        raise DataError(f"{file}: holds no text; leave it out")
    return text
