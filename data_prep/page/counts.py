"""Count the tokens and the lengths of documents of a token folder, in parallel parts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.pool import Pool
from data_prep.shards import read_lengths
from data_prep.token_parts import TokenPart, divide, read_blocks, reopened
from gpt_dist.data.tokens.folder import SPLITS, TokenFolder

_PART_TOKENS = 1 << 25
BINS_AN_OCTAVE = 2

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Lengths:
    """Lengths of documents in tokens, each with its end-of-text token."""

    bins: Counts
    """Bin i counts the lengths from 2^(i / BINS_AN_OCTAVE) on, and below that of bin i + 1."""
    shortest: int
    longest: int


@dataclass(frozen=True)
class TokenCounts:
    """How often each token occurs in a token folder, and how long its documents are."""

    tokens: Counts
    """By id."""
    lengths: Lengths


def count_tokens(folder: TokenFolder, pool: Pool, advance: Callable[[int], None]) -> TokenCounts:
    """Count all tokens and documents of both splits.

    Args:
        folder: The token folder.
        pool: The workers. Each takes about 20 MB, and 30 bytes for each document of a shard.
        advance: Called with a number of tokens that were counted since.
    """
    tokens = np.zeros(folder.vocab_size, np.int64)
    parts = divide(folder, _PART_TOKENS)
    for part, counts in zip(parts, pool.map(_count_part, parts), strict=True):
        tokens += counts
        advance(part.end - part.begin)
    splits = folder.manifest.splits
    indexes = [folder.path / f"{shard.name}.idx" for key in SPLITS for shard in splits[key].shards]
    measured = [one for one in pool.map(_measure, indexes) if one.longest]
    bins = np.zeros(max((len(one.bins) for one in measured), default=1), np.int64)
    for one in measured:
        bins[: len(one.bins)] += one.bins
    shortest = min((one.shortest for one in measured), default=0)
    longest = max((one.longest for one in measured), default=0)
    return TokenCounts(tokens, Lengths(bins, shortest, longest))


def _count_part(part: TokenPart) -> Counts:
    vocab_size = reopened(part.path).vocab_size
    counts = np.zeros(vocab_size, np.int64)
    for ids in read_blocks(part):
        counts += np.bincount(ids, minlength=vocab_size)
    return counts


def _measure(index: Path) -> Lengths:
    lengths = read_lengths(index)
    lengths = lengths[lengths > 0]
    if not len(lengths):
        return Lengths(np.zeros(1, np.int64), 0, 0)
    bins = np.bincount(np.floor(np.log2(lengths) * BINS_AN_OCTAVE).astype(np.int64))
    return Lengths(bins, int(lengths.min()), int(lengths.max()))
