"""Build a token folder from books: run the steps of `python -m data_prep build` in order."""

import hashlib
import shutil
from contextlib import closing
from pathlib import Path

from data_prep.corpus import Corpus, collect, sample_lines, split_documents
from data_prep.jobs import CleanDocument, EncodeJob, encode_part, grouped
from data_prep.pool import Pool
from data_prep.report import Progress
from data_prep.sources import Source, find_sources
from gpt_dist.data.tokenizers.folder import SENTENCEPIECE_NAME, open_tokenizer, tokenizer_file
from gpt_dist.data.tokenizers.tokenizer import SPECIAL_TOKENS, Tokenizer, train_sentencepiece
from gpt_dist.data.tokens import folder as tokens
from gpt_dist.data.tokens.folder import (
    BuildOptions,
    SplitEntry,
    TokenizerEntry,
    TokenizerName,
    TokenManifest,
)
from gpt_dist.data.tokens.shards import token_dtype
from gpt_dist.errors import DataError
from gpt_dist.files.entries import file_sha256
from gpt_dist.files.folders import new_folder

# A split is encoded as about this many shards, each of clean bytes within these bounds.
_PARTS = 64
_MIN_PART_BYTES = 1 << 20
_MAX_PART_BYTES = 256 << 20


def build(
    inputs: list[Path],
    output: Path,
    options: BuildOptions,
    tokenizer: Path | None,
    pool: Pool,
    progress: Progress,
) -> TokenManifest:
    """Make a token folder, every byte of which depends on inputs, options and tokenizer alone.

    Args:
        inputs: The files and folders to read.
        output: The folder to make. It must be absent or empty.
        options: The choices of the user.
        tokenizer: A folder whose tokenizer is used, or None to train a tokenizer.
        pool: The worker processes.
        progress: The display of the stages.

    Raises:
        DataError: An input, an option or the disk is at fault. Nothing is left behind.
    """
    with new_folder(output, DataError, "about twice the size of the unpacked text") as folder:
        sources, skipped = find_sources(inputs)
        entries = _hash_sources(sources, pool, progress)
        work = folder / "work"
        work.mkdir()
        corpus = collect(sources, skipped, work, options, pool, progress)
        documents = split_documents(corpus.kept, options.validation_fraction)
        if tokenizer:
            name, content = tokenizer_file(tokenizer)
        else:
            name, content = _train_tokenizer(documents["train"], options, progress)
        (folder / name).write_bytes(content)
        splits = {
            split: _encode_split(documents[split], folder / split, folder, pool, progress)
            for split in tokens.SPLITS
        }
        shutil.rmtree(work)
        digest = hashlib.sha256(content).hexdigest()
        used = TokenizerEntry(name=name, bytes=len(content), sha256=digest)
        manifest = _manifest(options, entries, corpus, splits, used, open_tokenizer(folder))
        text = manifest.model_dump_json(indent=1) + "\n"
        (folder / tokens.MANIFEST_NAME).write_bytes(text.encode())
    return manifest


def _hash_sources(
    sources: list[Source], pool: Pool, progress: Progress
) -> tuple[tokens.SourceEntry, ...]:
    sizes = [source.path.stat().st_size for source in sources]
    entries = []
    with (
        progress.stage("hashing sources", "bytes", sum(sizes)) as advance,
        closing(pool.map(file_sha256, (source.path for source in sources))) as digests,
    ):
        for source, size, digest in zip(sources, sizes, digests, strict=True):
            entries.append(tokens.SourceEntry(name=source.name, bytes=size, sha256=digest))
            advance(size)
    return tuple(entries)


def _train_tokenizer(
    documents: list[CleanDocument], options: BuildOptions, progress: Progress
) -> tuple[TokenizerName, bytes]:
    assert options.tokenizer_sample_mb is not None
    assert options.seed is not None
    lines = sample_lines(documents, options.tokenizer_sample_mb * 1_000_000, options.seed)
    with progress.stage("training the tokenizer", "tokens", None) as advance:
        model = train_sentencepiece(lines, options.vocab_size)
        advance(options.vocab_size)
    return SENTENCEPIECE_NAME, model


def _encode_split(
    documents: list[CleanDocument], folder: Path, tokenizer: Path, pool: Pool, progress: Progress
) -> SplitEntry:
    folder.mkdir()
    size = sum(document.size for document in documents)
    part_size = min(max(size // _PARTS, _MIN_PART_BYTES), _MAX_PART_BYTES)
    jobs = [
        EncodeJob(part, tokenizer, folder / f"shard-{number:05d}")
        for number, part in enumerate(
            grouped(((document, document.size) for document in documents), part_size)
        )
    ]
    shards = []
    with (
        progress.stage(f"encoding {folder.name}", "bytes", size) as advance,
        closing(pool.map(encode_part, jobs)) as results,
    ):
        for job, shard in zip(jobs, results, strict=True):
            shards.append(shard)
            advance(sum(document.size for document in job.documents))
    return SplitEntry(
        tokens=sum(shard.tokens for shard in shards),
        documents=len(documents),
        shards=tuple(shards),
    )


def _manifest(
    options: BuildOptions,
    sources: tuple[tokens.SourceEntry, ...],
    corpus: Corpus,
    splits: dict[str, SplitEntry],
    used: TokenizerEntry,
    tokenizer: Tokenizer,
) -> TokenManifest:
    ids = (tokenizer.end_of_text, tokenizer.start, tokenizer.delimiter, tokenizer.extract)
    return TokenManifest(
        format=tokens.FORMAT,
        version=tokens.VERSION,
        vocab_size=tokenizer.full_vocab_size,
        dtype=token_dtype(tokenizer.full_vocab_size).name,
        special_tokens=dict(zip(SPECIAL_TOKENS, ids, strict=True)),
        tokenizer=used,
        options=options,
        totals=tokens.Totals(
            source_bytes=sum(source.bytes for source in sources),
            documents_read=corpus.documents_read,
            documents_kept=len(corpus.kept),
            decoded_as_latin1=corpus.decoded_as_latin1,
            cleaned_bytes=sum(document.size for document in corpus.kept),
            tokens=sum(split.tokens for split in splits.values()),
        ),
        sources=sources,
        dropped=corpus.dropped,
        drops=tuple(corpus.drops),
        splits=splits,
    )
