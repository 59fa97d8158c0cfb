"""Rows of metadata tables: CSV, JSONL or Parquet, alone, in a folder, or in a Studio-style zip."""

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
from synthscale.ingest.file_stats import with_states
from synthscale.ingest.spool import Spool
from synthscale.ingest.vector_tables import from_vectors, parquet_schema
from synthscale.storage import filesystems as fsys
from synthscale.storage.fetch import zip_uri
from synthscale.storage.run_directory import digest

_BLOCK_BYTES = 64 * 2**20
"""What is read of a CSV or JSONL table at a time; the kinds of a user's columns are those of the first."""
_ROWS = 65_536
_LOOKED_UP = 2**19
"""Rows whose files are looked up at once."""


def from_zip(uri: str, storage: StorageConfig) -> Dataset:
    """Return the rows of the metadata.csv in a zip file of images."""
    try:
        # Opened anew: the file may have been replaced since this process last read it.
        with fsys.filesystem(uri, storage).open(uri, "rb") as file, zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            tables = [name for name in names if posixpath.basename(name) == "metadata.csv"]
            if not tables:
                raise InputError(f"{uri}: holds no metadata.csv")
            table = min(tables, key=lambda name: (name.count("/"), name))
            frame = _read_csv(archive.read(table), f"{uri}: {table}")
            members = sorted((info.filename, info.CRC, info.file_size) for info in archive.infolist())
    except (zipfile.BadZipFile, zlib.error, OSError) as error:
        raise InputError(f"{uri}: not a readable zip file: {error}") from error
    folder = posixpath.dirname(table)
    top = _top_that_holds(frame, [folder, posixpath.dirname(folder)], lambda path: path in names)
    (rows,) = with_states([table_rows(frame, uri, lambda name: zip_uri(uri, posixpath.join(top, name)))], storage)
    return Dataset(rows, digest([uri, members]), is_table=True)


def from_dataset_folder(uri: str, storage: StorageConfig) -> Dataset:
    """Return the rows of a folder that holds a metadata table, or Parquet files of vectors."""
    for name in ("metadata.csv", "metadata.parquet", "images/metadata.csv", "images/metadata.parquet"):
        if fsys.exists(fsys.join(uri, name), storage):
            return from_table_file(fsys.join(uri, name), storage)
    files = [i.path for i in fsys.list_files(uri, storage) if i.path.endswith(".parquet")]
    if files:
        return from_vectors([f"s3://{path}" if fsys.is_s3(uri) else path for path in files], storage)
    raise InputError(f"{uri}: holds neither metadata.csv, metadata.parquet nor Parquet files of vectors")


def from_table_file(uri: str, storage: StorageConfig) -> Dataset:
    """Return the rows of one CSV, JSONL or Parquet table, of images or of vectors."""
    suffix = posixpath.splitext(uri)[1].lower()
    if suffix in {".parquet", ".pq"}:
        schema = parquet_schema(uri, storage)
        if "embedding" in schema.names or not {"image_filename", "uri"} & set(schema.names):
            return from_vectors([uri], storage)
    if suffix not in _FRAMES:
        raise InputError(f"{uri}: expected a {', '.join(sorted(_FRAMES))} or .zip file, or a folder")
    folder, top, first = posixpath.dirname(uri), None, 0
    waiting: list[pa.Table] = []
    with Spool() as spool:
        for frame in _frames(uri, storage, _FRAMES[suffix]):
            if top is None:
                candidates = [folder, posixpath.dirname(folder)]
                top = _top_that_holds(frame, candidates, lambda path: fsys.exists(path, storage))
            rows = table_rows(frame, uri, partial(fsys.join, top), first)
            if not fsys.is_s3(uri):
                _refuse_links_out(rows, top, uri, first)
            waiting.append(rows)
            first += len(frame)
            if sum(map(len, waiting)) >= _LOOKED_UP:
                spool.add_all(with_states(waiting, storage))
                waiting = []
        spool.add_all(with_states(waiting, storage))
        return Dataset(spool.rows(), digest([uri, _content(uri, storage)]), is_table=True)


def _content(uri: str, storage: StorageConfig) -> str:
    content = hashlib.blake2b(digest_size=16)
    with fsys.storage_errors(uri, "read"), fsys.filesystem(uri, storage).open(uri, "rb") as file:
        while piece := file.read(_BLOCK_BYTES):
            content.update(piece)
    return content.hexdigest()


def _frames(uri: str, storage: StorageConfig, read: Callable[[Any], Any]) -> Iterator[pd.DataFrame]:
    """Yield a table's rows, some thousands at a time."""
    with fsys.storage_errors(uri, "read"), fsys.filesystem(uri, storage).open(uri, "rb") as file:
        try:
            for batch in read(file):
                _refuse_twice(batch.schema.names, uri)
                yield batch.to_pandas(types_mapper=pd.ArrowDtype)
        except pa.ArrowInvalid as error:
            raise InputError(f"{uri}: not a readable table: {error}") from error


_TEXT = dict.fromkeys(("id", "label", "generator", "image_filename", "uri", "real_or_synthetic"), pa.string())


def _read_csv(data: bytes, source: str) -> pd.DataFrame:
    try:
        table = _csv_batches(io.BytesIO(data)).read_all()
    except pa.ArrowInvalid as error:
        raise InputError(f"{source}: not a readable CSV table: {error}") from error
    _refuse_twice(table.column_names, source)
    frame: pd.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype)
    return frame


def _refuse_twice(names: list[str], source: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{source}: the column {twice[0]!r} occurs more than once")


def _csv_batches(file: Any) -> Any:
    # Names and labels stay as they are written: 007 is no number, and NA is a label.
    convert = pacsv.ConvertOptions(column_types=_TEXT, null_values=[""], strings_can_be_null=True)
    parse = pacsv.ParseOptions(newlines_in_values=True)
    read = pacsv.ReadOptions(block_size=_BLOCK_BYTES)
    return pacsv.open_csv(file, read, parse, convert)


def _json_batches(file: Any) -> Any:
    known = pajson.ParseOptions(explicit_schema=pa.schema(_TEXT.items()), unexpected_field_behavior="infer")
    table = pajson.read_json(file, pajson.ReadOptions(block_size=_BLOCK_BYTES), known)
    there = [
        name for name in table.column_names if name not in _TEXT or table.column(name).null_count < len(table)
    ]
    return table.select(there).to_batches(max_chunksize=_ROWS)


def _parquet_batches(file: Any) -> Any:
    return pq.ParquetFile(file).iter_batches(_ROWS)


_FRAMES: dict[str, Callable[[Any], Any]] = {
    ".csv": _csv_batches,
    ".jsonl": _json_batches,
    ".ndjson": _json_batches,
    ".parquet": _parquet_batches,
    ".pq": _parquet_batches,
}


def _top_that_holds(frame: pd.DataFrame, candidates: list[str], exists: Callable[[str], bool]) -> str:
    """Return the folder that the file names are relative to: the table's own, else the one above it."""
    names: list[str] = frame["image_filename"].dropna().tolist() if "image_filename" in frame else []
    for name in names[:3]:
        for top in candidates:
            if exists(posixpath.join(top, str(name))):
                return top
    return candidates[0]


def _refuse_links_out(rows: pa.Table, top: str, source: str, first_row: int) -> None:
    """Refuse files named relative to the data set's top that are links to elsewhere."""
    real_top = os.path.realpath(top) + os.sep
    for row, uri in enumerate(rows.column("uri").to_pylist(), first_row):
        if uri.startswith(top + "/") and not os.path.realpath(uri).startswith(real_top):
            raise InputError(f"{source}: row {row}: {uri.removeprefix(top + '/')!r} is a link that leaves {top}")
