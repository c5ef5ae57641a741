"""Read and clean a sample of the sources of a build, spread over all of them."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from data_prep.build.build import BuildRequest
from data_prep.build.selection import DUPLICATE, TOO_SHORT
from data_prep.cleaning.clean import clean
from data_prep.duplicates.words import words_of
from data_prep.reading.documents import DOCUMENT_BYTES, Document, LeftOut
from data_prep.reading.kinds import kind_of
from data_prep.reading.text import BLOCK_BYTES
from data_prep.reading.units import plan_units, read_placed
from data_prep.sources import Source

SAMPLE_BYTES = 16_000_000
"""Text that is read and cleaned at most."""
_SECONDS = 7.0
_MIN_PLACES, _MAX_PLACES = 32, 2000
_LEAST_PLACES = 4  # of a group
# Groups of less are read whole.
_SMALL_BYTES, _SMALL_FILES = 1 << 18, 200
_CHUNK_BYTES = 1 << 18
_LEAST_CUT_BYTES = 1 << 16
# The first document of a file tells nothing about the size of those after it.
_LEAST_ITEMS = 3
_DIVIDED = {"text", "jsonl", "json", None}

Group = tuple[str, int]
"""Kind of files, and number of digits of their sizes."""
_Mark = tuple[int, int]  # the place in the file after an item, and the size of its text


@dataclass
class Chunk:
    """Some neighbouring documents of one source."""

    source_bytes: float = 0
    """Bytes of the file that they take."""
    text_bytes: float = 0
    clean_bytes: float = 0
    read: int = 0
    kept: int = 0
    kept_bytes: float = 0
    texts: list[tuple[str, float]] = field(default_factory=list)
    """Clean text of each kept document, or of its beginning, and how often it makes up the whole.
    """


@dataclass
class Sampled:
    """Sample of all sources."""

    chunks: dict[Group, list[Chunk]] = field(default_factory=dict)
    """By the group of the file."""
    sizes: Counter[Group] = field(default_factory=Counter)
    """Bytes of all sources of each group."""
    left_out: Counter[str] = field(default_factory=Counter)
    text_bytes: int = 0
    """Bytes of text that were cleaned."""
    seconds: float = 0
    """Time to read and clean them, and to hash their words."""
    sources: int = 0
    documents: int = 0


def draw_sample(
    request: BuildRequest, sources: list[Source], advance: Callable[[int], None]
) -> Sampled:
    """Read and clean parts of the sources.

    Places are spread evenly over the bytes of the sources of each kind and size. A compressed file
    is read from its beginning, a large plain one from the place.

    Args:
        request: The build.
        sources: All sources.
        advance: Called with a number of bytes that were cleaned since.
    """
    sampled = Sampled()
    groups: dict[Group, list[tuple[Source, int]]] = {}
    for source in sources:
        size = source.path.stat().st_size
        group: Group = (kind_of(source.name) or "", len(str(size)))
        groups.setdefault(group, []).append((source, size))
        sampled.sizes[group] += size
    total = sum(sampled.sizes.values())
    parts = [(group, *part) for group, sized in groups.items() for part in _places(sized, total)]
    # In random order, so that parts of all kinds are read before the time is over.
    random.Random(0).shuffle(parts)
    sampler = _Sampler(request, sampled, advance)
    begin = time.perf_counter()
    for group, source, block, budget in parts:
        late = time.perf_counter() - begin > _SECONDS
        enough = late or sampled.text_bytes >= SAMPLE_BYTES
        if enough and group in sampled.chunks:
            continue
        sampled.chunks.setdefault(group, []).extend(sampler.read(source, block, budget))
        sampled.sources += 1
    sampled.seconds = time.perf_counter() - begin
    return sampled


def _places(sized: list[tuple[Source, int]], total: int) -> Iterator[tuple[Source, int, int]]:
    """Yield sources, each with a block of it and the number of bytes of text to read."""
    size = sum(size for _, size in sized)
    if not size:
        return
    if total <= SAMPLE_BYTES or (size <= _SMALL_BYTES and len(sized) <= _SMALL_FILES):
        yield from ((source, 0, SAMPLE_BYTES) for source, _ in sized)
        return
    budget = SAMPLE_BYTES * size / total
    count = round(min(_MAX_PLACES, max(_MIN_PLACES, SAMPLE_BYTES * len(sized) / total)))
    count = max(_LEAST_PLACES, round(count * size / total))
    ends = list(accumulate(size for _, size in sized))
    index = 0
    chosen: Counter[tuple[int, int]] = Counter()  # sources, and blocks of them
    for number in range(count):
        place = int((number + 0.5) * size / count)
        while ends[index] <= place:
            index += 1
        source, source_size = sized[index]
        # Another file is one unit, which is read from its beginning.
        divides = source_size > DOCUMENT_BYTES and kind_of(source.name) in _DIVIDED
        begin = ends[index] - source_size
        chosen[index, (place - begin) // BLOCK_BYTES if divides else 0] += 1
    for (index, block), places in chosen.items():
        yield sized[index][0], block, int(budget / count * places)


class _Sampler:
    """Reader of parts of sources."""

    def __init__(
        self, request: BuildRequest, sampled: Sampled, advance: Callable[[int], None]
    ) -> None:
        self._request = request
        self._sampled = sampled
        self._advance = advance
        self._seen: set[int] = set()

    def read(self, source: Source, block: int, budget: int) -> list[Chunk]:
        """Read documents from a block on, if the file can be divided, and return them in chunks."""
        units = plan_units(source, self._request.reading, BLOCK_BYTES)
        unit = units[min(block, len(units) - 1)]
        chunks = [Chunk()]
        marks: list[_Mark] = []
        text = 0
        exhausted = True
        for position, item in read_placed(unit, self._request.reading):
            size = self._add(chunks, item, budget - text)
            marks.append((position, size))
            text += size
            if text >= budget and len(marks) >= _LEAST_ITEMS:
                exhausted = False
                break
        whole = (unit.end or source.path.stat().st_size) - unit.begin
        used = whole if exhausted else min(whole, _used(source, marks))
        for chunk in chunks:
            chunk.source_bytes = used * (chunk.text_bytes / text if text else 1 / len(chunks))
        return chunks

    def _add(self, chunks: list[Chunk], item: Document | LeftOut, room: int) -> int:
        """Clean a document, or as much as there is room for, and return the size of its text."""
        if isinstance(item, LeftOut):
            self._sampled.left_out[item.reason] += 1
            return 0
        if chunks[-1].text_bytes >= _CHUNK_BYTES:
            chunks.append(Chunk())
        chunk, size = chunks[-1], len(item.content)
        content = _beginning(item.content, max(room, _LEAST_CUT_BYTES)) or item.content
        scale = size / max(1, len(content))
        cleaned = clean(Document(item.name, content, item.form), self._request.steps)
        data = cleaned.text.encode()
        if self._request.options.near_duplicates:
            words_of(data).shingles()
        self._sampled.text_bytes += len(content)
        self._sampled.documents += 1
        self._advance(len(content))
        chunk.text_bytes += size
        chunk.clean_bytes += scale * len(data)
        chunk.read += 1
        reason = cleaned.fault
        if not reason and scale * len(cleaned.text) < self._request.options.min_characters:
            reason = TOO_SHORT
        if not reason and hash(data) in self._seen:
            reason = DUPLICATE
        if self._request.options.near_duplicates is not None:
            self._seen.add(hash(data))
        if reason:
            self._sampled.left_out[reason] += 1
        else:
            chunk.kept += 1
            chunk.kept_bytes += scale * len(data)
            chunk.texts.append((cleaned.text, scale))
        return size


def _beginning(content: bytes | str, size: int) -> bytes | str:
    """Return about the first `size` bytes or characters, up to the end of a word."""
    if len(content) <= size:
        return content
    if isinstance(content, str):
        return content[:size]
    return content[: max(content.rfind(b"\n", 0, size), content.rfind(b" ", 0, size)) + 1]


def _used(source: Source, marks: list[_Mark]) -> float:
    """Return how many bytes of a file the texts take that were read of it.

    Readers go ahead of the document at hand, by the same amount at the first and the last.
    """
    if kind_of(source.name) == "parquet":
        from pyarrow import parquet  # of the extra `text`, like the reader

        rows = parquet.ParquetFile(source.path).metadata.num_rows
        return source.path.stat().st_size * len(marks) / max(1, rows)
    (first, first_text), (last, _) = marks[0], marks[-1]
    text = sum(size for _, size in marks)
    if last > first and text > first_text:
        return text * (last - first) / (text - first_text)
    return max(1, last)
