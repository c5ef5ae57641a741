"""Data of a fine-tuning run: the encoded splits of a task."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt_dist.config import Config, TaskConfig
from gpt_dist.data.tasks.examples import EncodedSplit, encode_split
from gpt_dist.data.tasks.reading import DEV, Example, present_splits, read_split
from gpt_dist.data.tasks.transforms import Transformation
from gpt_dist.data.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Splits:
    """The data of a task, without test splits that are missing."""

    examples: dict[str, list[Example]]
    encoded: dict[str, EncodedSplit]
    validation: dict[str, EncodedSplit]
    """The dev splits, each up to validation.max_samples."""


def read_splits(config: Config, task: TaskConfig, folder: Path, tokenizer: Tokenizer) -> Splits:
    """Read and encode every split that exists; raises DataError or ConfigError for bad input."""
    examples = {name: read_split(folder, task, name) for name in present_splits(folder, task)}
    transformation = Transformation(task.form, tokenizer, config.model.sequence_length)
    encoded = {name: encode_split(split, transformation) for name, split in examples.items()}
    limit = config.validation.max_samples
    validation = {
        name: encode_split(examples[name][:limit], transformation) if limit else split
        for name, split in encoded.items()
        if name.startswith(DEV)
    }
    return Splits(examples, encoded, validation)


def digest_of(encoded: dict[str, EncodedSplit]) -> str:
    """Return the SHA-256, in hexadecimal, of the splits that a trained model depends on."""
    digest = hashlib.sha256()
    for name, split in encoded.items():
        if name.startswith("test"):
            continue
        digest.update(name.encode())
        for array in (split.tokens, split.sequence_starts, split.example_starts, split.targets):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
