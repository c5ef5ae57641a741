"""Make the manifest of a token folder, which accounts for every source."""

from data_prep.build.selection import Selection, SourceCount
from data_prep.manifest import BuildManifest, BuildOptions, SourceEntry, Totals
from data_prep.shards import token_dtype
from data_prep.sources import Source
from gpt_dist.data.tokenizers.tokenizer import SPECIAL_TOKENS, Tokenizer
from gpt_dist.data.tokens import folder as tokens
from gpt_dist.data.tokens.folder import SplitEntry, TokenizerEntry


def make_manifest(
    options: BuildOptions,
    sources: list[Source],
    hashes: list[str],
    corpus: Selection,
    splits: dict[str, SplitEntry],
    used: TokenizerEntry,
    tokenizer: Tokenizer,
) -> BuildManifest:
    """Return the manifest.

    Args:
        options: The choices of the user.
        sources: The files that were read.
        hashes: The SHA-256 of each.
        corpus: What became of their documents.
        splits: The shards.
        used: The file of the tokenizer.
        tokenizer: The tokenizer itself.
    """
    ids = (tokenizer.end_of_text, tokenizer.start, tokenizer.delimiter, tokenizer.extract)
    entries = [
        _source_entry(source, digest, corpus.sources.get(source, SourceCount()))
        for source, digest in zip(sources, hashes, strict=True)
    ]
    return BuildManifest(
        format=tokens.FORMAT,
        version=tokens.VERSION,
        vocab_size=tokenizer.full_vocab_size,
        dtype=token_dtype(tokenizer.full_vocab_size).name,
        special_tokens=dict(zip(SPECIAL_TOKENS, ids, strict=True)),
        tokenizer=used,
        options=options,
        totals=Totals(
            source_bytes=sum(entry.bytes for entry in entries),
            documents_read=sum(entry.documents_read for entry in entries),
            documents_kept=len(corpus.kept),
            text_bytes=corpus.text_bytes,
            all_cleaned_bytes=sum(place.size for place in corpus.places),
            cleaned_bytes=sum(document.size for document in corpus.kept),
            tokens=sum(split.tokens for split in splits.values()),
        ),
        sources=tuple(entries),
        dropped=dict(corpus.dropped),
        drops=tuple(corpus.drops),
        read_as={encoding: tuple(names) for encoding, names in corpus.read_as.items()},
        effects=corpus.effects,
        passages=corpus.passages,
        splits=splits,
    )


def _source_entry(source: Source, digest: str, count: SourceCount) -> SourceEntry:
    return SourceEntry(
        name=source.name,
        bytes=source.path.stat().st_size,
        sha256=digest,
        target=source.target,
        documents_read=count.read,
        documents_kept=count.kept,
        left_out=dict(count.left_out),
        encodings=dict(count.encodings),
    )
