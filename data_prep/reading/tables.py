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

_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 1024


def read_parquet(
    name: str, file: BufferedReader | BytesIO, options: ReadOptions, budget: Budget
) -> Iterator[Document | LeftOut]:
    """Yield the rows of a parquet file in order, named by their number."""
    field = options.text_field
    try:
        # Values that repeat share their memory, however often a file says that they do.
        table = parquet.ParquetFile(file, read_dictionary=[field])
        if field not in table.schema_arrow.names:
            yield LeftOut(name, no_field(field))
            return
        kind = table.schema_arrow.field(field).type
        if not pyarrow.types.is_dictionary(kind) or not _is_text(kind.value_type):
            yield LeftOut(name, not_text(field))
            return
        number = 0
        for text in _texts(table, field):
            number += 1
            if text is None:
                yield LeftOut(f"{name}:{number}", NULL)
                continue
            budget.count_bytes(len(text))
            if len(text) > DOCUMENT_BYTES:
                yield LeftOut(f"{name}:{number}", TOO_LONG)
            else:
                yield Document(f"{name}:{number}", text, "record")
    except pyarrow.ArrowException as error:
        raise OSError(str(error)) from error


def _is_text(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _texts(table: parquet.ParquetFile, field: str) -> Iterator[str | None]:
    for group in range(table.num_row_groups):
        rows = _batch_rows(table.metadata.row_group(group), field)
        for batch in table.iter_batches(
            rows, row_groups=[group], columns=[field], use_threads=False
        ):
            column = batch.column(0)
            values = column.dictionary.to_pylist()
            for index in column.indices.to_pylist():
                yield None if index is None else values[index]


def _batch_rows(group: parquet.RowGroupMetaData, field: str) -> int:
    """Return the number of rows whose text may be held at once."""
    columns = map(group.column, range(group.num_columns))
    size = sum(
        column.total_uncompressed_size for column in columns if column.path_in_schema == field
    )
    return min(max(1, _BATCH_BYTES * group.num_rows // max(1, size)), _BATCH_ROWS)
