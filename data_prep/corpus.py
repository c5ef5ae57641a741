"""Make the corpus: clean all sources, drop documents, split them, and sample lines."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.documents import SourceReader
from data_prep.jobs import CleanDocument, CleanJob, clean_batch, grouped
from data_prep.pool import Pool
from data_prep.reading.documents import Document
from data_prep.report import Progress
from data_prep.sources import Source
from gpt_dist.data.tokens.folder import SPLITS, BuildOptions, DropEntry
from gpt_dist.errors import DataError

_BATCH_BYTES = 2 << 20
_BLOCK_BYTES = 64 << 10
_NAMED_DROPS = 1000
# Both splits are of the wanted size within this part of it.
_SPLIT_TOLERANCE = 1 / 3

SKIPPED = "not a text, jsonl or archive file"
TOO_SHORT = "too short"
DUPLICATE = "duplicate"


@dataclass
class Corpus:
    """Kept documents, in order, and counts of the others."""

    kept: list[CleanDocument] = field(default_factory=list)
    documents_read: int = 0
    decoded_as_latin1: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    drops: list[DropEntry] = field(default_factory=list)
    """The first thousand documents and files that were left out, in order."""

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
    """Clean all documents into files of the folder `work`, and choose those to keep.

    A document is kept if it is long enough and its text is the first of its kind. The names in
    `skipped` are counted as left out.

    Raises:
        DataError: A source is broken, or no document is left; the message names the reasons.
    """
    corpus = Corpus()
    reader = SourceReader(options.text_field)
    seen: set[bytes] = set()
    jobs = (
        CleanJob(batch, work / f"{number:08d}.txt", options.lowercase)
        for number, batch in enumerate(grouped(_items(sources, reader), _BATCH_BYTES))
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
    """Split documents into training and validation, by the hashes and sizes of their texts alone.

    Documents go to validation in the order of their hashes: all whose hash / 2^256 is below
    `fraction`, while their share of the bytes stays close to it, and more until the share is close.
    A document that is too large for that is cut, and only its end goes to validation.
    """
    total = sum(document.size for document in documents)
    wanted = fraction * total
    slack = min(wanted, total - wanted) * _SPLIT_TOLERANCE
    bound = int(fraction * 2**64) << 192
    held_bytes = 0
    parts: dict[bytes, dict[str, CleanDocument]] = {}  # of documents not for training alone
    for document in sorted(documents, key=lambda document: document.digest):
        enough = held_bytes >= wanted - slack
        fits = held_bytes + document.size <= wanted + slack
        if enough and not (fits and int.from_bytes(document.digest, "big") < bound):
            break
        if fits:
            parts[document.digest] = {"validation": document}
            held_bytes += document.size
        elif cut := document.cut(document.size - round(wanted - held_bytes), slack):
            parts[document.digest] = dict(zip(SPLITS, cut, strict=True))
            break
    return {
        split: [
            part[split]
            for document in documents
            if split in (part := parts.get(document.digest, {"train": document}))
        ]
        for split in SPLITS
    }


def sample_lines(documents: list[CleanDocument], size: int, seed: int) -> Iterator[str]:
    """Yield paragraphs to train a tokenizer on: all, or about `size` bytes drawn with `seed`."""
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
    if document.fault:
        corpus.drop(document.name, document.fault)
    elif document.characters < min_characters:
        corpus.drop(document.name, TOO_SHORT)
    elif document.digest in seen:
        corpus.drop(document.name, DUPLICATE)
    else:
        seen.add(document.digest)
        corpus.kept.append(document)


def _items(sources: list[Source], reader: SourceReader) -> Iterator[tuple[Source | Document, int]]:
    """Yield items for workers to clean, and their sizes: small text files, else read documents."""
    for source in sources:
        if source.is_small_text():
            yield source, source.path.stat().st_size
        else:
            for document in reader.read(source):
                yield document, len(document.content)


def _known_size(sources: list[Source]) -> int | None:
    """Return the number of bytes of text to read, or None if a source is packed."""
    if all(source.is_plain() for source in sources):
        return sum(source.path.stat().st_size for source in sources)
    return None
