"""Rows of metadata tables: CSV or Parquet, alone, in a folder, or in a Studio-style zip."""

import hashlib
import io
import os
import posixpath
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from synthscale import filesystems as fsys
from synthscale.config import StorageConfig
from synthscale.errors import InputError
from synthscale.fetch import zip_uri
from synthscale.sources.rows import Dataset, table_rows
from synthscale.sources.vectors import from_vectors, parquet_schema
from synthscale.storage import digest


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
    rows = table_rows(frame, uri, lambda name: zip_uri(uri, posixpath.join(top, name)))
    return Dataset(rows, digest([uri, members]))


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
    """Return the rows of one CSV or Parquet table, of images or of vectors."""
    if uri.lower().endswith(".csv"):
        data = fsys.read_bytes(uri, storage)
        frame = _read_csv(data, uri)
    elif uri.lower().endswith((".parquet", ".pq")):
        schema = parquet_schema(uri, storage)
        if "embedding" in schema.names or not {"image_filename", "uri"} & set(schema.names):
            return from_vectors([uri], storage)
        data = fsys.read_bytes(uri, storage)
        frame = pq.read_table(io.BytesIO(data)).to_pandas(types_mapper=pd.ArrowDtype)
    else:
        raise InputError(f"{uri}: expected a .csv, .parquet or .zip file, or a folder")
    folder = posixpath.dirname(uri)
    top = _top_that_holds(frame, [folder, posixpath.dirname(folder)], lambda path: fsys.exists(path, storage))
    rows = table_rows(frame, uri, lambda name: fsys.join(top, name))
    if not fsys.is_s3(uri):
        _refuse_links_out(rows, top, uri)
    return Dataset(rows, digest([uri, hashlib.blake2b(data, digest_size=16).hexdigest()]))


_TEXT = dict.fromkeys(("id", "label", "generator", "image_filename", "uri", "real_or_synthetic"), pa.string())


def _read_csv(data: bytes, source: str) -> pd.DataFrame:
    # Names and labels stay as they are written: 007 is no number, and NA is a label.
    convert = pacsv.ConvertOptions(column_types=_TEXT, null_values=[""], strings_can_be_null=True)
    parse = pacsv.ParseOptions(newlines_in_values=True)
    try:
        table = pacsv.read_csv(io.BytesIO(data), parse_options=parse, convert_options=convert)
    except pa.ArrowInvalid as error:
        raise InputError(f"{source}: not a readable CSV table: {error}") from error
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    if twice:
        raise InputError(f"{source}: the column {twice[0]!r} occurs more than once")
    frame: pd.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype)
    return frame


def _top_that_holds(frame: pd.DataFrame, candidates: list[str], exists: Callable[[str], bool]) -> str:
    """Return the folder that the file names are relative to: the table's own, else the one above it."""
    names: list[str] = frame["image_filename"].dropna().tolist() if "image_filename" in frame else []
    for name in names[:3]:
        for top in candidates:
            if exists(posixpath.join(top, str(name))):
                return top
    return candidates[0]


def _refuse_links_out(rows: pa.Table, top: str, source: str) -> None:
    """Refuse files named relative to the data set's top that are links to elsewhere."""
    real_top = os.path.realpath(top) + os.sep
    for row, uri in enumerate(rows.column("uri").to_pylist()):
        if uri.startswith(top + "/") and not os.path.realpath(uri).startswith(real_top):
            raise InputError(f"{source}: row {row}: {uri.removeprefix(top + '/')!r} is a link that leaves {top}")
