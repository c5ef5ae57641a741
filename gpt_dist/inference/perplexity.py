"""Score a model by its perplexity on a token folder's held-out text, or on text files."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from gpt_dist.checkpoint.opened import OpenedModel
from gpt_dist.config import IGNORED_LABEL
from gpt_dist.data.tokens.folder import TokenFolder
from gpt_dist.errors import ConfigError, DataError
from gpt_dist.files.entries import file_sha256
from gpt_dist.model import GPT
from gpt_dist.progress import Report, silent
from gpt_dist.topology import Topology

Read = Callable[[int, int], NDArray[Any]]
"""Function that returns tokens [start, stop) of a stream."""


@dataclass(frozen=True)
class Texts:
    """Streams of tokens to score, and the size of their text if it is known."""

    streams: list[tuple[int, Read]]
    """Number of tokens of each stream, and the function that reads them."""
    bytes: int | None = None
    words: int | None = None


def open_texts(files: Sequence[Path], opened: OpenedModel) -> Texts:
    """Encode text files; raise DataError if one cannot be read or has no token to predict."""
    # As in training, each starts with the end-of-text token. The released GPT-1 has no such token.
    before = np.array([] if opened.end_of_text is None else [opened.end_of_text], dtype=np.int32)
    texts, streams = [], []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: not a readable UTF-8 text ({error}); give another") from None
        if not text.strip():
            raise DataError(f"{file}: holds no text; leave it out")
        ids = np.concatenate([before, opened.tokenizer.encode(text)])
        if len(ids) < 2:
            raise DataError(f"{file}: has no token that can be predicted; leave it out")
        texts.append(text)
        streams.append((len(ids), _reader(ids)))
    return Texts(
        streams,
        bytes=sum(len(text.encode()) for text in texts),
        words=sum(len(text.split()) for text in texts),
    )


def open_validation_split(path: Path, opened: OpenedModel) -> Texts:
    """Open a token folder's held-out tokens; raise DataError if another tokenizer made them."""
    folder = TokenFolder(path)
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
    return Texts([(stream.num_tokens, stream.read)])


def choose_stride(opened: OpenedModel, stride: int | None) -> int:
    """Return the tokens from one window to the next; raise ConfigError beyond the context."""
    length = opened.config.sequence_length
    if stride is not None and stride > length:
        raise ConfigError(f"--stride: {stride} is more than the context of {length}; give less")
    return stride or length


def score_texts(
    model: GPT,
    texts: Texts,
    stride: int,
    batch_size: int,
    topology: Topology,
    report: Report = silent,
) -> dict[str, float]:
    """Return mean loss and perplexity, and for texts figures that do not depend on a tokenizer.

    Every process must call this. Data-parallel ones share the windows, and all get the same.
    """
    group, total, num_tokens = topology.data_parallel_group, 0.0, 0
    for number, (length, read) in enumerate(texts.streams, 1):
        name = "scoring" if len(texts.streams) == 1 else f"text {number}"
        windows = SlidingWindows(length, model.config.sequence_length, stride)
        own = range(group.rank(), len(windows), group.size())
        losses = torch.zeros((), dtype=torch.float64, device=topology.device)
        for first in range(0, len(own), batch_size):
            batch = [windows.read(window, read) for window in own[first : first + batch_size]]
            losses += _total_loss(model, *map(np.stack, zip(*batch, strict=True)))
            report(name, first + len(batch), len(own))
        # After each text: a process without a window of short ones would wait too long at the end.
        dist.all_reduce(losses, group=group)
        total += float(losses)
        num_tokens += length - 1
    scores = {"tokens": num_tokens, "loss": total / num_tokens}
    scores["perplexity"] = _exp(scores["loss"])
    if texts.bytes and texts.words:
        scores["bits_per_byte"] = total / texts.bytes / math.log(2)
        scores["perplexity_per_word"] = _exp(total / texts.words)
    return scores


@dataclass(frozen=True)
class SlidingWindows:
    """Windows over a stream of `num_tokens` tokens, each `stride` further than the one before.

    A window predicts the tokens that no earlier one did. So every token but the stream's first is
    predicted once, from at least sequence_length - stride tokens before it, or all there are.
    """

    num_tokens: int
    sequence_length: int
    stride: int

    def __len__(self) -> int:
        beyond_first = max(0, self.num_tokens - 1 - self.sequence_length)
        return math.ceil(beyond_first / self.stride) + (self.num_tokens > 1)

    def read(self, number: int, read: Read) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return inputs and labels [T] of a window; labels not to predict are negative."""
        length, start = self.sequence_length, number * self.stride
        stop = min(start + length + 1, self.num_tokens)
        ids = read(start, stop)
        inputs = np.zeros(length, dtype=np.int64)
        labels = np.full_like(inputs, IGNORED_LABEL)
        inputs[: len(ids) - 1] = ids[:-1]
        known = length - self.stride if number else 0
        labels[known : len(ids) - 1] = ids[1 + known :]
        return inputs, labels


@torch.no_grad()
def _total_loss(model: GPT, inputs: NDArray[np.int64], labels: NDArray[np.int64]) -> Tensor:
    """Return the sum of the losses, in nats and fp64, of labels [B, T]."""
    device = next(model.parameters()).device
    targets = torch.from_numpy(labels).to(device)
    losses = model.token_losses(model(torch.from_numpy(inputs).to(device)), targets)  # [B, T]
    return (losses.double() * (targets != IGNORED_LABEL)).sum()


def _reader(ids: NDArray[Any]) -> Read:
    return lambda start, stop: ids[start:stop]


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
