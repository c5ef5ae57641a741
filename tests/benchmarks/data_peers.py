"""Prepare text with other libraries: datatrove's pipeline, and the way of Megatron's script.

Run as a program, it makes tokens with datatrove: FOLDER OUTPUT WORKERS TOKENIZER.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import sentencepiece


def absent_packages() -> str:
    """Return which packages of datatrove's pipeline are not installed."""
    names = ("datatrove", "xxhash")
    return ", ".join(name for name in names if importlib.util.find_spec(name) is None)


def rate_of_megatron(
    rate: Callable[[Callable[[str], object]], float],
    processor: sentencepiece.SentencePieceProcessor,
    folder: Path,
) -> float:
    """Measure encoding into an indexed dataset as Megatron-LM's tools/preprocess_data.py does."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    with tempfile.TemporaryDirectory(dir=folder) as directory:
        builder = IndexedDatasetBuilder(f"{directory}/tokens.bin", dtype=np.uint16)

        def add(text: str) -> None:
            ids = processor.encode(text)
            builder.add_document(torch.IntTensor(ids), [len(ids)])

        return rate(add)


def read_books(
    folder: Path, _documents: object = None, rank: int = 0, world_size: int = 1
) -> Iterator[object]:
    """Yield the text files of one of datatrove's tasks."""
    from datatrove.data import Document

    for file in sorted(folder.rglob("*.txt"))[rank::world_size]:
        text = file.read_text(encoding="utf-8", errors="replace")
        yield Document(text=text, id=file.name)


def run_datatrove(folder: Path, output: Path, workers: int, tokenizer: str) -> None:
    """Find near-duplicates with MinHash, and tokenize what remains."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.tokens import MegatronDocumentTokenizer
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):
        """Split at spaces: the usual tokenizer, spaCy's, is slower and refuses whole books."""

        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        sent_tokenize = span_tokenize = word_tokenize

    signatures, buckets, removed = (f"{output}/{name}" for name in ("sigs", "buckets", "removed"))
    read = partial(read_books, folder)
    end_of_text = "<|endoftext|>"
    write = MegatronDocumentTokenizer(
        f"{output}/tokens", tokenizer_name_or_path=tokenizer, eos_token=end_of_text
    )
    for tasks, steps in (
        (workers, [read, MinhashDedupSignature(signatures, language=Words())]),
        (MinhashConfig().num_buckets, [MinhashDedupBuckets(signatures, buckets)]),
        (1, [MinhashDedupCluster(buckets, removed)]),
        (workers, [read, MinhashDedupFilter(removed), write]),
    ):
        LocalPipelineExecutor(
            steps, tasks=tasks, workers=workers, logging_dir=tempfile.mkdtemp(dir=output)
        ).run()


if __name__ == "__main__":
    run_datatrove(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
