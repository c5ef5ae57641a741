"""Read tokens through this project's loader and through megatron-core's GPTDataset."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from data_prep.shards import ShardWriter
from tests.unit.test_shards import write_manifest

SEQUENCE_LENGTH = 1024
BATCH_SIZE = 16
BATCHES = 100
VOCAB_SIZE = 50_000
_DOCUMENTS = 1000
SHARD = "train/shard-00000"
MODULES = (
    *("gpt_dist.data.batches", "gpt_dist.data.tokens.windows"),
    *("megatron.core.datasets.gpt_dataset", "torch.utils.data"),
)


def write_tokens(folder: Path, tokens: int, *, real: bool, vocab_size: int = VOCAB_SIZE) -> None:
    """Write a token folder of one shard, of random ids or, as a sparse file, of zeros."""
    (folder / SHARD).parent.mkdir(parents=True)
    writer = ShardWriter(folder / SHARD, np.dtype("<u2"))
    draws = np.random.default_rng(0)
    length = tokens // _DOCUMENTS
    for _ in range(_DOCUMENTS if real else 0):
        writer.write(draws.integers(0, vocab_size, length, dtype=np.uint16).tobytes())
    writer.add_lengths(np.full(_DOCUMENTS, length))
    entry = writer.close(SHARD).model_dump()
    if not real:
        entry["bin"]["bytes"] = 2 * tokens
        with (folder / SHARD).with_suffix(".bin").open("r+b") as file:
            file.truncate(2 * tokens)
    write_manifest(folder, vocab_size, [entry])


def _ours(folder: Path) -> Iterator[np.ndarray]:
    from gpt_dist.data.batches import micro_batches, prefetch
    from gpt_dist.data.tokens.folder import TokenFolder
    from gpt_dist.data.tokens.windows import ShuffledWindows, Windows

    windows = Windows(TokenFolder(folder).split("train"), SEQUENCE_LENGTH)
    samples = ShuffledWindows(windows, seed=0)
    numbers = micro_batches(0, BATCHES * BATCH_SIZE, BATCH_SIZE, 1, 0)
    for batch in prefetch(map(samples.batch, numbers)):
        yield batch.tokens


def _megatron(folder: Path) -> Iterator[np.ndarray]:
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split
    from torch.utils.data import DataLoader

    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=SEQUENCE_LENGTH,
        blend=([str(folder / SHARD)], None),
        split="1,0,0",
        path_to_cache=None,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        tokenizer=SimpleNamespace(vocab_size=VOCAB_SIZE, eod=0, pad=-1, unique_identifiers={}),
    )
    indexed = GPTDataset.build_low_level_dataset(str(folder / SHARD), config)
    documents = np.arange(_DOCUMENTS, dtype=np.int32)
    dataset = GPTDataset(indexed, str(folder / SHARD), documents, None, Split.train, config)
    for batch in DataLoader(dataset, batch_size=BATCH_SIZE):
        yield batch["tokens"].numpy()


def measure(side: str, folder: Path) -> dict[str, float]:
    """Return time and memory of the first batch, and M tokens a second, in a fresh process.

    The tokens are read from the disk, not from the memory in which writing left them.
    """
    with (folder / SHARD).with_suffix(".bin").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (side, folder))


def _measure(side: str, folder: Path) -> dict[str, float]:
    for module in MODULES:  # whose import is no part of the first batch
        import_module(module)
    read: Callable[[Path], Iterator[np.ndarray]] = _megatron if side == "megatron-core" else _ours
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _peak()
    begin = time.perf_counter()
    batches = read(folder)
    next(batches)
    seconds = time.perf_counter() - begin
    megabytes = _peak() - before
    begin = time.process_time()
    tokens = sum(next(batches).size for _ in range(BATCHES - 10))
    rate = tokens / 1e6 / (time.process_time() - begin)
    return {"seconds": seconds, "megabytes": megabytes, "rate": rate}


def _peak() -> float:
    """Return the peak of this process's resident memory in MB."""
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return int(status.split()[0]) / 1e3
