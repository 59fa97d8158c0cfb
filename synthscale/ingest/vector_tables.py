"""Rows of precomputed vectors: Parquet files with an ``embedding`` column of lists, or one column per dimension.

Reads the metadata columns and the vectors' lengths; `vector_reader` reads the vectors themselves, for embed.
"""

import re
from collections import Counter

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from synthscale.config import StorageConfig
from synthscale.errors import InputError
from synthscale.ingest.dataset import Dataset, to_strings, with_user_columns
from synthscale.storage import filesystems as fsys
from synthscale.storage.run_directory import digest
from synthscale.tables.layout import VectorSource


def parquet_schema(uri: str, storage: StorageConfig) -> pa.Schema:
    """Return a Parquet file's schema; raise InputError if the file is damaged or not Parquet."""
    try:
        with fsys.storage_errors(uri, "read"), fsys.open_file(uri, storage) as file:
            return pq.ParquetFile(file).schema_arrow
    except pa.ArrowInvalid as error:
        raise InputError(f"{uri}: not a readable Parquet file: {error}") from error


_NOT_FEATURES = frozenset({"id", "row", "real_or_synthetic", "label", "generator", "uri", "image_filename"})
"""Columns that are not dimensions of a vector even if they are numeric."""
_INDEX_NAME = re.compile(r"index|__index_level_\d+__|Unnamed: \d+")
"""Names of row numbers that pandas writes. Real and synthetic rows that were numbered one after the other are told
apart by them, and copies differ in them."""


def _vector_columns(schema: pa.Schema, uri: str) -> list[str]:
    """Return the vector columns: ``embedding``, or else all numeric columns but `_NOT_FEATURES` and an index."""
    if "embedding" in schema.names:
        if not _is_list(schema.field("embedding").type):
            raise InputError(f"{uri}: the column embedding must contain lists of numbers")
        return ["embedding"]
    index = [name for name in (schema.pandas_metadata or {}).get("index_columns", []) if isinstance(name, str)]
    columns = [
        f.name
        for f in schema
        if f.name not in _NOT_FEATURES.union(index)
        and not _INDEX_NAME.fullmatch(f.name)
        and (pa.types.is_integer(f.type) or pa.types.is_floating(f.type))
    ]
    if not columns:
        raise InputError(f"{uri}: found no column image_filename, uri or embedding, and no numeric columns")
    return columns


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def from_vectors(uris: list[str], storage: StorageConfig) -> Dataset:
    """Return the rows of Parquet files of vectors, in the order of the files, without the vectors.

    Args:
        uris: files, at least one. The first one decides which columns are the vectors.
        storage: S3 settings.

    Returns:
        Rows, and the location of the vectors: D is the most frequent length, and they are float16 if all files
        have lists of float16.

    Raises:
        InputError: a file is not Parquet, or lacks ``id``, ``real_or_synthetic`` or a vector column.
        StorageError: a file cannot be read.
    """
    columns = _vector_columns(parquet_schema(uris[0], storage), uris[0])
    half = columns == ["embedding"]
    tables, rows, lengths, versions = [], [], Counter[int](), []
    for uri in uris:
        schema = parquet_schema(uri, storage)
        names = schema.names
        missing = [name for name in ("id", "real_or_synthetic", *columns) if name not in names]
        if missing:
            raise InputError(f"{uri}: missing columns: {', '.join(missing[:3])}")
        half = half and _is_list(kind := schema.field("embedding").type) and kind.value_type == pa.float16()
        others = [name for name in names if name not in columns]
        frame = fsys.read_table(uri, storage, others).to_pandas(types_mapper=pd.ArrowDtype)
        source_columns = {
            "id": to_strings(frame, "id"),
            # Vectors may come with the URIs of their images, which the report shows.
            "uri": pa.array(_uris(frame), pa.string()),
            "image_filename": pa.array(to_strings(frame, "image_filename") or [None] * len(frame), pa.string()),
        }
        tables.append(with_user_columns(frame, source_columns, uri))
        rows.append(len(frame))
        if columns == ["embedding"]:
            lengths.update(_count_lengths(uri, storage))
        versions.append([uri, fsys.version(uri, storage)])
    # A vector of a different length is recorded as a failure of its row when embed reads it.
    dimensions = lengths.most_common(1)[0][0] if lengths else len(columns)
    table = pa.concat_tables(tables, promote_options="permissive")
    return Dataset(table, digest(versions), VectorSource(uris, rows, columns, dimensions, half))


def _uris(frame: pd.DataFrame) -> list[str | None]:
    """Return the column ``uri``; None for values that are neither URIs nor absolute paths."""
    given = to_strings(frame, "uri") or [None] * len(frame)
    return [
        fsys.absolute(uri) if uri is not None and ("://" in uri or uri.startswith("/")) else None for uri in given
    ]


def _count_lengths(uri: str, storage: StorageConfig) -> Counter[int]:
    """Count the vectors of each length in a file, except null and empty ones, one batch in memory at a time."""
    counts = Counter[int]()
    with fsys.storage_errors(uri, "read"), fsys.open_file(uri, storage) as file:
        for batch in pq.ParquetFile(file).iter_batches(columns=["embedding"]):
            counts.update(n for n in pc.list_value_length(batch.column(0)).to_pylist() if n)
    return counts
