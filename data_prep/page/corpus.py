"""Sections of the page that say what became of the sources, from the manifest alone."""

from collections import Counter
from collections.abc import Iterator

from data_prep.contamination.overlap import Contamination
from data_prep.contamination.table import HEADERS, examples_of, row_of
from data_prep.manifest import BuildManifest, DropEntry
from data_prep.page.charts import bars
from data_prep.page.html import Html, code, names, paragraph, section, table
from data_prep.progress import amount
from data_prep.steps import Steps

_PAIRS = 40
_TEST_FILES = 20
_DUPLICATES = ("duplicate", "near-duplicate", "contained")

Section = tuple[str, Html]


def corpus_sections(manifest: BuildManifest, contamination: Contamination | None) -> list[Section]:
    """Return the sections about sources, documents and cleaning."""
    return [
        section("From bytes to tokens", *_funnel(manifest)),
        section("Cleaning", *_cleaning(manifest)),
        section("Encodings", *_encodings(manifest)),
        section("Left out", *_left_out(manifest)),
        section("Duplicates", *_duplicates(manifest)),
        section("Repeated passages", *_passages(manifest)),
        section("Contamination", *(_contamination(contamination) if contamination else [])),
    ]


def _funnel(manifest: BuildManifest) -> Iterator[Html]:
    totals = manifest.totals
    token_bytes = sum(
        shard.bin.bytes for split in manifest.splits.values() for shard in split.shards
    )
    steps = [("sources", totals.source_bytes, amount(len(manifest.sources), "files"))]
    if manifest.version > 1:
        steps += [
            ("text in them", totals.text_bytes, amount(totals.documents_read, "documents")),
        ]
        if totals.all_cleaned_bytes:
            steps.append(("clean text", totals.all_cleaned_bytes, "of all documents"))
    steps.append(("kept text", totals.cleaned_bytes, amount(totals.documents_kept, "documents")))
    steps.append((f"tokens as {manifest.dtype}", token_bytes, f"{totals.tokens:,} tokens"))
    yield bars(
        "Bytes at each stage",
        [(label, size, f"{amount(size, 'bytes')}, {note}") for label, size, note in steps],
    )
    if manifest.version == 1:
        yield paragraph("Made by version 1, which did not record the steps between.", "dim")
    packed = totals.text_bytes > totals.source_bytes
    yield paragraph(
        f"Documents kept: {totals.documents_kept:,} of {totals.documents_read:,}."
        + (" Sources are compressed, so that their text is larger." if packed else "")
    )


def _cleaning(manifest: BuildManifest) -> Iterator[Html]:
    options = manifest.options
    descriptions = {name: field.description for name, field in Steps.model_fields.items()}
    if manifest.version > 1:
        off = [name for name, value in options.steps.items() if value is False]
        yield paragraph(
            f"Recipe {options.recipe}; "
            + (f"not taken: {', '.join(off)}." if off else "all steps.")
        )
    rows = []
    for step, effect in manifest.effects.items():
        about, _, unit = " ".join((descriptions.get(step) or "").split()).partition(" Count: ")
        unit = unit.partition(",")[0].partition(" that")[0].rstrip(".")
        changes = amount(effect.changes, unit)
        examples = names(effect.names, effect.documents)
        rows.append((step, about, changes, f"{effect.documents:,}", examples))
    if rows:
        yield table(("step", "effect", "changes", "#documents", "in"), rows)
    elif manifest.version == 1:
        yield paragraph(f"Lower case: {'yes' if options.lowercase else 'no'}.")
    else:
        yield paragraph("No step changed a document.")


def _encodings(manifest: BuildManifest) -> Iterator[Html]:
    counts: Counter[str] = Counter()
    for source in manifest.sources:
        counts.update(source.encodings)
    if latin1 := manifest.totals.decoded_as_latin1:
        counts["latin-1"] += latin1
    if counts:
        rows = [
            (encoding, f"{count:,}", names(manifest.read_as.get(encoding, ()), count))
            for encoding, count in counts.most_common()
        ]
        yield table(("encoding", "#documents", "in"), rows)
    else:
        yield paragraph("All documents that were read are in UTF-8.")


def _left_out(manifest: BuildManifest) -> Iterator[Html]:
    by_reason: dict[str, list[str]] = {}
    for drop in manifest.drops:
        by_reason.setdefault(drop.reason, []).append(drop.name)
    rows = [
        (reason, f"{count:,}", names(by_reason.get(reason, []), count))
        for reason, count in sorted(manifest.dropped.items(), key=lambda item: -item[1])
    ]
    if rows:
        yield table(("reason", "#documents or files", "names"), rows)
        if sum(manifest.dropped.values()) > len(manifest.drops):
            yield paragraph(f"The manifest names the first {len(manifest.drops):,} of them.", "dim")
    else:
        yield paragraph("Nothing was left out.")


def _duplicates(manifest: BuildManifest) -> Iterator[Html]:
    count = sum(manifest.dropped.get(reason, 0) for reason in _DUPLICATES)
    threshold = manifest.options.near_duplicates
    if threshold:
        yield paragraph(
            f"A document was left out if another has {100 * threshold:.3g} % of its words, in runs "
            "of eight."
        )
    elif threshold is None and manifest.version > 1:
        yield paragraph("Duplicates were kept, also of equal text.")
        return
    else:
        yield paragraph("Only documents with the same text as another were left out.")
    pairs = [drop for drop in manifest.drops if drop.reason in _DUPLICATES]
    if pairs:
        rows = [(names([drop.name]), drop.reason, names([_detail(drop)])) for drop in pairs]
        yield table(("left out", "as", "because"), rows, _PAIRS)
    yield paragraph(f"Left out as duplicates: {amount(count, 'documents')}.")


def _detail(drop: DropEntry) -> str:
    return drop.detail or "the manifest does not say"


def _passages(manifest: BuildManifest) -> Iterator[Html]:
    found = manifest.passages
    if manifest.options.passage_words:
        share = 100 * found.bytes / max(1, found.bytes + manifest.totals.cleaned_bytes)
        yield paragraph(
            f"Cut, since an earlier document holds them: {amount(found.passages, 'passages')} of "
            f"{manifest.options.passage_words} words or more, {found.bytes:,} bytes, {share:.3g} % "
            "of the text."
        )
        if found.names:
            yield table(("from",), [(names(found.names, count=20),)])


def _contamination(result: Contamination) -> Iterator[Html]:
    yield paragraph(
        "Texts of tests that occur in the corpus: 13 words in a row, or a text of 8 to 12 words as "
        f"a whole, in at most {result.max_documents} documents."
    )
    headers = [HEADERS[0], *(f"#{header}" for header in HEADERS[1:])]
    yield table(headers, [row_of(overlap) for overlap in result.files], _TEST_FILES)
    rows = [
        (where, found, code(passage))
        for overlap in result.files[:_TEST_FILES]
        for where, found, passage in examples_of(overlap)
    ]
    if rows:
        yield table(("text", "found", "words"), rows)
