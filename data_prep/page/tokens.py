"""Sections of the page about tokens and samples, from counts of the shards."""

from collections.abc import Iterator

import numpy as np

from data_prep.manifest import BuildManifest
from data_prep.page.charts import Point, bars, histogram, log_curve
from data_prep.page.counts import BINS_AN_OCTAVE, Counts, Lengths, TokenCounts
from data_prep.page.html import Html, code, paragraph, section, table, text
from data_prep.page.samples import Sample, by_script, outside_ascii
from data_prep.progress import amount
from gpt_dist.data.tokenizers.byte_pair import BytePairTokenizer
from gpt_dist.data.tokenizers.folder import FolderTokenizer
from gpt_dist.data.tokens.folder import SPLITS

_CURVE_POINTS = 150
_RARE = 100
_SCRIPTS = 16
_CHARACTERS = 24
_TOKEN_CHARACTERS = 60
_EXCERPT_CHARACTERS = 1000

Section = tuple[str, Html]


def token_sections(
    manifest: BuildManifest, tokenizer: FolderTokenizer, counts: TokenCounts, sample: Sample
) -> list[Section]:
    """Return the sections about tokens, lengths, characters and samples."""
    return [
        section("Lengths of documents", *_lengths(counts.lengths)),
        section("Training and validation", *_splits(manifest)),
        section("Characters", *_characters(sample)),
        section("Vocabulary", *_vocabulary(manifest, tokenizer, counts.tokens, sample)),
        section("Longest tokens", *_longest(manifest, tokenizer, counts.tokens)),
        section("Samples", *_samples(sample)),
    ]


def _lengths(lengths: Lengths) -> Iterator[Html]:
    bins = lengths.bins
    if not bins.any():
        return
    first = int(np.flatnonzero(bins)[0]) // BINS_AN_OCTAVE * BINS_AN_OCTAVE
    edges = [2 ** (index / BINS_AN_OCTAVE) for index in range(first, len(bins) + 1)]
    title = "Number of documents by length"
    yield histogram(title, bins[first:].tolist(), edges, "tokens in a document, log scale")
    half = int(np.searchsorted(np.cumsum(bins), bins.sum() / 2))
    low, high = (2 ** (index / BINS_AN_OCTAVE) for index in (half, half + 1))
    yield paragraph(
        f"{amount(int(bins.sum()), 'documents')} of {lengths.shortest:,} to "
        f"{amount(lengths.longest, 'tokens')}; the median is between {low:,.0f} and {high:,.0f}. "
        "All indexes were read."
    )


def _splits(manifest: BuildManifest) -> Iterator[Html]:
    splits, total = manifest.splits, max(1, manifest.totals.tokens)
    rows = [
        (split, f"{splits[split].documents:,}", f"{splits[split].tokens:,}",
         f"{100 * splits[split].tokens / total:.3g} %", f"{len(splits[split].shards):,}")
        for split in SPLITS
    ]  # fmt: skip
    yield table(("split", "#documents", "#tokens", "#share", "#shards"), rows)
    wanted = 100 * manifest.options.validation_fraction
    yield paragraph(f"Asked for: {wanted:.3g} % for validation.")


def _characters(sample: Sample) -> Iterator[Html]:
    total = sum(sample.characters.values()) or 1
    scripts = by_script(sample.characters)
    rest = sum(count for _, count in scripts[_SCRIPTS:])
    shown = scripts[:_SCRIPTS] + [("others", rest)] * (rest > 0)
    rows = [(name, count, f"{100 * count / total:.3g} %") for name, count in shown]
    yield bars("Characters by script", rows)
    yield paragraph(f"By Unicode script, of {total:,} characters. {_drawn(sample)}", "dim")
    if foreign := list(outside_ascii(sample.characters)):
        cells = [
            (code(one), f"U+{ord(one):04X}", f"{count:,}") for one, count in foreign[:_CHARACTERS]
        ]
        yield Html("<h3>Characters outside ASCII, the most frequent</h3>")
        yield table(("character", "code point", "#count"), cells)
    if broken := sample.characters["\ufffd"]:
        yield paragraph(
            f"{broken:,} replacement characters: bytes that are no text, or ends of the windows.",
            "warn",
        )


def _vocabulary(
    manifest: BuildManifest, tokenizer: FolderTokenizer, counts: Counts, sample: Sample
) -> Iterator[Html]:
    totals = manifest.totals
    special = set(manifest.special_tokens.values())
    ordinary = np.array([index not in special for index in range(len(counts))])
    used = counts[ordinary]
    unused = int((used == 0).sum())
    share = 100 * (len(used) - unused) / max(1, len(used))
    rare = int(((used > 0) & (used < _RARE)).sum())
    covered = np.cumsum(np.sort(used)[::-1])
    half = int(np.searchsorted(covered, covered[-1] / 2)) + 1
    rows = [
        ("tokens that are used", f"{len(used) - unused:,} of {len(used):,}, {share:.4g} %"),
        (f"used fewer than {_RARE} times", f"{rare:,}"),
        ("tokens that make up half of the text", f"{half:,}"),
        ("bytes a token", f"{totals.cleaned_bytes / max(1, totals.tokens):.3f}, of all text"),
        ("tokens a word", f"{sample.texts / max(1, sample.words):.3f}, of the sample"),
    ]
    yield table(("", ""), rows)
    yield log_curve(
        "Frequency by rank", _curve(np.sort(used[used > 0])[::-1]),
        "rank of the token, and how often it occurs; log scales",
    )  # fmt: skip
    yield paragraph(f"All {int(counts.sum()):,} tokens were counted. {_drawn(sample)}", "dim")
    order = np.argsort(-np.where(ordinary, counts, -1), kind="stable")[:_CHARACTERS]
    shown = [f"{code(_shown(tokenizer, int(i)))} {counts[i]:,}" for i in order if counts[i]]
    yield Html(f"<h3>Most frequent tokens</h3><p>{' · '.join(shown)}</p>")


def _curve(descending: Counts) -> list[Point]:
    if not len(descending):
        return [(1, 1)]
    ranks = np.unique(np.geomspace(1, len(descending), _CURVE_POINTS).round().astype(np.int64))
    return [(int(rank), int(descending[rank - 1])) for rank in ranks]


def _longest(manifest: BuildManifest, tokenizer: FolderTokenizer, counts: Counts) -> Iterator[Html]:
    texts = [_shown(tokenizer, index) for index in range(tokenizer.vocab_size)]
    ordinary = set(range(len(texts))) - set(manifest.special_tokens.values())
    longest = sorted(ordinary, key=lambda index: (-len(texts[index]), index))
    rows = [
        (code(texts[i], _TOKEN_CHARACTERS), f"{len(texts[i]):,}", f"{i:,}", f"{counts[i]:,}")
        for i in longest[:30]
    ]
    yield table(("token", "#characters", "#id", "#count"), rows)


def _shown(tokenizer: FolderTokenizer, index: int) -> str:
    """Return a token as text, with the sign for a space that sentencepiece's tokens have."""
    if isinstance(tokenizer, BytePairTokenizer):
        return tokenizer.decode([index])
    piece: str = tokenizer.processor.id_to_piece(index)
    return piece


def _samples(sample: Sample) -> Iterator[Html]:
    yield paragraph(f"Decoded from the shards, drawn at random. {_drawn(sample)}", "dim")
    for one in sample.excerpts:
        yield Html(
            f"<h3>{text(one.split)}, from token {one.position:,}</h3>"
            f'<pre dir="auto">{text(one.text, _EXCERPT_CHARACTERS)}</pre>\n'
        )


def _drawn(sample: Sample) -> str:
    if sample.share >= 1:
        return f"The sample is the whole of {sample.tokens:,} tokens."
    return f"The sample has {sample.tokens:,} tokens, {100 * sample.share:.3g} % of all."
