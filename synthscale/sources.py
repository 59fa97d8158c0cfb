"""Finds the rows of a data set: image folders, metadata tables, Studio-style zips and folders, vector tables.

Reads listings and tables, never pixels or vectors. Gives an Arrow table with the manifest's columns but ``row``.
"""

import io
import os
import posixpath
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from synthscale import filesystems as fsys
from synthscale.config import Config, StorageConfig
from synthscale.errors import InputError
from synthscale.fetch import open_archive, zip_uri
from synthscale.images import SUFFIXES
from synthscale.schemas import REAL, SYNTHETIC
from synthscale.storage import digest


@dataclass(frozen=True)
class VectorSource:
    """Where precomputed vectors lie: Parquet files in row order, and the columns that hold the numbers."""

    files: list[str]
    file_rows: list[int]
    columns: list[str]
    dimensions: int


@dataclass(frozen=True)
class Dataset:
    """The rows of a run before they are numbered, a digest of what was found, and what was passed over."""

    rows: pa.Table
    digest: str
    vectors: VectorSource | None = None
    notes: list[str] = field(default_factory=list)


def discover(config: Config) -> Dataset:
    """Resolve a configuration's input to rows; raise InputError or StorageError when that cannot be done."""
    if config.manifest is None:
        return _from_folders(config)
    uri = fsys.absolute(config.manifest)
    storage = config.storage
    if not fsys.exists(uri, storage):
        raise InputError(f"{uri}: not found")
    if uri.lower().endswith(".zip"):
        return _from_zip(uri, storage)
    if fsys.is_folder(uri, storage):
        return _from_dataset_folder(uri, storage)
    return _from_table_file(uri, storage)


# Folders of images.


def _from_folders(config: Config) -> Dataset:
    assert config.real is not None
    sets = [(REAL, None, config.real), *((SYNTHETIC, name, uri) for name, uri in config.synthetic.items())]
    tables, listing, notes = [], [], []
    for kind, generator, uri in sets:
        top = fsys.absolute(uri)
        if not fsys.is_folder(top, config.storage):
            raise InputError(f"{top}: no such folder of images")
        found = fsys.list_files(top, config.storage)
        images = [info for info in found if posixpath.splitext(info.path)[1].lower() in SUFFIXES]
        if not images:
            raise InputError(f"{top}: holds no images ({', '.join(sorted(SUFFIXES))})")
        if len(images) < len(found):
            notes.append(f"{top}: {len(found) - len(images)} files that are no images were passed over")
        tables.append(_folder_rows(top, images, kind, generator))
        listing.append([kind, generator, top, [[i.path, i.size_bytes, _state(i, config.storage)] for i in images]])
    return Dataset(pa.concat_tables(tables), digest(listing), notes=notes)


def _folder_rows(top: str, images: list[fsys.FileInfo], kind: str, generator: str | None) -> pa.Table:
    prefix = top.removeprefix("s3://").rstrip("/") + "/"
    relative = [info.path.removeprefix(prefix) for info in images]
    parents = [posixpath.basename(posixpath.dirname(path)) or None for path in relative]
    n = len(images)
    return pa.table(
        {
            "id": [f"{generator or REAL}/{path}" for path in relative],
            "uri": [fsys.join(top, path) for path in relative],
            "real_or_synthetic": pa.array([kind] * n, pa.string()),
            "label": pa.array(parents, pa.string()),
            "generator": pa.array([generator] * n, pa.string()),
            "image_filename": relative,
            "size_bytes": pa.array([info.size_bytes for info in images], pa.int64()),
            "etag": pa.array([info.etag for info in images], pa.string()),
        }
    )


def _state(info: fsys.FileInfo, storage: StorageConfig) -> Any:
    """What tells whether a listed file has changed: its etag on S3, its modification time on a disk."""
    return info.etag if info.etag is not None else os.stat(info.path).st_mtime_ns


# Metadata tables.


def _from_zip(uri: str, storage: StorageConfig) -> Dataset:
    try:
        archive = open_archive(uri, storage)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{uri}: not a readable zip file: {error}") from error
    names = set(archive.namelist())
    tables = sorted((n for n in names if posixpath.basename(n) == "metadata.csv"), key=lambda n: (n.count("/"), n))
    if not tables:
        raise InputError(f"{uri}: holds no metadata.csv")
    frame = _read_csv(archive.read(tables[0]), f"{uri}: {tables[0]}")
    folder = posixpath.dirname(tables[0])
    top = _top_that_holds(frame, [folder, posixpath.dirname(folder)], lambda path: path in names)
    rows = _table_rows(frame, uri, lambda name: zip_uri(uri, posixpath.join(top, name)))
    crcs = sorted((info.filename, info.CRC, info.file_size) for info in archive.infolist())
    return Dataset(rows, digest([uri, crcs]))


def _from_dataset_folder(uri: str, storage: StorageConfig) -> Dataset:
    for name in ("metadata.csv", "metadata.parquet", "images/metadata.csv", "images/metadata.parquet"):
        if fsys.exists(fsys.join(uri, name), storage):
            return _from_table_file(fsys.join(uri, name), storage)
    files = [i.path for i in fsys.list_files(uri, storage) if i.path.endswith(".parquet")]
    if files:
        return _from_vectors([f"s3://{path}" if fsys.is_s3(uri) else path for path in files], storage)
    raise InputError(f"{uri}: holds neither metadata.csv, metadata.parquet nor Parquet files of vectors")


def _from_table_file(uri: str, storage: StorageConfig) -> Dataset:
    if uri.lower().endswith(".csv"):
        data = fsys.read_bytes(uri, storage)
        frame = _read_csv(data, uri)
    elif uri.lower().endswith((".parquet", ".pq")):
        schema = _parquet_schema(uri, storage)
        if not {"image_filename", "uri"} & set(schema.names):
            return _from_vectors([uri], storage)
        data = fsys.read_bytes(uri, storage)
        frame = pq.read_table(io.BytesIO(data)).to_pandas(types_mapper=pd.ArrowDtype)
    else:
        raise InputError(f"{uri}: expected a .csv, .parquet or .zip file, or a folder")
    folder = posixpath.dirname(uri)
    top = _top_that_holds(frame, [folder, posixpath.dirname(folder)], lambda path: fsys.exists(path, storage))
    rows = _table_rows(frame, uri, lambda name: fsys.join(top, name))
    if not fsys.is_s3(uri):
        _refuse_links_out(rows, top, uri)
    return Dataset(rows, digest([uri, digest(data.hex())]))


def _read_csv(data: bytes, source: str) -> pd.DataFrame:
    try:
        text = {"id": "string", "label": "string", "generator": "string"}
        return pd.read_csv(io.BytesIO(data), dtype=text, keep_default_na=True)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: not a readable CSV table: {error}") from error


def _top_that_holds(frame: pd.DataFrame, candidates: list[str], exists: Any) -> str:
    """Return the folder that the file names are relative to: the table's own, else the one above it."""
    names: list[Any] = frame["image_filename"].dropna().tolist() if "image_filename" in frame else []
    for name in names[:3]:
        for top in candidates:
            if exists(posixpath.join(top, str(name))):
                return top
    return candidates[0]


def _table_rows(frame: pd.DataFrame, source: str, locate: Any) -> pa.Table:
    if "real_or_synthetic" not in frame:
        raise InputError(f"{source}: lacks the column real_or_synthetic")
    if not {"image_filename", "uri"} & set(frame.columns):
        raise InputError(f"{source}: lacks the column image_filename (or uri)")
    n = len(frame)
    names = _texts(frame, "image_filename") or [None] * n
    uris = _texts(frame, "uri") or [None] * n
    resolved = []
    for i, (name, uri) in enumerate(zip(names, uris, strict=True)):
        if uri is None and name is None:
            raise InputError(f"{source}: row {i} has neither image_filename nor uri")
        if uri is not None and ("://" in uri or uri.startswith(("/", "~"))):
            resolved.append(fsys.absolute(uri))
            continue
        path = str(name if uri is None else uri)
        _refuse_path_out(path, source, i)
        resolved.append(locate(path))
    known = {
        "id": _texts(frame, "id") or [name or uri for name, uri in zip(names, uris, strict=True)],
        "uri": resolved,
        "image_filename": names,
    }
    return _with_user_columns(frame, known, source)


def _with_user_columns(frame: pd.DataFrame, known: dict[str, Any], source: str) -> pa.Table:
    n = len(frame)
    kinds = [None if kind is None else kind.strip().lower() for kind in _texts(frame, "real_or_synthetic") or []]
    unknown = Counter(str(kind) for kind in kinds if kind not in {REAL, SYNTHETIC})
    if unknown:
        values = ", ".join(f"{value!r} ({count} rows)" for value, count in unknown.most_common(3))
        raise InputError(f"{source}: real_or_synthetic must be 'real' or 'synthetic', found {values}")
    generators = _texts(frame, "generator") or [None] * n
    columns: dict[str, Any] = {
        **known,
        "real_or_synthetic": pa.array(kinds, pa.string()),
        "label": pa.array(_texts(frame, "label") or [None] * n, pa.string()),
        "generator": pa.array(
            [None if kind == REAL else (name or SYNTHETIC) for kind, name in zip(kinds, generators, strict=True)],
            pa.string(),
        ),
        "size_bytes": pa.nulls(n, pa.int64()),
        "etag": pa.nulls(n, pa.string()),
    }
    for name in frame.columns:
        if name not in columns and name not in {"uri", "row"}:
            columns[str(name)] = pa.Array.from_pandas(frame[name])
    return pa.table(columns)


def _texts(frame: pd.DataFrame, column: str) -> list[str | None] | None:
    if column not in frame:
        return None
    return [None if pd.isna(value) else str(value) for value in frame[column]]


def _refuse_path_out(name: str, source: str, row: int) -> None:
    plain = name.replace("\\", "/")
    if plain.startswith("/") or "://" in plain or ".." in plain.split("/") or plain[1:2] == ":":
        raise InputError(
            f"{source}: row {row}: image_filename {name!r} leaves the data set's folder; "
            "use a path below it, or an absolute path or URI in a uri column"
        )


def _refuse_links_out(rows: pa.Table, top: str, source: str) -> None:
    """Refuse files named relative to the data set's top that are links to elsewhere."""
    real_top = os.path.realpath(top) + os.sep
    for row, uri in enumerate(rows.column("uri").to_pylist()):
        if uri.startswith(top + "/") and not os.path.realpath(uri).startswith(real_top):
            raise InputError(f"{source}: row {row}: {uri.removeprefix(top + '/')!r} is a link that leaves {top}")


# Precomputed vectors.


def _parquet_schema(uri: str, storage: StorageConfig) -> pa.Schema:
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


def _from_vectors(uris: list[str], storage: StorageConfig) -> Dataset:
    schema = _parquet_schema(uris[0], storage)
    columns = _vector_columns(schema, uris[0])
    absent = [name for name in ("id", "real_or_synthetic") if name not in schema.names]
    if absent:
        raise InputError(f"{uris[0]}: lacks the column {', '.join(absent)}")
    others = [name for name in schema.names if name not in columns]
    tables, rows, lengths, states = [], [], Counter[int](), []
    for uri in uris:
        frame = fsys.read_table(uri, storage, others).to_pandas(types_mapper=pd.ArrowDtype)
        known = {
            "id": _texts(frame, "id"),
            "uri": pa.nulls(len(frame), pa.string()),
            "image_filename": pa.array(_texts(frame, "image_filename") or [None] * len(frame), pa.string()),
        }
        tables.append(_with_user_columns(frame, known, uri))
        rows.append(len(frame))
        if columns == ["embedding"]:
            values = fsys.read_table(uri, storage, columns).column("embedding")
            lengths.update(n for n in pa.compute.list_value_length(values).to_pylist() if n)
        states.append([uri, str(fsys.filesystem(uri, storage).ukey(uri))])
    # A row of another length than most is that row's fault, found when it is read.
    dimensions = lengths.most_common(1)[0][0] if lengths else len(columns)
    table = pa.concat_tables(tables, promote_options="permissive")
    return Dataset(table, digest(states), VectorSource(uris, rows, columns, dimensions))
