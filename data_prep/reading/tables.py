"""Read the text column of a parquet file, one batch of rows at a time."""

from collections.abc import Iterator
from io import BufferedReader, BytesIO

import pyarrow
from pyarrow import parquet

from data_prep.reading.documents import (
    DOCUMENT_BYTES,
    NULL,
    TOO_LONG,
    Document,
    LeftOut,
    ReadOptions,
    no_field,
    not_text,
)
from data_prep.reading.unpacking import Budget

# A few bytes may say that a long value repeats often. More rows at a time are no faster.
_BATCH_ROWS = 16
_BUFFER_BYTES = 1 << 20


def read_parquet(
    name: str, file: BufferedReader | BytesIO, options: ReadOptions, budget: Budget
) -> Iterator[Document | LeftOut]:
    """Yield the rows of a parquet file in order, named by their number."""
    field = options.text_field
    try:
        table = parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES)
        if field not in table.schema_arrow.names:
            yield LeftOut(name, no_field(field))
        elif not _is_text(table.schema_arrow.field(field).type):
            yield LeftOut(name, not_text(field))
        else:
            for number, text in enumerate(_texts(table, field), 1):
                budget.count_bytes(len(text or ""))
                if text is None:
                    yield LeftOut(f"{name}:{number}", NULL)
                elif len(text) > DOCUMENT_BYTES:
                    yield LeftOut(f"{name}:{number}", TOO_LONG)
                else:
                    yield Document(f"{name}:{number}", text, "record")
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error


def _is_text(kind: pyarrow.DataType) -> bool:
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _texts(table: parquet.ParquetFile, field: str) -> Iterator[str | None]:
    for batch in table.iter_batches(_BATCH_ROWS, columns=[field], use_threads=False):
        yield from batch.column(0).to_pylist()
