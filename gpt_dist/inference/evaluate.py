"""Score a model by its perplexity on a token folder's held-out text, or on text files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from gpt_dist.checkpoint.opened import OpenedModel
from gpt_dist.data.tokens.folder import TokenFolder
from gpt_dist.data.tokens.shards import Ids
from gpt_dist.errors import ConfigError, DataError
from gpt_dist.files.entries import file_sha256
from gpt_dist.inference.perplexity import Read, total_loss
from gpt_dist.model import GPT
from gpt_dist.progress import Report, silent
from gpt_dist.topology import Topology


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
    """Return mean loss and perplexity, and for texts figures that do not depend on a tokenizer."""
    total, tokens = 0.0, 0
    for number, (length, read) in enumerate(texts.streams, 1):
        name = "scoring" if len(texts.streams) == 1 else f"text {number}"
        group = topology.data_parallel_group
        total += total_loss(model, length, read, stride, batch_size, group, partial(report, name))
        tokens += length - 1
    scores = {"tokens": tokens, "loss": total / tokens, "perplexity": _exp(total / tokens)}
    if texts.bytes and texts.words:
        scores["bits_per_byte"] = total / texts.bytes / math.log(2)
        scores["perplexity_per_word"] = _exp(total / texts.words)
    return scores


def _reader(ids: Ids) -> Read:
    return lambda start, stop: ids[start:stop]


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
