"""The rows that every source returns, and the conversion of a user's table to the manifest's columns.

Works on tables in memory; reads and writes no files.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa

from synthscale.errors import InputError
from synthscale.ingest.intake import Intake
from synthscale.storage import filesystems as fsys
from synthscale.tables.layout import VectorSource
from synthscale.tables.schemas import REAL, SYNTHETIC

SOURCE_COLUMNS = frozenset(
    {"id", "uri", "label", "image_filename", "size_bytes", "etag", "real_or_synthetic", "generator"}
)
"""Manifest columns that a source fills in; ingest adds ``row`` and ``id_hash``."""


@dataclass(frozen=True)
class Dataset:
    """The rows of a run before ingest numbers them.

    Attributes:
        rows: manifest columns of a source and the user's own. Rows of folders and table files are memory-mapped
            and may be larger than memory; those of zip files with a table and of vector files are in memory.
        digest: digest of the source, for the fingerprint of ingest. It covers, for folders, the paths, sizes and
            etags of images and archives; for a zip file with a table, the names, CRCs and sizes of its members;
            for files of vectors, their versions (fsspec's ``ukey``); for a table file, its content only, so that
            missing images may be added later (``check_unchanged`` in stage.py compares the images' etags).
        vectors: location of precomputed vectors; None if the input is images.
        is_table: whether the source is a metadata table of images.
        notes: messages for the report, e.g. the number of files that were passed over.
        sets: what each set gave, before any control is held out.
    """

    rows: pa.Table
    digest: str
    vectors: VectorSource | None = None
    is_table: bool = False
    notes: list[str] = field(default_factory=list)
    sets: list[Intake] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the lines on the input that a person is shown: one a set, then the notes."""
        return [*(own.summary() for own in self.sets), *(f"note: {note}" for note in self.notes)]


def table_rows(frame: pd.DataFrame, source: str, locate: Callable[[str], str], first_row: int = 0) -> pa.Table:
    """Convert a part of a metadata table to manifest rows.

    Args:
        frame: rows with ``real_or_synthetic``, and ``image_filename`` or ``uri``; other columns are kept.
        source: URI of the table, for error messages.
        locate: returns the URI of a path relative to the data set's folder.
        first_row: row number of the first row in the whole table, for error messages.

    Returns:
        Source columns and the user's own; the id is the file name or URI if there is no column ``id``.

    Raises:
        InputError: a required column or a row's file name is missing, a path leaves the data set's folder, or a
            class is unknown.
    """
    if "real_or_synthetic" not in frame:
        raise InputError(f"{source}: the column real_or_synthetic is missing")
    if not {"image_filename", "uri"} & set(frame.columns):
        raise InputError(f"{source}: the column image_filename (or uri) is missing")
    n = len(frame)
    names = to_strings(frame, "image_filename") or [None] * n
    uris = to_strings(frame, "uri") or [None] * n
    resolved = []
    for i, (name, uri) in enumerate(zip(names, uris, strict=True), first_row):
        if uri is None and name is None:
            raise InputError(f"{source}: row {i} has neither image_filename nor uri")
        if uri is not None and ("://" in uri or uri.startswith(("/", "~"))):
            resolved.append(fsys.absolute(uri))
            continue
        path = str(name if uri is None else uri)
        _check_relative_path(path, source, i)
        resolved.append(locate(path))
    source_columns = {
        "id": to_strings(frame, "id") or [name or uri for name, uri in zip(names, uris, strict=True)],
        "uri": resolved,
        "image_filename": names,
    }
    return with_user_columns(frame, source_columns, source)


def with_user_columns(frame: pd.DataFrame, source_columns: dict[str, Any], source: str) -> pa.Table:
    """Add class, label, generator and the user's own columns to the columns of a source.

    Args:
        frame: n rows of the user's table.
        source_columns: columns that are already final, of length n.
        source: URI of the table, for error messages.

    Returns:
        n rows. ``generator`` is null for real rows and defaults to ``synthetic`` for others; ``size_bytes`` and
        ``etag`` are null, and user columns of these names get the prefix ``user_``.

    Raises:
        InputError: a value of ``real_or_synthetic`` is neither 'real' nor 'synthetic', in any case.
    """
    n = len(frame)
    kinds = [
        None if kind is None else kind.strip().lower() for kind in to_strings(frame, "real_or_synthetic") or []
    ]
    unknown = Counter(str(kind) for kind in kinds if kind not in {REAL, SYNTHETIC})
    if unknown:
        values = ", ".join(f"{value!r} ({count:,} rows)" for value, count in unknown.most_common(3))
        raise InputError(f"{source}: real_or_synthetic must be 'real' or 'synthetic', found {values}")
    generators = to_strings(frame, "generator") or [None] * n
    columns: dict[str, Any] = {
        **source_columns,
        "real_or_synthetic": pa.array(kinds, pa.string()),
        "label": pa.array(to_strings(frame, "label") or [None] * n, pa.string()),
        "generator": pa.array(
            [None if kind == REAL else (name or SYNTHETIC) for kind, name in zip(kinds, generators, strict=True)],
            pa.string(),
        ),
        "size_bytes": pa.nulls(n, pa.int64()),
        "etag": pa.nulls(n, pa.string()),
    }
    for name in frame.columns:
        if name in {"size_bytes", "etag"}:
            columns[f"user_{name}"] = pa.Array.from_pandas(frame[name])
        elif name not in columns:
            columns[str(name)] = pa.Array.from_pandas(frame[name])
    return pa.table(columns)


def to_strings(frame: pd.DataFrame, column: str) -> list[str | None] | None:
    """Return a column as a list of strings, with None for nulls; return None if there is no such column."""
    if column not in frame:
        return None
    return [None if pd.isna(value) else str(value) for value in frame[column]]


def _check_relative_path(name: str, source: str, row: int) -> None:
    path = name.replace("\\", "/")
    if path.startswith("/") or "://" in path or ".." in path.split("/") or path[1:2] == ":":
        raise InputError(
            f"{source}: row {row}: image_filename {name!r} is outside the data set's folder; "
            "use a path below it, or an absolute path or URI in a uri column"
        )
