"""Rows of metadata tables: CSV, JSON Lines or Parquet, alone, in a folder, or in a zip as Cleanlab Studio takes.

Reads tables in batches, and the sizes and etags of the files that they name. Rows are spooled to temporary files.
"""

import hashlib
import io
import os
import posixpath
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from synthscale.config import StorageConfig
from synthscale.errors import InputError
from synthscale.ingest.dataset import Dataset, table_rows
from synthscale.ingest.file_stats import add_file_stats
from synthscale.ingest.spool import Spool
from synthscale.ingest.vector_tables import from_vectors, parquet_schema
from synthscale.storage import filesystems as fsys
from synthscale.storage.fetch import zip_uri
from synthscale.storage.run_directory import digest

_BLOCK_BYTES = 64 * 2**20
"""Bytes of a CSV or JSON Lines table parsed at a time (64 MiB).

The types of user columns are inferred from the first block.
"""
_BATCH_ROWS = 65_536
"""Rows per batch of a JSON Lines or Parquet table."""
_LOOKUP_ROWS = 2**19
"""Rows whose files are looked up in one call: more rows need fewer S3 listings, and as many are in memory."""


def from_zip(uri: str, storage: StorageConfig) -> Dataset:
    """Return the rows of the ``metadata.csv`` in a zip file of images, the one nearest the root if there are more.

    Raises:
        InputError: the zip file is damaged or contains no ``metadata.csv``, or that table is invalid.
    """
    try:
        # Not through the handle cache of `fetch`: the file may have been replaced since this process last read it.
        with fsys.open_file(uri, storage) as file, zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            tables = [name for name in names if posixpath.basename(name) == "metadata.csv"]
            if not tables:
                raise InputError(f"{uri}: contains no metadata.csv")
            table = min(tables, key=lambda name: (name.count("/"), name))
            frame = _read_csv(archive.read(table), f"{uri}: {table}")
            members = sorted((info.filename, info.CRC, info.file_size) for info in archive.infolist())
    except (zipfile.BadZipFile, zlib.error, OSError) as error:
        raise InputError(f"{uri}: not a readable zip file: {error}") from error
    folder = posixpath.dirname(table)
    top = _find_image_folder(frame, [folder, posixpath.dirname(folder)], lambda path: path in names)
    (rows,) = add_file_stats(
        [table_rows(frame, uri, lambda name: zip_uri(uri, posixpath.join(top, name)))], storage
    )
    return Dataset(rows, digest([uri, members]), is_table=True)


def from_dataset_folder(uri: str, storage: StorageConfig) -> Dataset:
    """Return the rows of a folder with a metadata table, or else with Parquet files of vectors.

    Raises:
        InputError: the folder contains neither, or the table or a file is invalid.
    """
    for name in ("metadata.csv", "metadata.parquet", "images/metadata.csv", "images/metadata.parquet"):
        if fsys.exists(fsys.join(uri, name), storage):
            return from_table_file(fsys.join(uri, name), storage)
    files = [i.path for i in fsys.list_files(uri, storage) if i.path.endswith(".parquet")]
    if files:
        return from_vectors([f"s3://{path}" if fsys.is_s3(uri) else path for path in files], storage)
    raise InputError(f"{uri}: contains no metadata.csv, metadata.parquet or Parquet files of vectors")


def from_table_file(uri: str, storage: StorageConfig) -> Dataset:
    """Return the rows of one table: CSV, JSON Lines or Parquet of images, or Parquet of vectors.

    Raises:
        InputError: the suffix is unknown, the table is invalid, or a path leaves the data set's folder.
        StorageError: the table cannot be read.
    """
    suffix = posixpath.splitext(uri)[1].lower()
    if suffix in {".parquet", ".pq"}:
        schema = parquet_schema(uri, storage)
        if "embedding" in schema.names or not {"image_filename", "uri"} & set(schema.names):
            return from_vectors([uri], storage)
    if suffix not in _BATCH_READERS:
        raise InputError(f"{uri}: expected a {', '.join(sorted(_BATCH_READERS))} or .zip file, or a folder")
    folder, top, first_row = posixpath.dirname(uri), None, 0
    waiting: list[pa.Table] = []
    with Spool() as spool:
        for frame in _frames(uri, storage, _BATCH_READERS[suffix]):
            if top is None:
                candidates = [folder, posixpath.dirname(folder)]
                top = _find_image_folder(frame, candidates, lambda path: fsys.exists(path, storage))
            rows = table_rows(frame, uri, partial(fsys.join, top), first_row)
            if not fsys.is_s3(uri):
                _check_links(rows, top, uri, first_row)
            waiting.append(rows)
            first_row += len(frame)
            if sum(map(len, waiting)) >= _LOOKUP_ROWS:
                spool.add_all(add_file_stats(waiting, storage))
                waiting = []
        spool.add_all(add_file_stats(waiting, storage))
        return Dataset(spool.rows(), digest([uri, _content_hash(uri, storage)]), is_table=True)


def _content_hash(uri: str, storage: StorageConfig) -> str:
    content = hashlib.blake2b(digest_size=16)
    with fsys.storage_errors(uri, "read"), fsys.open_file(uri, storage) as file:
        while piece := file.read(_BLOCK_BYTES):
            content.update(piece)
    return content.hexdigest()


def _frames(uri: str, storage: StorageConfig, read: Callable[[Any], Any]) -> Iterator[pd.DataFrame]:
    """Yield a table's rows in batches; raise InputError if it is malformed or a column name is repeated."""
    with fsys.storage_errors(uri, "read"), fsys.open_file(uri, storage) as file:
        try:
            for batch in read(file):
                _check_column_names(batch.schema.names, uri)
                yield batch.to_pandas(types_mapper=pd.ArrowDtype)
        except pa.ArrowInvalid as error:
            raise InputError(f"{uri}: not a readable table: {error}") from error


_STRING_COLUMNS = dict.fromkeys(
    ("id", "label", "generator", "image_filename", "uri", "real_or_synthetic"), pa.string()
)
"""Columns that are read as strings whatever their values look like."""


def _read_csv(data: bytes, source: str) -> pd.DataFrame:
    try:
        table = _csv_batches(io.BytesIO(data)).read_all()
    except pa.ArrowInvalid as error:
        raise InputError(f"{source}: not a readable CSV table: {error}") from error
    _check_column_names(table.column_names, source)
    frame: pd.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype)
    return frame


def _check_column_names(names: list[str], source: str) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"{source}: the column {repeated[0]!r} occurs more than once")


def _csv_batches(file: Any) -> Any:
    # Names and labels are kept as written: 007 is not the number 7, and NA is a label and not a null.
    convert = pacsv.ConvertOptions(column_types=_STRING_COLUMNS, null_values=[""], strings_can_be_null=True)
    parse = pacsv.ParseOptions(newlines_in_values=True)
    read = pacsv.ReadOptions(block_size=_BLOCK_BYTES)
    return pacsv.open_csv(file, read, parse, convert)


def _json_batches(file: Any) -> Any:
    parse = pajson.ParseOptions(
        explicit_schema=pa.schema(_STRING_COLUMNS.items()), unexpected_field_behavior="infer"
    )
    table = pajson.read_json(file, pajson.ReadOptions(block_size=_BLOCK_BYTES), parse)
    # The explicit schema adds a null column for each string column that the file does not have.
    present = [
        name
        for name in table.column_names
        if name not in _STRING_COLUMNS or table.column(name).null_count < len(table)
    ]
    return table.select(present).to_batches(max_chunksize=_BATCH_ROWS)


def _parquet_batches(file: Any) -> Any:
    return pq.ParquetFile(file).iter_batches(_BATCH_ROWS)


_BATCH_READERS: dict[str, Callable[[Any], Any]] = {
    ".csv": _csv_batches,
    ".jsonl": _json_batches,
    ".ndjson": _json_batches,
    ".parquet": _parquet_batches,
    ".pq": _parquet_batches,
}
"""Function that yields record batches of an open file, by lower-case suffix."""


def _find_image_folder(frame: pd.DataFrame, candidates: list[str], exists: Callable[[str], bool]) -> str:
    """Return the first candidate folder in which one of the first three file names exists, else the first."""
    names: list[str] = frame["image_filename"].dropna().tolist() if "image_filename" in frame else []
    for name in names[:3]:
        for top in candidates:
            if exists(posixpath.join(top, str(name))):
                return top
    return candidates[0]


def _check_links(rows: pa.Table, top: str, source: str, first_row: int) -> None:
    """Raise InputError if a file below the data set's folder is a symbolic link to a file outside it."""
    real_top = os.path.realpath(top) + os.sep
    for row, uri in enumerate(rows.column("uri").to_pylist(), first_row):
        if uri.startswith(top + "/") and not os.path.realpath(uri).startswith(real_top):
            raise InputError(
                f"{source}: row {row}: {uri.removeprefix(top + '/')!r} is a link to a file outside {top}"
            )
