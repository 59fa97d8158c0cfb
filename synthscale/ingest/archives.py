"""Rows of archives: WebDataset tars, zips of images, and Parquet files that hold images.

Only what says where the images lie is read: a tar's headers and its small text members, a zip's directory, a
Parquet file's other columns.
"""

import json
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthscale.config import StorageConfig
from synthscale.errors import InputError
from synthscale.ingest.dataset import OURS
from synthscale.storage import filesystems as fsys
from synthscale.storage.fetch import parquet_uri, tar_uri, zip_uri
from synthscale.tables.image_formats import SUFFIXES

_BATCH = 20_000
_TEXT_BYTES = 2**20
"""Larger text members are no labels."""


@dataclass(frozen=True)
class Archive:
    """A file that holds images: where it is, its name below its set, and its etag on S3."""

    uri: str
    relative: str
    etag: str | None


def members_of(archive: Archive, storage: StorageConfig) -> Iterator[dict[str, Any]]:
    """Yield the manifest's columns of an archive's images, some thousands at a time; raise InputError."""
    read = ARCHIVES[posixpath.splitext(archive.uri)[1].lower()]
    try:
        with (
            fsys.storage_errors(archive.uri, "read"),
            fsys.filesystem(archive.uri, storage).open(archive.uri) as f,
        ):
            yield from read(archive, f)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, pa.ArrowInvalid, EOFError) as error:
        raise InputError(f"{archive.uri}: damaged or no {archive.uri.rpartition('.')[2]} file: {error}") from error


def _columns(archive: Archive, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Turn rows into columns; what only some rows have is null in the others, and mixed kinds become texts."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns: dict[str, Any] = {name: _array([row.get(name) for row in rows]) for name in names}
    return {
        "id": [row["id"] for row in rows],
        "uri": [row["uri"] for row in rows],
        "label": pa.array([row.get("label") for row in rows], pa.string()),
        "image_filename": pa.array([row.get("image_filename") for row in rows], pa.string()),
        "size_bytes": pa.array([row.get("size_bytes") for row in rows], pa.int64()),
        "etag": pa.array([archive.etag] * len(rows), pa.string()),
        **{name: column for name, column in columns.items() if name not in OURS},
    }


def _array(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())


def _users(values: dict[str, Any]) -> dict[str, Any]:
    """What a user's table or JSON says of an image, under names that are not ours; only plain values."""
    plain = {
        name: value for name, value in values.items() if value is None or isinstance(value, str | int | float)
    }
    return {f"user_{name}" if name in OURS else name: value for name, value in plain.items()}


# WebDataset: the members of a sample follow one another, and share their name up to its first dot.


def _tar_members(archive: Archive, file: Any) -> Iterator[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with tarfile.open(fileobj=file, mode="r:") as tar:
        key, images, said = "", list[dict[str, Any]](), dict[str, Any]()
        for member in tar:
            if not member.isfile():
                continue
            folder, name = posixpath.split(member.name)
            stem, _, kind = name.partition(".")
            if posixpath.join(folder, stem) != key:
                rows += [{**said, **image} for image in images]
                key, images, said = posixpath.join(folder, stem), [], {}
                if len(rows) >= _BATCH:
                    yield _columns(archive, rows)
                    rows = []
            if posixpath.splitext(name)[1].lower() in SUFFIXES:
                images.append(
                    {
                        "id": f"{archive.relative}/{member.name}",
                        "uri": tar_uri(archive.uri, member.name, member.offset_data, member.size),
                        "image_filename": member.name,
                        "size_bytes": member.size,
                    }
                )
                said.setdefault("label", posixpath.basename(folder) or None)
            elif kind in {"cls", "txt", "json"} and member.size <= _TEXT_BYTES:
                data = tar.extractfile(member)
                said |= _said(archive, member.name, kind, b"" if data is None else data.read())
        rows += [{**said, **image} for image in images]
    if rows:
        yield _columns(archive, rows)


def _said(archive: Archive, name: str, kind: str, data: bytes) -> dict[str, Any]:
    try:
        text = data.decode().strip()
        if kind == "cls":
            return {"label": text}
        if kind == "txt":
            return {"caption": text}
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"{archive.uri}: {name}: not readable: {error}") from error
    if not isinstance(values, dict):
        return {}
    label = {"label": str(values["label"])} if isinstance(values.get("label"), str | int) else {}
    return label | _users({name: value for name, value in values.items() if name != "label"})


# Zips of images.


def _zip_members(archive: Archive, file: Any) -> Iterator[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with zipfile.ZipFile(file) as opened:
        for info in opened.infolist():
            if posixpath.splitext(info.filename)[1].lower() not in SUFFIXES:
                continue
            rows.append(
                {
                    "id": f"{archive.relative}/{info.filename}",
                    "uri": zip_uri(archive.uri, info.filename),
                    "label": posixpath.basename(posixpath.dirname(info.filename)) or None,
                    "image_filename": info.filename,
                }
            )
            if len(rows) == _BATCH:
                yield _columns(archive, rows)
                rows = []
    if rows:
        yield _columns(archive, rows)


# Parquet with image bytes, as Hugging Face writes it.


def image_column(schema: pa.Schema) -> str | None:
    """Return the column that holds encoded images: a struct with ``bytes``, or binary values called ``image``."""
    for field in schema:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return str(field.name)
    for field in schema:
        if field.name in {"image", "bytes", "jpg", "png"} and _is_binary(field.type):
            return str(field.name)
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_plain(kind: pa.DataType) -> bool:
    return not pa.types.is_nested(kind) and not _is_binary(kind)


def _parquet_rows(archive: Archive, file: Any) -> Iterator[dict[str, Any]]:
    opened = pq.ParquetFile(file)
    schema = opened.schema_arrow
    column = image_column(schema)
    if column is None:
        raise InputError(f"{archive.uri}: no column holds images (a struct with bytes, or binary values)")
    labels = _label_names(schema)
    plain = [field.name for field in schema if field.name != column and _is_plain(field.type)]
    kind = schema.field(column).type
    has_path = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
    wanted = [*plain, f"{column}.path"] if has_path else plain
    row = 0
    for group in range(opened.num_row_groups):
        table = opened.read_row_group(group, columns=wanted)
        names = [None] * opened.metadata.row_group(group).num_rows
        if has_path:
            names = [None if value is None else value["path"] for value in table.column(column).to_pylist()]
        values = table.select(plain).to_pylist() if plain else [{}] * len(names)
        rows = []
        for i, (name, said) in enumerate(zip(names, values, strict=True)):
            label = said.pop("label", None)
            known = {
                "id": f"{archive.relative}/{row}",
                "uri": parquet_uri(archive.uri, group, i, column),
                "label": labels.get(label, None if label is None else str(label)),
                "image_filename": name,
            }
            rows.append({**_users(said), **known})
            row += 1
        yield _columns(archive, rows)


def _label_names(schema: pa.Schema) -> dict[int, str]:
    """The names of the numbers in the column ``label``, where the file says them (Hugging Face's ClassLabel)."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return dict(enumerate(features["label"]["names"]))
    except (ValueError, KeyError, TypeError):
        return {}


ARCHIVES: dict[str, Callable[[Archive, Any], Iterator[dict[str, Any]]]] = {
    ".tar": _tar_members,
    ".zip": _zip_members,
    ".parquet": _parquet_rows,
}
"""What reads the members of each kind of archive."""
