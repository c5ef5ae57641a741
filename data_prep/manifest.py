"""The manifest of a token folder, which accounts for every source, and a folder with it."""

from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt

from gpt_dist.data.tokens.folder import TokenFolder, TokenManifest
from gpt_dist.files.entries import Record, Sha256


class SourceEntry(Record):
    """Source file of the corpus, and the fate of its documents; version 1 states no fates."""

    name: str
    bytes: NonNegativeInt
    sha256: Sha256
    target: str | None = None
    """The file that a followed link leads to."""
    documents_read: NonNegativeInt = 0
    documents_kept: NonNegativeInt = 0
    left_out: dict[str, NonNegativeInt] = Field(default={})
    """Number of documents that were left out, by reason."""
    encodings: dict[str, NonNegativeInt] = Field(default={})
    """Number of documents that were read in each encoding other than UTF-8."""


class DropEntry(Record):
    """Document or file that was left out, with the reason."""

    name: str
    reason: str
    detail: str | None = None
    """The document that has the same text, for a duplicate."""


class StepEffect(Record):
    """Documents that one cleaning step changed, and its changes, in the unit that `Steps` gives."""

    documents: NonNegativeInt
    changes: NonNegativeInt
    names: tuple[str, ...]
    """The first thousand of those documents."""


class PassageEffect(Record):
    """Passages that were cut because earlier documents hold them."""

    passages: NonNegativeInt = 0
    bytes: NonNegativeInt = 0
    names: tuple[str, ...] = ()
    """The first thousand of the documents that lost text."""


class BuildOptions(Record, from_attributes=True):
    """Options that decide the content of a build, beside the sources and a given tokenizer.

    Those with a default are of version 2. Their defaults say how version 1 built.
    """

    vocab_size: PositiveInt
    """Vocabulary size of the tokenizer, trained or given."""
    lowercase: bool
    min_characters: NonNegativeInt
    validation_fraction: Annotated[float, Field(ge=0, lt=1)]
    text_field: str
    tokenizer_sample_mb: PositiveInt | None
    """Size of the text that trained the tokenizer; None, like `seed`, if it was given."""
    seed: int | None
    recipe: str = "books"
    steps: dict[str, bool | int | float | str | None] = Field(default={})
    """Each cleaning step, and whether or how it was taken."""
    separator: str = ""
    """Text that divides documents."""
    follow_links: bool = False
    read_suffixes: tuple[str, ...] = ()
    """Suffixes of files that were read by their content, beside those that are known."""
    near_duplicates: float | None = None
    """Similarity from which on a document counts as a duplicate; with 0, equal texts alone do, and
    with None no text does (version 1 has None and dropped equal texts)."""
    passage_words: int | None = None
    """Number of words from which on a repeated passage is cut; 0 and None keep them."""
    shard_mb: PositiveInt | None = None


class Totals(Record):
    """Amounts of text that were read and kept."""

    source_bytes: NonNegativeInt
    documents_read: NonNegativeInt
    documents_kept: NonNegativeInt
    decoded_as_latin1: NonNegativeInt = 0
    """Only in version 1; since then `read_as` names every encoding."""
    text_bytes: NonNegativeInt = 0
    """Bytes of the unpacked sources' text; 0 in version 1."""
    all_cleaned_bytes: NonNegativeInt = 0
    """Bytes of clean text before any document was left out; 0 in version 1."""
    cleaned_bytes: NonNegativeInt
    tokens: NonNegativeInt


class BuildManifest(TokenManifest, extra="forbid"):
    """Content of `manifest.json`; nothing in it depends on time, machine or number of workers.

    Fields with a default are of version 2.
    """

    options: BuildOptions
    totals: Totals
    sources: tuple[SourceEntry, ...]
    dropped: dict[str, NonNegativeInt]  # number of drops by reason
    drops: tuple[DropEntry, ...]  # the first thousand, in order
    read_as: dict[str, tuple[str, ...]] = Field(default={})
    """The first thousand documents that were read in each encoding other than UTF-8."""
    effects: dict[str, StepEffect] = Field(default={})
    """The changes that each cleaning step made."""
    passages: PassageEffect = PassageEffect()


class BuiltFolder(TokenFolder):
    """A token folder, with all that its manifest states."""

    manifest: BuildManifest
    manifest_type: ClassVar[type[TokenManifest]] = BuildManifest
