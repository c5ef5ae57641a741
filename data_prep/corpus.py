"""Decide what the corpus is: clean every source, drop what must go, split, and take a sample."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.documents import Document, SourceReader
from data_prep.jobs import CleanDocument, CleanJob, clean_batch
from data_prep.pool import Pool
from data_prep.report import Progress
from data_prep.sources import Source
from gpt_dist.data.tokens.folder import BuildOptions, DropEntry
from gpt_dist.errors import DataError

_BATCH_BYTES = 2 << 20
_BLOCK_BYTES = 64 << 10
_NAMED_DROPS = 1000

SKIPPED = "not a text, jsonl or archive file"
BINARY = "binary"
EMPTY = "empty"
TOO_SHORT = "too short"
DUPLICATE = "duplicate"


@dataclass
class Corpus:
    """The documents kept, in order, and the account of the others."""

    kept: list[CleanDocument] = field(default_factory=list)
    documents_read: int = 0
    decoded_as_latin1: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    drops: list[DropEntry] = field(default_factory=list)  # the first thousand, by name

    def drop(self, name: str, reason: str) -> None:
        """Count a document or file that is left out."""
        self.dropped[reason] += 1
        if len(self.drops) < _NAMED_DROPS:
            self.drops.append(DropEntry(name=name, reason=reason))


def collect(
    sources: list[Source],
    skipped: list[str],
    work: Path,
    options: BuildOptions,
    pool: Pool,
    progress: Progress,
) -> Corpus:
    """Clean all documents into files of `work`, and keep the first of each long enough text.

    Raises DataError where nothing is left, naming the reasons.
    """
    corpus = Corpus()
    reader = SourceReader(options.text_field)
    seen: set[bytes] = set()
    jobs = (
        CleanJob(batch, work / f"{number:08d}.txt", options.lowercase)
        for number, batch in enumerate(_batches(sources, reader))
    )
    with (
        progress.stage("cleaning", "bytes", _known_size(sources)) as advance,
        closing(pool.map(clean_batch, jobs)) as batches,
    ):
        for batch in batches:
            for document in batch.documents:
                _judge(document, corpus, seen, options.min_characters)
            advance(batch.source_bytes)
    for name in [*skipped, *reader.skipped]:
        corpus.drop(name, SKIPPED)
    if not corpus.kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in corpus.dropped.items())
        raise DataError(
            f"no document is left to train on ({reasons or 'no file found'}); give more text, or "
            f"a smaller --min-characters than {options.min_characters}"
        )
    return corpus


def split_documents(
    documents: list[CleanDocument], fraction: float
) -> dict[str, list[CleanDocument]]:
    """Training and validation documents, chosen by the hash of their text alone.

    Validation are those with hash / 2^256 below `fraction`. Where none is, but two documents or
    more there are and `fraction` is not 0, it is the one of lowest hash; where all are, the one of
    highest hash goes to training.
    """
    bound = int(fraction * 2**64) << 192
    chosen = {doc.digest for doc in documents if int.from_bytes(doc.digest, "big") < bound}
    if not chosen and fraction and len(documents) > 1:
        chosen = {min(doc.digest for doc in documents)}
    if len(chosen) == len(documents):
        chosen.remove(max(chosen))
    return {
        "train": [doc for doc in documents if doc.digest not in chosen],
        "validation": [doc for doc in documents if doc.digest in chosen],
    }


def sample_lines(documents: list[CleanDocument], size: int, seed: int) -> Iterator[str]:
    """Paragraphs to train a tokenizer on: all, or about `size` bytes of blocks drawn by `seed`."""
    blocks = [
        (document, begin)
        for document in documents
        for begin in range(0, document.size, _BLOCK_BYTES)
    ]
    if sum(document.size for document in documents) > size:
        count = min(len(blocks), -(-size // _BLOCK_BYTES))
        drawn = random.Random(seed).sample(range(len(blocks)), count)
        blocks = [blocks[index] for index in sorted(drawn)]
    for document, begin in blocks:
        for line in document.lines(begin, begin + _BLOCK_BYTES):
            yield line.decode()


def _judge(document: CleanDocument, corpus: Corpus, seen: set[bytes], min_characters: int) -> None:
    corpus.documents_read += 1
    corpus.decoded_as_latin1 += document.latin1
    if document.binary:
        corpus.drop(document.name, BINARY)
    elif not document.size:
        corpus.drop(document.name, EMPTY)
    elif document.characters < min_characters:
        corpus.drop(document.name, TOO_SHORT)
    elif document.digest in seen:
        corpus.drop(document.name, DUPLICATE)
    else:
        seen.add(document.digest)
        corpus.kept.append(document)


def _batches(
    sources: list[Source], reader: SourceReader
) -> Iterator[tuple[Source | Document, ...]]:
    batch: list[Source | Document] = []
    size = 0
    for item, item_size in _items(sources, reader):
        batch.append(item)
        size += item_size
        if size >= _BATCH_BYTES:
            yield tuple(batch)
            batch, size = [], 0
    if batch:
        yield tuple(batch)


def _items(sources: list[Source], reader: SourceReader) -> Iterator[tuple[Source | Document, int]]:
    """What workers clean, with its size: small text files unread, all else as documents."""
    for source in sources:
        if source.is_small_text():
            yield source, source.path.stat().st_size
        else:
            for document in reader.read(source):
                yield document, len(document.data)


def _known_size(sources: list[Source]) -> int | None:
    """Bytes of text to come; None where some of it is packed."""
    if all(source.is_plain() for source in sources):
        return sum(source.path.stat().st_size for source in sources)
    return None
