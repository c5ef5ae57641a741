"""Choose the documents of a corpus: account for all, drop some, split the rest, sample lines."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from data_prep.build.documents import CleanDocument, lines_between
from data_prep.build.jobs import Cleaned, CleanEntry, CleanJob
from data_prep.duplicates import Cut, Findings, TextRange
from data_prep.manifest import DropEntry, PassageEffect, StepEffect
from data_prep.reading.documents import LeftOut
from data_prep.sources import Source
from gpt_dist.data.tokens.folder import SPLITS
from gpt_dist.errors import DataError

_BLOCK_BYTES = 64 << 10
_NAMED = 1000
SHARE_TOLERANCE = 1 / 5
"""Part of the wanted share by which the share held out may differ."""
# The share aimed at: the place of a cut adds to the difference.
_SPLIT_TOLERANCE = 1 / 8

# Steps that cut text out, and count its characters.
_CUTTING_STEPS = ("gutenberg", "notes", "page_marks")

TOO_SHORT = "too short"
DUPLICATE = "duplicate"


@dataclass
class SourceCount:
    """Counts of the documents of one source, by their fate."""

    read: int = 0
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    encodings: Counter[str] = field(default_factory=Counter)


@dataclass
class Selection:
    """Kept documents, in order, and counts of the others."""

    keeps_equal: bool = False
    """True to keep all documents of a text, not only the first."""
    kept: list[CleanDocument] = field(default_factory=list)
    sources: dict[Source, SourceCount] = field(default_factory=dict)
    unread: Counter[str] = field(default_factory=Counter)
    """Number of files that are no sources, by reason."""
    drops: list[DropEntry] = field(default_factory=list)
    """The first thousand documents and files that were left out, in order."""
    effects: dict[str, StepEffect] = field(default_factory=dict)
    """By cleaning step."""
    read_as: dict[str, list[str]] = field(default_factory=dict)
    """By encoding other than UTF-8, the first thousand documents that were read so."""
    passages: PassageEffect = field(default_factory=PassageEffect)
    text_bytes: int = 0
    """Bytes of the sources' text, unpacked, before cleaning."""
    places: list[TextRange] = field(default_factory=list)
    """The places of all documents, also of those that are left out, in order."""
    _names: dict[str, str] = field(default_factory=dict)
    """Name of the first document of each digest."""

    def add(self, job: CleanJob, cleaned: Cleaned, min_characters: int) -> None:
        """Judge the documents of one job, in order."""
        self.text_bytes += cleaned.source_bytes
        for entry in cleaned.entries:
            source = job.units[entry.unit].source
            count = self.sources.setdefault(source, SourceCount())
            count.read += entry.read
            self._note(entry, count)
            if fault := self._fault(entry, min_characters):
                self._drop(entry.name, count.left_out, *fault)
            else:
                count.kept += 1
                self.kept.append(self._document(entry, source, job.file))
            self.places.append(TextRange(job.file, entry.offset, entry.size))

    def leave_out(self, files: Iterable[LeftOut]) -> None:
        """Count files that are no sources."""
        for file in files:
            self._drop(file.name, self.unread, file.reason)

    def apply(self, findings: Findings, min_characters: int) -> None:
        """Drop near-duplicates, cut repeated passages, and drop what is too short then."""
        names = {document.number: document.name for document in self.kept}
        kept = []
        for document in self.kept:
            if dropped := findings.dropped.get(document.number):
                detail = f"{dropped.similarity:.3f} of it is in {names[dropped.kept]}"
                self._drop_kept(document, dropped.reason, detail)
            elif cuts := findings.cuts.get(document.number):
                shorter = self._shortened(document, cuts)
                if len(shorter.text()) >= max(min_characters, 1):
                    kept.append(shorter)
                else:
                    self._drop_kept(document, f"{TOO_SHORT} without repeated passages")
            else:
                kept.append(document)
        self.kept = kept

    def _drop_kept(self, document: CleanDocument, reason: str, detail: str | None = None) -> None:
        count = self.sources[document.source]
        count.kept -= 1
        self._drop(document.name, count.left_out, reason, detail)

    def _shortened(self, document: CleanDocument, cuts: Sequence[Cut]) -> CleanDocument:
        before = self.passages
        self.passages = PassageEffect(
            passages=before.passages + len(cuts),
            bytes=before.bytes + sum(cut.end - cut.begin for cut in cuts),
            names=before.names + (document.name,) * (len(before.names) < _NAMED),
        )
        return document.without([(cut.begin, cut.end) for cut in cuts])

    def _document(self, entry: CleanEntry, source: Source, file: Path) -> CleanDocument:
        return CleanDocument(
            number=len(self.places),
            name=entry.name,
            source=source,
            file=file,
            ranges=((entry.offset, entry.offset + entry.size),),
            digest=entry.digest,
        )

    @property
    def dropped(self) -> Counter[str]:
        """The number of documents and files that were left out, by reason."""
        return sum((count.left_out for count in self.sources.values()), self.unread)

    def _drop(
        self, name: str, counter: Counter[str], reason: str, detail: str | None = None
    ) -> None:
        counter[reason] += 1
        if len(self.drops) < _NAMED:
            self.drops.append(DropEntry(name=name, reason=reason, detail=detail))

    def check_not_empty(self, min_characters: int) -> None:
        """Raise DataError, with the reasons, if no document is left."""
        if not self.kept:
            raise nothing_left("no document is left to train on", self.dropped, min_characters)

    def _note(self, entry: CleanEntry, count: SourceCount) -> None:
        # What a step emptied was read, other faults say that it was not.
        was_read = entry.read and (not entry.fault or entry.effects)
        if was_read and entry.encoding != "utf-8":
            count.encodings[entry.encoding] += 1
            names = self.read_as.setdefault(entry.encoding, [])
            names += [entry.name] * (len(names) < _NAMED)
        for step, changed in entry.effects.items():
            before = self.effects.get(step, StepEffect(documents=0, changes=0, names=()))
            self.effects[step] = StepEffect(
                documents=before.documents + 1,
                changes=before.changes + changed,
                names=before.names + (entry.name,) * (len(before.names) < _NAMED),
            )

    def _fault(self, entry: CleanEntry, min_characters: int) -> tuple[str, str | None] | None:
        """Return why a document is left out, and for a duplicate the name of its like."""
        if entry.fault:
            return entry.fault, None
        if entry.characters < min_characters:
            cut = {step: entry.effects.get(step, 0) for step in _CUTTING_STEPS}
            step = max(cut, key=lambda name: cut[name])
            if entry.characters + cut[step] >= min_characters:
                return f"{TOO_SHORT} after the step {step}", None
            return TOO_SHORT, None
        if self.keeps_equal:
            return None
        if first := self._names.get(entry.digest):
            return DUPLICATE, f"the same as {first}"
        self._names[entry.digest] = entry.name
        return None


def nothing_left(fault: str, dropped: Counter[str], min_characters: int) -> DataError:
    """Return the error that no document is kept, with the reasons and what to do about them."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
    remedies = (_remedy(reason, min_characters) for reason, _ in dropped.most_common())
    remedy = ", or ".join([*dict.fromkeys(filter(None, remedies)), "give other text"])
    return DataError(f"{fault} ({reasons or 'no file found'}); {remedy}")


def _remedy(reason: str, min_characters: int) -> str | None:
    """Return the option that would keep documents that are left out for a reason."""
    step = reason.partition(" step ")[2]
    if step:
        return f"give --no-{step.replace('_', '-')}"
    if reason.startswith(TOO_SHORT):
        return f"give a smaller --min-characters than {min_characters}"
    if reason.startswith("not UTF-8, seems to be "):
        return "leave out --no-guess"
    if reason.startswith("not text in "):
        return "give another --encoding"
    return "leave out --no-follow-links" if reason == "link" else None


def split_documents(
    documents: list[CleanDocument], fraction: float
) -> dict[str, list[CleanDocument]]:
    """Split documents into training and validation, by the hashes and sizes of their texts alone.

    Documents go to validation in the order of their hashes: all whose hash / 2^256 is below
    `fraction`, while their share of the bytes stays close to it, and more until the share is close.
    A document that is too large for that is cut, and only its end goes to validation. Documents of
    the same text go the same way.
    """
    total = sum(document.size for document in documents)
    wanted = fraction * total
    slack = min(wanted, total - wanted) * _SPLIT_TOLERANCE
    bound = int(fraction * 2**64) << 192
    held_bytes = 0
    parts: dict[str, dict[str, CleanDocument]] = {}  # of documents not for training alone
    copies = Counter(document.digest for document in documents)
    for digest, document in sorted({one.digest: one for one in documents}.items()):
        size = copies[digest] * document.size
        enough = held_bytes >= wanted - slack
        fits = held_bytes + size <= wanted + slack
        if enough and not (fits and int(digest, 16) < bound):
            break
        end = (wanted - held_bytes) / copies[digest]
        if fits:
            parts[digest] = {"validation": document}
            held_bytes += size
        elif cut := document.cut(document.size - round(end), slack / copies[digest]):
            parts[digest] = dict(zip(SPLITS, cut, strict=True))
            break
    return {
        split: [
            part[split]
            for document in documents
            if split in (part := parts.get(document.digest, {"train": document}))
        ]
        for split in SPLITS
    }


def share_held_out(documents: dict[str, list[CleanDocument]]) -> float:
    """Return the share of the bytes of both splits that is held out for validation."""
    held, trained = (
        sum(document.size for document in documents[split]) for split in ("validation", "train")
    )
    return held / (held + trained)


def sample_lines(documents: Iterable[CleanDocument], size: int, seed: int) -> Iterator[str]:
    """Yield paragraphs to train a tokenizer on: all, or about `size` bytes drawn with `seed`."""
    documents = list(documents)
    blocks = [
        (document, begin)
        for document in documents
        for begin in range(0, document.size, _BLOCK_BYTES)
    ]
    if sum(document.size for document in documents) > size:
        count = min(len(blocks), -(-size // _BLOCK_BYTES))
        drawn = random.Random(seed).sample(range(len(blocks)), count)
        blocks = [blocks[index] for index in sorted(drawn)]
    for document, group in groupby(blocks, key=itemgetter(0)):
        data = document.data()
        for _, begin in group:
            yield from lines_between(data, begin, begin + _BLOCK_BYTES)
