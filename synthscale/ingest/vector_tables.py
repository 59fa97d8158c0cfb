"""Rows of precomputed vectors: Parquet files with an ``embedding`` column of lists, or numeric columns."""

from collections import Counter

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from synthscale.config import StorageConfig
from synthscale.errors import InputError
from synthscale.ingest.dataset import Dataset, texts, with_user_columns
from synthscale.storage import filesystems as fsys
from synthscale.storage.run_directory import digest
from synthscale.tables.layout import VectorSource


def parquet_schema(uri: str, storage: StorageConfig) -> pa.Schema:
    """Return a Parquet file's schema; raise InputError when it is none."""
    try:
        with fsys.storage_errors(uri, "read"), fsys.filesystem(uri, storage).open(uri, "rb") as file:
            return pq.ParquetFile(file).schema_arrow
    except pa.ArrowInvalid as error:
        raise InputError(f"{uri}: not a readable Parquet file: {error}") from error


_NOT_FEATURES = frozenset({"id", "row", "real_or_synthetic", "label", "generator", "uri", "image_filename"})


def _vector_columns(schema: pa.Schema, uri: str) -> list[str]:
    if "embedding" in schema.names:
        if not _is_list(schema.field("embedding").type):
            raise InputError(f"{uri}: column embedding must hold lists of numbers")
        return ["embedding"]
    columns = [
        f.name
        for f in schema
        if f.name not in _NOT_FEATURES and (pa.types.is_integer(f.type) or pa.types.is_floating(f.type))
    ]
    if not columns:
        raise InputError(f"{uri}: has neither image_filename or uri, nor an embedding column, nor numeric columns")
    return columns


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def from_vectors(uris: list[str], storage: StorageConfig) -> Dataset:
    """Return the rows of Parquet files of vectors, in order; the vectors themselves are read by embed."""
    columns = _vector_columns(parquet_schema(uris[0], storage), uris[0])
    half = columns == ["embedding"]
    tables, rows, lengths, states = [], [], Counter[int](), []
    for uri in uris:
        schema = parquet_schema(uri, storage)
        names = schema.names
        absent = [name for name in ("id", "real_or_synthetic", *columns) if name not in names]
        if absent:
            raise InputError(f"{uri}: lacks the column {', '.join(absent[:3])}")
        half = half and _is_list(kind := schema.field("embedding").type) and kind.value_type == pa.float16()
        others = [name for name in names if name not in columns]
        frame = fsys.read_table(uri, storage, others).to_pandas(types_mapper=pd.ArrowDtype)
        known = {
            "id": texts(frame, "id"),
            # Vectors of images may name them, for the report.
            "uri": pa.array(_uris(frame), pa.string()),
            "image_filename": pa.array(texts(frame, "image_filename") or [None] * len(frame), pa.string()),
        }
        tables.append(with_user_columns(frame, known, uri))
        rows.append(len(frame))
        if columns == ["embedding"]:
            lengths.update(_lengths(uri, storage))
        states.append([uri, str(fsys.filesystem(uri, storage).ukey(uri))])
    # A row of another length than most is that row's fault, found when it is read.
    dimensions = lengths.most_common(1)[0][0] if lengths else len(columns)
    table = pa.concat_tables(tables, promote_options="permissive")
    return Dataset(table, digest(states), VectorSource(uris, rows, columns, dimensions, half))


def _uris(frame: pd.DataFrame) -> list[str | None]:
    given = texts(frame, "uri") or [None] * len(frame)
    return [
        fsys.absolute(uri) if uri is not None and ("://" in uri or uri.startswith("/")) else None for uri in given
    ]


def _lengths(uri: str, storage: StorageConfig) -> Counter[int]:
    """Count the lengths of a file's vectors, one row group in memory at a time."""
    counted = Counter[int]()
    with fsys.storage_errors(uri, "read"), fsys.filesystem(uri, storage).open(uri, "rb") as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=["embedding"]):
            counted.update(n for n in pc.list_value_length(batch.column(0)).to_pylist() if n)
    return counted
