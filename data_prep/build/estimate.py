"""Estimate a build from a sample of its sources, without writing anything that stays."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from data_prep.build.build import BuildRequest
from data_prep.build.sampling import Chunk, Sampled, draw_sample
from data_prep.build.selection import nothing_left
from data_prep.encoder import Encoder
from data_prep.progress import Progress, amount
from data_prep.shards import token_dtype
from data_prep.sources import find_sources
from data_prep.tokenizer import train_sentencepiece
from gpt_dist.data.tokenizers.folder import SENTENCEPIECE_NAME, FolderTokenizer, open_tokenizer
from gpt_dist.errors import DataError
from gpt_dist.files.folders import check_new

# Two standard errors, and what a sample cannot show: where something was not read, at least this.
_ERRORS = 2
_UNSEEN = 0.03
# The share of the total by which one chunk alone may be wrong.
_ONE_CHUNK = 0.25
_ROUNDING = 1e-9
# Of a build, beside reading, cleaning, sketching and encoding.
_SECONDS_TO_START = 3.0
_OVERHEAD = 1.5
_HASHED_BYTES_A_SECOND = 5e8
_INDEX_BYTES = 20
_SKETCH_BYTES = 0.3  # for a byte of clean text
_LEFT_OUT = 3


@dataclass(frozen=True)
class Amount:
    """Estimated number with its uncertainty."""

    value: float
    error: float


@dataclass(frozen=True)
class BuildEstimate:
    """Estimates of a build, and of what they are made."""

    files: int
    source_bytes: int
    skipped: int
    """Files that are not read."""
    sampled: Sampled
    is_whole: bool
    """Whether all sources were read whole."""
    text_bytes: Amount
    documents_read: Amount
    documents_kept: Amount
    clean_bytes: Amount
    tokens: Amount
    disk_bytes: Amount
    work_bytes: Amount
    seconds: Amount
    tokenizer: str


def estimate(request: BuildRequest, workers: int, progress: Progress) -> BuildEstimate:
    """Estimate what `build` would make of a request, and how long it would take.

    Raises:
        DataError: An input or option is at fault, or no document of the sample is kept.
    """
    check_new(request.output, DataError)
    sources, skipped = find_sources(
        request.inputs, request.options.follow_links, request.options.read_suffixes
    )
    source_bytes = sum(source.path.stat().st_size for source in sources)
    with progress.stage("sampling", "bytes", None) as advance:
        sampled = draw_sample(request, sources, advance)
    begin = time.perf_counter()
    left_out = sampled.left_out + Counter(file.reason for file in skipped)
    if not (texts := _texts(sampled)):
        fault = "no document of the sample is kept"
        raise nothing_left(fault, left_out, request.options.min_characters)
    tokenizer, about = _tokenizer(request, texts)
    training = time.perf_counter() - begin if request.tokenizer is None else 0.0
    encoder = Encoder(tokenizer)
    begin = time.perf_counter()

    def tokens_of(chunk: Chunk) -> float:
        return sum(scale * (len(encoder.encode(text)) + 1) for text, scale in chunk.texts)

    tokens = _total(sampled, tokens_of)
    encoding = time.perf_counter() - begin
    text_bytes = _total(sampled, lambda chunk: chunk.text_bytes)
    kept = _total(sampled, lambda chunk: chunk.kept)
    clean_bytes = _total(sampled, lambda chunk: chunk.kept_bytes)
    item = token_dtype(tokenizer.full_vocab_size).itemsize
    disk = _scaled(tokens, item, _INDEX_BYTES * kept.value)
    sketch = _SKETCH_BYTES if request.options.near_duplicates else 0
    work = _scaled(clean_bytes, 1 + sketch, 2 * disk.value)
    rate = (sampled.seconds + encoding) / max(1, sampled.text_bytes)
    busy = _OVERHEAD * rate * text_bytes.value + source_bytes / _HASHED_BYTES_A_SECOND
    seconds = _SECONDS_TO_START + training + busy / workers
    return BuildEstimate(
        files=len(sources),
        source_bytes=source_bytes,
        skipped=len(skipped),
        sampled=sampled,
        is_whole=_is_whole(sampled),
        text_bytes=text_bytes,
        documents_read=_total(sampled, lambda chunk: chunk.read),
        documents_kept=kept,
        clean_bytes=clean_bytes,
        tokens=tokens,
        disk_bytes=disk,
        work_bytes=work,
        seconds=Amount(seconds, seconds / 2),
        tokenizer=about,
    )


def _texts(sampled: Sampled) -> list[str]:
    return [text for group in sampled.chunks.values() for chunk in group for text, _ in chunk.texts]


def _tokenizer(request: BuildRequest, texts: list[str]) -> tuple[FolderTokenizer, str]:
    """Return the tokenizer of a request, or one that is trained on the sample."""
    if request.tokenizer:
        return open_tokenizer(request.tokenizer), str(request.tokenizer)
    vocab_size = request.options.vocab_size
    lines = (line for text in texts for line in text.split("\n"))
    with TemporaryDirectory() as folder:
        model = Path(folder) / SENTENCEPIECE_NAME
        model.write_bytes(train_sentencepiece(lines, vocab_size))
        return open_tokenizer(Path(folder)), f"{vocab_size:,} tokens, trained on the sample"


def _total(sampled: Sampled, value: Callable[[Chunk], float]) -> Amount:
    """Estimate the total over all sources by the ratio to bytes of files, kind by kind."""
    total = variance = 0.0
    for group, chunks in sampled.chunks.items():
        values = [value(chunk) for chunk in chunks]
        seen = sum(chunk.source_bytes for chunk in chunks)
        size = sampled.sizes[group]
        if not seen:
            continue
        ratio = sum(values) / seen
        left = max(0.0, 1 - seen / size)
        total += ratio * size if left > _ROUNDING else sum(values)
        if len(chunks) > 1:
            pairs = zip(values, chunks, strict=True)
            squares = sum((one - ratio * chunk.source_bytes) ** 2 for one, chunk in pairs)
            variance += left * (size / seen) ** 2 * squares * len(chunks) / (len(chunks) - 1)
        else:
            variance += left * (_ONE_CHUNK * ratio * size) ** 2
    unseen = 0 if _is_whole(sampled) else _UNSEEN * total
    return Amount(total, sqrt(_ERRORS**2 * variance + unseen**2))


def _is_whole(sampled: Sampled) -> bool:
    seen = sum(chunk.source_bytes for group in sampled.chunks.values() for chunk in group)
    return seen >= (1 - _ROUNDING) * sum(sampled.sizes.values())


def _scaled(given: Amount, factor: float, more: float) -> Amount:
    return Amount(given.value * factor + more, given.error * factor)


def print_estimate(made: BuildEstimate, output: Path, workers: int) -> None:
    """Print the table of a dry run."""
    table = Table(title=f"Estimate of a token folder {output}", title_justify="left")
    for heading in ("", "about", "within"):
        table.add_column(heading, justify="right" if heading else "left")
    for label, one, unit in (
        ("text", made.text_bytes, "bytes"),
        ("documents read", made.documents_read, "documents"),
        ("documents kept", made.documents_kept, "documents"),
        ("clean text kept", made.clean_bytes, "bytes"),
        ("tokens", made.tokens, "tokens"),
        ("disk, the token folder", made.disk_bytes, "bytes"),
        ("disk, while it is built", made.work_bytes, "bytes"),
        (f"time with {amount(workers, 'workers')}", made.seconds, "s"),
    ):
        share = 100 * one.error / one.value if one.value else 0
        table.add_row(label, amount(round(one.value), unit), f"± {share:.2g} %")
    console = Console(highlight=False, markup=False)
    console.print(table)
    sampled = made.sampled
    part = "all of them" if made.is_whole else "a sample"
    lines = [
        f"Sources: {amount(made.files, 'files')}, {amount(made.source_bytes, 'bytes')}; not read: "
        f"{made.skipped:,}",
        f"Read: {part}: {amount(sampled.documents, 'documents')} of "
        f"{amount(sampled.sources, 'files')}, {amount(sampled.text_bytes, 'bytes')} of text",
        f"Tokenizer: {made.tokenizer}",
    ]
    if sampled.left_out:
        reasons = (
            f"{count:,} {reason}" for reason, count in sampled.left_out.most_common(_LEFT_OUT)
        )
        lines.append(f"Left out in the sample: {', '.join(reasons)}")
    if made.is_whole:
        lines.append("Near-duplicates and repeated passages were not searched.")
    else:
        lines.append("Duplicates were not searched; compressed files were read at the beginning.")
    lines.append("Nothing was written.")
    console.print("\n".join(lines), soft_wrap=True)
