"""Tables that lie beside the images of a folder, joined to them by name: their columns become the images' own.

Hugging Face's imagefolder has ``metadata.csv``, ``.jsonl`` or ``.parquet`` with a column ``file_name``,
img2dataset ``00000.parquet`` with a column ``key`` beside the folder ``00000``. Reads such tables.
"""

import posixpath
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from synthscale.config import StorageConfig
from synthscale.errors import InputError
from synthscale.ingest.dataset import SOURCE_COLUMNS
from synthscale.ingest.intake import Intake
from synthscale.ingest.spool import concatenated
from synthscale.ingest.table_reader import open_table
from synthscale.tables.columns import is_sliceable

_NAME_COLUMNS = ("file_name", "image_filename", "filename", "image_path", "path", "file")
"""Columns of paths relative to the table's folder, the first that is there."""
_KEY = " key"
"""Name of the column that is added to a table: the images that its rows name."""
_MOST_ROWS = 5_000_000
"""Rows of all tables of a set together; more are not joined, as they are in memory."""


@dataclass(frozen=True)
class Sidecar:
    """A table: its URI, and its path relative to the top of its set."""

    uri: str
    path: str


def joined(rows: pa.Table, sidecars: list[Sidecar], storage: StorageConfig, intake: Intake) -> pa.Table:
    """Return rows with the columns of the tables that name them.

    A column ``label`` replaces the labels of the rows that it has one for; names that the manifest uses get the
    prefix ``user_``. A table that cannot be read, or names no image, is left out with a remark.

    Args:
        rows: manifest columns of the images of a set, with ``image_filename`` relative to its top.
        sidecars: the tables.
        storage: S3 settings.
        intake: remarks are added to it.
    """
    if not sidecars:
        return rows
    names = rows.column("image_filename").combine_chunks()
    stems = pc.replace_substring_regex(names, r"\.[^./]*$", "")
    kinds: list[tuple[pa.Array, list[pa.Table]]] = [(names, []), (stems, [])]
    read = 0
    for sidecar in sidecars:
        table = _read(sidecar, storage)
        read += 0 if table is None else table.num_rows
        tables = [None, None] if table is None or read > _MOST_ROWS else _keyed(table, sidecar.path)
        for (images, kind), keyed in zip(kinds, tables, strict=True):
            if keyed is not None and pc.any(pc.is_in(images, keyed.column(_KEY).combine_chunks())).as_py():
                intake.remark("tables were joined to the images that they name", sidecar.path)
                kind.append(keyed)
                break
        else:
            intake.remark("tables name no image beside them and were left out", sidecar.path)
    for images, kind in kinds:
        if kind:
            rows = _with_columns(rows, images, concatenated(kind))
    return rows


def _with_columns(rows: pa.Table, images: pa.Array, table: pa.Table) -> pa.Table:
    """Return rows with the columns of a table, whose ``_KEY`` names some of their ``images``."""
    at = pc.index_in(images, table.column(_KEY).combine_chunks())
    for name in table.column_names:
        if name == _KEY:
            continue
        column = table.column(name).combine_chunks().take(at)
        if name == "label":
            column = pc.coalesce(column.cast(pa.string()), rows.column("label"))
        elif name in SOURCE_COLUMNS:
            name = f"user_{name}"
        if name not in rows.column_names:
            rows = rows.append_column(name, column)
            continue
        before = rows.column(name)
        if before.type != column.type:
            before, column = before.cast(pa.string()), column.cast(pa.string())
        merged = column if name == "label" else pc.coalesce(before, column)
        rows = rows.set_column(rows.column_names.index(name), name, merged)
    return rows


def _keyed(table: pa.Table, path: str) -> list[pa.Table | None]:
    """Return a table with the paths that its rows name, and with these without extensions; None where it has none.

    Args:
        table: its columns.
        path: its path relative to the top of the set, as are the paths that it names afterwards.
    """
    folder = posixpath.dirname(path)
    prefix = f"{folder}/" if folder else ""
    result: list[pa.Table | None] = [None, None]
    for name in _NAME_COLUMNS:
        if name in table.column_names and pa.types.is_string(table.schema.field(name).type):
            relative = pc.replace_substring(table.column(name), "\\", "/")
            result[0] = table.append_column(_KEY, pc.binary_join_element_wise(prefix, relative, ""))
            break
    if "key" in table.column_names:
        stem = posixpath.splitext(posixpath.basename(path))[0]
        keys = pc.binary_join_element_wise(f"{prefix}{stem}/", table.column("key").cast(pa.string()), "")
        result[1] = table.append_column(_KEY, keys)
    return result


def _read(sidecar: Sidecar, storage: StorageConfig) -> pa.Table | None:
    """Return the plain columns of a table; None if it cannot be read."""
    try:
        batches = list(open_table(sidecar.uri, storage).batches())
    except InputError:
        return None
    table = concatenated(batches)
    return table.select([field.name for field in table.schema if is_sliceable(field.type)])
