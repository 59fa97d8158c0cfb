"""Manifest columns of the images in archives: WebDataset tars, zips of images, and Parquet files of images.

Reads archives on disk or S3 and writes nothing. No image is read: only a tar's headers and small text members, a
zip's central directory, and a Parquet file's columns other than the image column.
"""

import json
import posixpath
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synthscale.config import StorageConfig
from synthscale.errors import InputError
from synthscale.ingest.dataset import SOURCE_COLUMNS
from synthscale.ingest.file_kinds import TAKEN, Kind, kind_of_bytes, kinds_of
from synthscale.ingest.intake import Intake
from synthscale.ingest.table_columns import class_names
from synthscale.storage import filesystems as fsys
from synthscale.storage.fetch import parquet_uri, tar_uri, zip_uri
from synthscale.tables.columns import is_sliceable
from synthscale.tables.image_formats import SNIFF_BYTES

_BATCH_ROWS = 20_000
"""Rows per yielded batch of a tar or zip; bounds the memory of a large archive's rows."""
_MAX_TEXT_BYTES = 2**20
"""Maximum size of a text member (1 MiB). Larger members are left out, since they are not labels."""
DAMAGE_ERRORS = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, pa.ArrowException, struct.error),
    *(EOFError, LookupError, NotImplementedError, OverflowError, ValueError),
)
"""What the libraries raise for damaged archives, among them sizes beyond 64 bits and names that are no UTF-8."""
_TEXT_KINDS = frozenset({"cls", "txt", "json"})
"""Extensions, in any case, of a sample's members that give columns."""
_REPEATED = "names occur again in their archive and were replaced by the later ones"


class NoImageColumn(InputError):  # noqa: N818 (says what the file is)
    """A Parquet file has no column of images: it is a table."""


@dataclass(frozen=True)
class Archive:
    """A file that contains images.

    Attributes:
        uri: local path or ``s3://`` URI.
        relative: path relative to the folder of its set; the prefix of the images' ids.
        etag: etag of the file as listed; None if unknown.
    """

    uri: str
    relative: str
    etag: str | None


def read_members(archive: Archive, storage: StorageConfig, intake: Intake) -> Iterator[dict[str, Any]]:
    """Yield the manifest columns of an archive's images, in batches.

    Args:
        archive: the file; its suffix selects the reader.
        storage: S3 settings.
        intake: members that are passed over, and remarks, are added to it.

    Yields:
        Columns of equal length by name: id (without the set's name), uri, label, image_filename, size_bytes, etag
        and the user's own columns. A tar or zip gives about ``_BATCH_ROWS`` rows a batch, a Parquet file one row
        group. The label is what the archive says, or else the name of the folder that contains the member.

    Raises:
        NoImageColumn: a Parquet file has no column of images.
        InputError: the archive is damaged.
        StorageError: the archive cannot be read.
    """
    read = _READERS[posixpath.splitext(archive.uri)[1].lower()]
    try:
        with (
            fsys.storage_errors(archive.uri, "read"),
            fsys.open_file(archive.uri, storage) as f,
        ):
            yield from read(archive, f, intake)
    except DAMAGE_ERRORS as error:
        raise InputError(
            f"{archive.uri}: damaged or not a {archive.uri.rpartition('.')[2]} file: {error}"
        ) from error


def _columns(archive: Archive, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Convert rows to columns: a value missing from a row is null, and columns of mixed types become strings."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns: dict[str, Any] = {name: _array([row.get(name) for row in rows]) for name in names}
    return {
        "id": [row["id"] for row in rows],
        "uri": [row["uri"] for row in rows],
        "label": pa.array([row.get("label") for row in rows], pa.string()),
        "image_filename": pa.array([row.get("image_filename") for row in rows], pa.string()),
        "size_bytes": pa.array([row.get("size_bytes") for row in rows], pa.int64()),
        "etag": pa.array([archive.etag] * len(rows), pa.string()),
        **{name: column for name, column in columns.items() if name not in SOURCE_COLUMNS},
    }


def _array(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        # Mixed types, or integers beyond 64 bits.
        return pa.array([None if value is None else str(value) for value in values], pa.string())


def _encodable(text: str) -> str:
    """Return text with lone surrogates, which JSON can contain and UTF-8 cannot, escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _user_columns(values: dict[str, Any]) -> dict[str, Any]:
    """Return the user's scalar values of an image; names that the manifest uses get the prefix ``user_``."""
    plain = {
        _encodable(name): _encodable(value) if isinstance(value, str) else value
        for name, value in values.items()
        if value is None or isinstance(value, str | int | float)
    }
    return {f"user_{name}" if name in SOURCE_COLUMNS else name: value for name, value in plain.items()}


# WebDataset tars: the members of a sample are adjacent and share their path up to the file name's first dot.


def _tar_members(archive: Archive, file: Any, intake: Intake) -> Iterator[dict[str, Any]]:
    batches = list(_tar_batches(archive, file, intake))
    # A member that occurs again replaces the earlier one, as on extraction.
    last = {name: (i, at) for i, batch in enumerate(batches) for at, name in enumerate(batch["id"])}
    for i, batch in enumerate(batches):
        repeated = [at for at, name in enumerate(batch["id"]) if last[name] != (i, at)]
        for at in repeated:
            intake.remark(_REPEATED, batch["id"][at])
        yield _without(batch, repeated) if repeated else batch


def _without(batch: dict[str, Any], places: list[int]) -> dict[str, Any]:
    """Return a batch of columns without the rows at some places."""
    table = pa.table(batch)
    kept = table.take(np.setdiff1d(np.arange(table.num_rows), places))
    return {**dict(zip(kept.column_names, kept.columns, strict=True)), "id": kept.column("id").to_pylist()}


def _tar_batches(archive: Archive, file: Any, intake: Intake) -> Iterator[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with tarfile.open(fileobj=file, mode="r:") as tar:
        key, images, attributes = "", list[dict[str, Any]](), dict[str, Any]()
        for member in tar:
            if not member.isfile():
                continue
            intake.found += 1
            path = member.name.removeprefix("./")
            folder, name = posixpath.split(path)
            stem, _, kind = name.partition(".")
            if posixpath.join(folder, stem) != key:
                rows += [{**attributes, **image} for image in images]
                key, images, attributes = posixpath.join(folder, stem), [], {}
                if len(rows) >= _BATCH_ROWS:
                    yield _columns(archive, rows)
                    rows = []
            (found,) = kinds_of([path])
            if found is Kind.UNKNOWN and kind.lower() not in _TEXT_KINDS:
                found = kind_of_bytes(_start(tar, member))
                if found in TAKEN:
                    intake.count_sniffed(path)
            if found is Kind.RARE:
                intake.count_rare(path)
            if found in TAKEN:
                images.append(
                    {
                        "id": f"{archive.relative}/{member.name}",
                        "uri": tar_uri(archive.uri, member.name, member.offset_data, member.size),
                        "image_filename": path,
                        "size_bytes": member.size,
                    }
                )
                attributes.setdefault("label", posixpath.basename(folder) or None)
            elif kind.lower() in _TEXT_KINDS and found is not Kind.SYSTEM:
                data = tar.extractfile(member) if member.size <= _MAX_TEXT_BYTES else None
                content = None if data is None else data.read()
                attributes |= _parse_text(archive, member.name, kind.lower(), content, intake)
            else:
                intake.pass_over(found, f"{archive.relative}/{path}")
        rows += [{**attributes, **image} for image in images]
    if rows:
        yield _columns(archive, rows)


def _start(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    data = tar.extractfile(member)
    return b"" if data is None else data.read(SNIFF_BYTES)


def _parse_text(archive: Archive, name: str, kind: str, data: bytes | None, intake: Intake) -> dict[str, Any]:
    """Return the columns that a sample's text member gives: its label, its caption, or the values of its JSON.

    A member that cannot be read gives none, and a remark.
    """
    unreadable = f".{kind} members cannot be read and were left out"
    if data is None:
        intake.remark(unreadable, f"{archive.relative}/{name}")
        return {}
    try:
        text = data.decode("utf-8-sig").strip()
        if kind != "json":
            return {"label" if kind == "cls" else "caption": text} if text else {}
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        intake.remark(unreadable, f"{archive.relative}/{name}")
        return {}
    label = {"label": _encodable(str(values["label"]))} if isinstance(values.get("label"), str | int) else {}
    return label | _user_columns({name: value for name, value in values.items() if name != "label"})


# Zips of images.


def _zip_members(archive: Archive, file: Any, intake: Intake) -> Iterator[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with zipfile.ZipFile(file) as opened:
        # Some tools on Windows write backslashes. Of members of one name the last one counts, as on extraction.
        members = {info.filename.replace("\\", "/"): info for info in opened.infolist() if not info.is_dir()}
        for info in opened.infolist():
            path = info.filename.replace("\\", "/")
            if info.is_dir() or path.endswith("/"):
                continue
            intake.found += 1
            if members[path] is not info:
                intake.remark(_REPEATED, f"{archive.relative}/{path}")
                continue
            (found,) = kinds_of([path])
            if found is Kind.UNKNOWN:
                found = _kind_of_member(opened, info)
                if found in TAKEN:
                    intake.count_sniffed(path)
            if found not in TAKEN:
                intake.pass_over(found, f"{archive.relative}/{path}")
                continue
            if found is Kind.RARE:
                intake.count_rare(path)
            rows.append(
                {
                    "id": f"{archive.relative}/{path}",
                    "uri": zip_uri(archive.uri, info.filename),
                    "label": posixpath.basename(posixpath.dirname(path)) or None,
                    "image_filename": path,
                }
            )
            if len(rows) == _BATCH_ROWS:
                yield _columns(archive, rows)
                rows = []
    if rows:
        yield _columns(archive, rows)


def _kind_of_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Kind:
    try:
        with opened.open(info) as member:
            return kind_of_bytes(member.read(SNIFF_BYTES))
    except (*DAMAGE_ERRORS, RuntimeError):
        # Damaged or encrypted.
        return Kind.OTHER


# Parquet files with a column of encoded images, as written by Hugging Face datasets.


def image_column(schema: pa.Schema) -> str | None:
    """Return the name of the column of encoded images, or None if there is none.

    This is the first struct with a field ``bytes`` (Hugging Face's Image type), or else the first binary column
    named ``image``, ``bytes``, ``jpg`` or ``png``.
    """
    for field in schema:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return str(field.name)
    for field in schema:
        if field.name in {"image", "bytes", "jpg", "png"} and _is_binary(field.type):
            return str(field.name)
    return None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _parquet_rows(archive: Archive, file: Any, intake: Intake) -> Iterator[dict[str, Any]]:
    opened = pq.ParquetFile(file)
    schema = opened.schema_arrow
    column = image_column(schema)
    if column is None:
        raise NoImageColumn(f"{archive.uri}: no column contains images")
    labels = dict(enumerate(class_names(schema).get("label", [])))
    plain = [field.name for field in schema if field.name != column and is_sliceable(field.type)]
    kind = schema.field(column).type
    has_path = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
    wanted = [*plain, f"{column}.path"] if has_path else plain
    number = 0
    for group in range(opened.num_row_groups):
        table = opened.read_row_group(group, columns=wanted)
        names = [None] * opened.metadata.row_group(group).num_rows
        if has_path:
            names = [None if value is None else value["path"] for value in table.column(column).to_pylist()]
        values = table.select(plain).to_pylist() if plain else [{}] * len(names)
        rows = []
        for i, (name, attributes) in enumerate(zip(names, values, strict=True)):
            label = attributes.pop("label", None)
            source_columns = {
                "id": f"{archive.relative}/{number}",
                "uri": parquet_uri(archive.uri, group, i, column),
                "label": labels.get(label, None if label is None else str(label)),
                "image_filename": name,
            }
            rows.append({**_user_columns(attributes), **source_columns})
            number += 1
        intake.found += len(rows)
        yield _columns(archive, rows)


_READERS: dict[str, Callable[[Archive, Any, Intake], Iterator[dict[str, Any]]]] = {
    ".tar": _tar_members,
    ".zip": _zip_members,
    ".parquet": _parquet_rows,
}
"""Reader of each archive type, by lower-case suffix."""
