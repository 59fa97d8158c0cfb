"""Parquet files as users' tables, with the images that they contain by URI.

Reads files on disk or S3, and members of zip files through their opener.
"""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from synthscale.ingest.table_columns import canonical_names, class_names, name_list
from synthscale.ingest.user_table import EMBEDDED, TEXT_COLUMNS, Source, UserTable, parse_errors
from synthscale.storage.fetch import parquet_uri

_BATCH_ROWS = 65_536
"""Rows per batch."""


def open_parquet(source: Source) -> UserTable:
    """Open a Parquet file."""
    with parse_errors(source.name, "Parquet file"), source.open_file() as file:
        schema = pq.ParquetFile(file).schema_arrow
    names, notes = canonical_names(schema.names, source.name)
    renamed = pa.schema([f.with_name(name) for f, name in zip(schema, names, strict=True)], schema.metadata)
    column = schema.names[names.index("image_filename")] if "image_filename" in names else None
    if column is None or not _holds_bytes(schema.field(column).type):
        column = None

    written = dict(zip(names, schema.names, strict=True))
    classes = {name: labels for name, labels in class_names(schema).items() if name in TEXT_COLUMNS}
    if classes:
        notes.append(f"{source.name}: class numbers were read as names: {name_list([*classes])}")

    def batches(wanted: list[str] | None = None) -> Iterator[pa.Table]:
        with parse_errors(source.name, "Parquet file"), source.open_file() as file:
            if column is not None and wanted is None:
                for rows in _image_batches(pq.ParquetFile(file), source.name, names, column):
                    yield _with_class_names(rows, classes)
                return
            present = [name for name in (names if wanted is None else wanted) if name in written]
            for batch in pq.ParquetFile(file).iter_batches(
                _BATCH_ROWS, columns=[written[name] for name in present]
            ):
                # The file's order of columns is not that of the names.
                rows = pa.table({name: batch.column(written[name]) for name in present})
                yield _with_class_names(rows, classes)

    return UserTable(source.name, names, renamed, batches, lambda row: f"row {row:,}", notes, written=written)


def _with_class_names(rows: pa.Table, classes: dict[str, list[str]]) -> pa.Table:
    for name, labels in classes.items():
        if name in rows.column_names and pa.types.is_integer(rows.column(name).type):
            numbers = rows.column(name)
            # -1 is Hugging Face's number of a row without a class.
            is_known = pc.and_(pc.greater_equal(numbers, 0), pc.less(numbers, len(labels)))
            numbers = pc.if_else(is_known, numbers, pa.scalar(None, numbers.type))
            rows = rows.set_column(rows.column_names.index(name), name, pc.take(pa.array(labels), numbers))
    return rows


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _image_batches(file: pq.ParquetFile, uri: str, names: list[str], column: str) -> Iterator[pa.Table]:
    """Yield row groups of a table with images in a column, without reading them: their paths and URIs instead."""
    schema = file.schema_arrow
    others = [name for name in schema.names if name != column]
    is_struct = pa.types.is_struct(schema.field(column).type)
    has_path = is_struct and schema.field(column).type.get_field_index("path") >= 0
    leaf = f"{column}.bytes" if is_struct else column
    for group in range(file.num_row_groups):
        n = file.metadata.row_group(group).num_rows
        table = file.read_row_group(group, columns=[*others, *([f"{column}.path"] if has_path else [])])
        paths = pc.struct_field(table.column(column), "path") if has_path else pa.nulls(n, pa.string())
        uris = pa.array([parquet_uri(uri, group, i, column) for i in range(n)], pa.string())
        chunks = (file.metadata.row_group(group).column(i) for i in range(file.metadata.num_columns))
        statistics = next((chunk.statistics for chunk in chunks if chunk.path_in_schema == leaf), None)
        if statistics is None or not statistics.has_null_count or statistics.null_count:
            images = file.read_row_group(group, columns=[leaf]).column(column)
            is_there = pc.is_valid(pc.struct_field(images, "bytes") if is_struct else images)
            uris = pc.if_else(is_there, uris, pa.scalar(None, pa.string()))
        by_name = {name: table.column(name) for name in others} | {column: paths}
        yield pa.table({new: by_name[name] for name, new in zip(schema.names, names, strict=True)}).append_column(
            EMBEDDED, uris
        )
