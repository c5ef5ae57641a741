"""Encode the documents of both splits in parts, and put the parts together as shards."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.build.documents import CleanDocument
from data_prep.build.jobs import PART_BYTES, Encoded, EncodeJob, ShardJob, grouped
from data_prep.build.work import Work
from data_prep.progress import Progress
from data_prep.shards import SUFFIXES, token_dtype
from gpt_dist.data.tokenizers.folder import open_tokenizer
from gpt_dist.data.tokens.folder import SPLITS, SplitEntry, TokenizerEntry
from gpt_dist.data.tokens.shards import ShardEntry

Parts = dict[str, list[tuple[EncodeJob, Encoded]]]
"""The encoded parts of each split, in order."""


def encode_splits(
    documents: dict[str, list[CleanDocument]],
    tokenizer: TokenizerEntry,
    shard_mb: int,
    work: Work,
    result: Path,
    progress: Progress,
) -> dict[str, SplitEntry]:
    """Write the shards of both splits into the folder `result`.

    Args:
        documents: The documents of each split.
        tokenizer: The tokenizer, which lies in the folder `tokenizer` of the work.
        shard_mb: Size in megabytes from which on a shard is closed.
        work: The work that is done.
        result: The token folder to make.
        progress: The display of the stages.
    """
    parts = _encode(documents, tokenizer, work, progress)
    dtype = token_dtype(open_tokenizer(work.folder / "tokenizer").full_vocab_size)
    jobs = list(_shard_jobs(parts, dtype, shard_mb * 1_000_000, work))
    size = sum(part.tokens for split in parts.values() for _, part in split) * dtype.itemsize
    with progress.stage("writing shards", "bytes", size) as advance:

        def written(job: ShardJob) -> None:
            advance(job.prefix.with_suffix(".bin").stat().st_size)

        shards = work.results(jobs, written)
    _place(jobs, result)
    return {split: _entry(split, parts[split], shards) for split in SPLITS}


def _encode(
    documents: dict[str, list[CleanDocument]],
    tokenizer: TokenizerEntry,
    work: Work,
    progress: Progress,
) -> Parts:
    jobs = {
        split: [
            EncodeJob(
                documents=part,
                tokenizer=work.folder / "tokenizer",
                prefix=work.prefix("ids", tokenizer.sha256, [one.digest for one in part]),
            )
            for part in grouped(((one, one.size) for one in documents[split]), PART_BYTES)
        ]
        for split in SPLITS
    }
    size = sum(one.size for split in documents.values() for one in split)
    with progress.stage("encoding", "bytes", size) as advance:

        def done(job: EncodeJob) -> None:
            advance(sum(document.size for document in job.documents))

        results = iter(work.results([job for split in SPLITS for job in jobs[split]], done))
    return {split: [(job, next(results)) for job in jobs[split]] for split in SPLITS}


def _shard_jobs(
    parts: Parts, dtype: np.dtype[np.integer], size: int, work: Work
) -> Iterator[ShardJob]:
    for split in SPLITS:
        sized = ((job.prefix, part.tokens * dtype.itemsize) for job, part in parts[split])
        for number, group in enumerate(grouped(sized, size)):
            name = f"{split}/shard-{number:05d}"
            prefix = work.prefix("shards", name, dtype.name, [part.name for part in group])
            yield ShardJob(parts=group, dtype=dtype.name, name=name, prefix=prefix)


def _entry(
    split: str, parts: list[tuple[EncodeJob, Encoded]], shards: list[ShardEntry]
) -> SplitEntry:
    return SplitEntry(
        tokens=sum(part.tokens for _, part in parts),
        documents=sum(part.documents for _, part in parts),
        shards=tuple(shard for shard in shards if shard.name.startswith(f"{split}/")),
    )


def _place(jobs: list[ShardJob], result: Path) -> None:
    """Give the files of the shards their names in the token folder."""
    for split in SPLITS:
        (result / split).mkdir(parents=True)
    for job in jobs:
        for suffix in SUFFIXES:
            file, name = job.prefix.with_suffix(suffix), (result / job.name).with_suffix(suffix)
            try:
                os.link(file, name)
            except OSError:  # a file system without second names
                shutil.copyfile(file, name)
