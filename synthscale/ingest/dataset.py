"""What every source gives, and how a user's table becomes the manifest's columns."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa

from synthscale.errors import InputError
from synthscale.storage import filesystems as fsys
from synthscale.tables.layout import VectorSource
from synthscale.tables.schemas import REAL, SYNTHETIC

OURS = frozenset({"id", "uri", "label", "image_filename", "size_bytes", "etag", "real_or_synthetic", "generator"})
"""The manifest's columns that a source gives."""


@dataclass(frozen=True)
class Dataset:
    """The rows of a run before they are numbered, a digest of what was found, and what was passed over.

    ``rows`` are mapped from disk: there may be more than memory holds. The digest of a table is of its words
    alone: files that it names and that are not there may come later.
    """

    rows: pa.Table
    digest: str
    vectors: VectorSource | None = None
    is_table: bool = False
    notes: list[str] = field(default_factory=list)


def table_rows(frame: pd.DataFrame, source: str, locate: Callable[[str], str], first_row: int = 0) -> pa.Table:
    """Return a part of a metadata table as manifest rows.

    ``locate`` gives the URI of a name relative to the data set; errors count rows from ``first_row``.
    """
    if "real_or_synthetic" not in frame:
        raise InputError(f"{source}: lacks the column real_or_synthetic")
    if not {"image_filename", "uri"} & set(frame.columns):
        raise InputError(f"{source}: lacks the column image_filename (or uri)")
    n = len(frame)
    names = texts(frame, "image_filename") or [None] * n
    uris = texts(frame, "uri") or [None] * n
    resolved = []
    for i, (name, uri) in enumerate(zip(names, uris, strict=True), first_row):
        if uri is None and name is None:
            raise InputError(f"{source}: row {i} has neither image_filename nor uri")
        if uri is not None and ("://" in uri or uri.startswith(("/", "~"))):
            resolved.append(fsys.absolute(uri))
            continue
        path = str(name if uri is None else uri)
        _refuse_path_out(path, source, i)
        resolved.append(locate(path))
    known = {
        "id": texts(frame, "id") or [name or uri for name, uri in zip(names, uris, strict=True)],
        "uri": resolved,
        "image_filename": names,
    }
    return with_user_columns(frame, known, source)


def with_user_columns(frame: pd.DataFrame, known: dict[str, Any], source: str) -> pa.Table:
    """Complete ``known`` columns with class, label, generator and the user's own; refuse unknown classes."""
    n = len(frame)
    kinds = [None if kind is None else kind.strip().lower() for kind in texts(frame, "real_or_synthetic") or []]
    unknown = Counter(str(kind) for kind in kinds if kind not in {REAL, SYNTHETIC})
    if unknown:
        values = ", ".join(f"{value!r} ({count} rows)" for value, count in unknown.most_common(3))
        raise InputError(f"{source}: real_or_synthetic must be 'real' or 'synthetic', found {values}")
    generators = texts(frame, "generator") or [None] * n
    columns: dict[str, Any] = {
        **known,
        "real_or_synthetic": pa.array(kinds, pa.string()),
        "label": pa.array(texts(frame, "label") or [None] * n, pa.string()),
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


def texts(frame: pd.DataFrame, column: str) -> list[str | None] | None:
    """Return a column as texts, nulls as None; None when there is no such column."""
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
