"""Divide a token folder into parts for workers, and read the documents of a part."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from gpt_dist.data.tokenizers.folder import FolderTokenizer, open_tokenizer
from gpt_dist.data.tokens.folder import SPLITS, SplitName, TokenFolder
from gpt_dist.data.tokens.shards import Ids

BLOCK_TOKENS = 1 << 18
"""Number of ids that are read at a time."""
OVERLAP_TOKENS = 1 << 10
"""Number of ids that a piece of a document repeats of the piece before it."""


@dataclass(frozen=True)
class TokenPart:
    """The ids `begin` to `end` of one split of the folder at `path`."""

    path: Path
    split: SplitName
    begin: int
    end: int


@dataclass(frozen=True)
class DocumentPiece:
    """Ids of one document, without its end-of-text token, or a part of them."""

    document: int
    """The place of the document in its part."""
    ids: Ids
    goes_on: bool
    """Whether another piece of the document follows."""
    continues: bool
    """Whether the document began in an earlier piece."""


def divide(folder: TokenFolder, size: int) -> list[TokenPart]:
    """Divide the ids of both splits into parts of at most `size`."""
    return [
        TokenPart(folder.path, split, begin, min(begin + size, tokens))
        for split in SPLITS
        for tokens in [folder.manifest.splits[split].tokens]
        for begin in range(0, tokens, size)
    ]


@lru_cache(maxsize=1)
def reopened(path: Path) -> TokenFolder:
    """Open a token folder, or return the one that was opened last."""
    return TokenFolder(path)


@lru_cache(maxsize=1)
def tokenizer_of(path: Path) -> FolderTokenizer:
    """Open the tokenizer of a folder, or return the one that was opened last."""
    return open_tokenizer(path)


def read_blocks(part: TokenPart) -> Iterator[Ids]:
    """Yield the ids of a part in blocks."""
    stream = reopened(part.path).split(part.split)
    for begin in range(part.begin, part.end, BLOCK_TOKENS):
        yield stream.read(begin, min(begin + BLOCK_TOKENS, part.end))


def read_documents(part: TokenPart, end_of_text: int) -> Iterator[DocumentPiece]:
    """Yield the documents that begin in a part, long ones in pieces that overlap."""
    stream = reopened(part.path).split(part.split)
    position, document = part.begin, 0
    # Whether the document at hand began in this part.
    ours = position == 0 or stream.read(position - 1, position)[0] == end_of_text
    before = np.empty(0, np.int64)  # the last ids of the document at hand
    while position < stream.num_tokens and (position < part.end or (ours and len(before))):
        block = stream.read(position, min(position + BLOCK_TOKENS, stream.num_tokens))
        first = 0
        for last in [*np.flatnonzero(block == end_of_text).tolist(), len(block)]:
            ids = np.concatenate([before, block[first:last]])
            if ours and len(ids):
                yield DocumentPiece(document, ids, last == len(block), len(before) > 0)
            before = ids[-OVERLAP_TOKENS:] if ours and last == len(block) else ids[:0]
            first = last + 1
            document += 1 if last < len(block) else 0
            if last < len(block):
                ours = position + first < part.end
                if not ours:
                    return
        position += len(block)
