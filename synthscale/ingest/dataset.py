"""The rows that every source returns, and the conversion of a user's table to the manifest's columns.

Works on tables in memory; reads and writes no files.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synthscale.errors import InputError, StorageError
from synthscale.ingest.intake import Intake
from synthscale.ingest.table_columns import IMAGE_COLUMNS, Roles, as_text, count_of, missing_column
from synthscale.storage import filesystems as fsys
from synthscale.tables.faults import Reason
from synthscale.tables.layout import VectorSource
from synthscale.tables.schemas import REAL, SYNTHETIC

SOURCE_COLUMNS = frozenset(
    {"id", "uri", "label", "image_filename", "size_bytes", "etag", "real_or_synthetic", "generator", "fault"}
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
        converted: folder with the files of ``vectors``, where they were converted from a CSV or JSON Lines table;
            ingest copies them into the run directory. It is deleted with this object.
    """

    rows: pa.Table
    digest: str
    vectors: VectorSource | None = None
    is_table: bool = False
    notes: list[str] = field(default_factory=list)
    sets: list[Intake] = field(default_factory=list)
    converted: "TemporaryDirectory[str] | None" = None

    def lines(self) -> list[str]:
        """Return the lines on the input that a person is shown: one a set, then the notes."""
        return [*(own.summary() for own in self.sets), *(f"note: {note}" for note in self.notes)]


@dataclass
class RowFindings:
    """What was found in the rows of one table, for its notes and errors; filled in batch by batch.

    Attributes:
        source: name of the table.
        place: returns where the row of a number is, for a person.
        rows: number of rows so far.
        counts: number of rows by finding, a text that follows the number.
        first: number of the first row of each finding.
        unknown: rows by the value of ``real_or_synthetic`` that is neither class.
        first_unknown: number of the first of these rows.
        literal_backslashes: whether backslashes are part of file names; None until one has been looked up.
    """

    source: str
    place: Callable[[int], str]
    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)
    first_unknown: int = 0
    literal_backslashes: bool | None = None

    def add(self, finding: str, places: Any) -> None:
        """Count rows, given their numbers within the current batch: (m,) int."""
        if len(places):
            self.counts[finding] += len(places)
            self.first.setdefault(finding, self.rows + int(places[0]))

    def notes(self, limit: float) -> list[str]:
        """Return a note for each finding.

        Args:
            limit: largest fraction of rows that may belong to no class.

        Raises:
            InputError: more rows are of no class.
        """
        notes = [
            f"{self.source}: {count_of(count, 'row')} {finding} (first: {self.place(self.first[finding])})"
            for finding, count in self.counts.items()
        ]
        if self.unknown:
            values = ", ".join(
                f"{value!r} ({count_of(count, 'row')})" for value, count in self.unknown.most_common(3)
            )
            text = f"real_or_synthetic must be 'real' or 'synthetic', found {values}"
            first = f"first: {self.place(self.first_unknown)}"
            if self.unknown.total() > limit * self.rows:
                raise InputError(f"{self.source}: {text}; {first}")
            notes.append(f"{self.source}: {count_of(self.unknown.total(), 'row')} left out: {text}; {first}")
        return notes


def table_rows(
    rows: pa.Table,
    findings: RowFindings,
    roles: Roles,
    locate: Callable[[str], str],
    exists: Callable[[str], bool],
    embedded: pa.Array | None = None,
) -> pa.Table:
    """Convert a batch of a metadata table to manifest rows.

    Args:
        rows: n rows with ``real_or_synthetic``, and ``image_filename`` or ``uri``.
        findings: of the table so far; the batch's are added.
        roles: what the columns are; the metadata are kept.
        locate: returns the URI of a path relative to the data set's folder.
        exists: returns True if there is a file at a path relative to the data set's folder.
        embedded: (n,) URIs of images that the table itself contains; null for those it does not.

    Returns:
        n rows with source columns and the user's own; the id is the file name or URI if there is no column ``id``.
        A row without a file name, or with a URI that cannot be read, has a ``fault``; a row of an unknown class
        has a null ``real_or_synthetic``.

    Raises:
        InputError: a required column is missing, or a path leaves the data set's folder.
    """
    names, uris = (_without_blanks(_text_column(rows, name)) for name in ("image_filename", "uri"))
    is_relative = pc.and_not(pc.is_valid(uris), pc.fill_null(pc.match_substring_regex(uris, r"^[/~]|://"), False))
    paths = pc.if_else(is_relative, uris, pc.if_else(pc.is_valid(uris), pa.scalar(None, pa.string()), names))
    paths = _plain_paths(paths, findings, exists)
    located = [None if path is None else locate(path) for path in paths.to_pylist()]
    faults = np.full(len(rows), None, object)
    for i, (path, uri) in enumerate(zip(located, uris.to_pylist(), strict=True)):
        if path is None and uri is not None:
            try:
                located[i] = fsys.absolute(uri)
            except StorageError as error:
                faults[i] = f"{Reason.UNSUPPORTED.value}: {error}"
    uri_column = pa.array(located, pa.string())
    if embedded is not None:
        uri_column = pc.coalesce(embedded, uri_column)
    # A URI that cannot be read has its fault already, and is shown as it is written.
    uri_column = pc.coalesce(uri_column, uris.combine_chunks())
    without = pc.indices_nonzero(pc.is_null(uri_column)).to_numpy()
    findings.add("without a file name: failed as not_found", without)
    faults[without] = f"{Reason.NOT_FOUND.value}: the row has neither image_filename nor uri"
    ids = _without_blanks(_text_column(rows, "id"))
    if "id" in rows.column_names:
        findings.add("without an id: known by the file name", pc.indices_nonzero(pc.is_null(ids)).to_numpy())
    ids = pc.coalesce(ids, names, uris)
    source_columns = {
        "id": _with_row_numbers(ids, findings.rows),
        "uri": uri_column,
        "image_filename": names,
        "fault": pa.array(faults, pa.string()),
    }
    return with_user_columns(rows, source_columns, findings, roles)


def _with_row_numbers(ids: pa.ChunkedArray, first_row: int) -> pa.ChunkedArray:
    if not ids.null_count:
        return ids
    numbers = pa.array([f"row {i}" for i in range(first_row, first_row + len(ids))])
    return pc.coalesce(ids, numbers)


def _plain_paths(paths: pa.ChunkedArray, findings: RowFindings, exists: Callable[[str], bool]) -> pa.ChunkedArray:
    """Return relative paths with slashes, for backslashes too; raise InputError if one leaves its folder."""
    leaving = pc.fill_null(pc.match_substring_regex(paths, r"^[/\\]|://|^.:|(^|[/\\])\.\.([/\\]|$)"), False)
    if pc.any(leaving).as_py():
        i = pc.index(leaving, True).as_py()
        raise _leaves_folder(paths[i].as_py(), findings, findings.rows + i)
    has_backslash = pc.fill_null(pc.match_substring(paths, "\\"), False)
    if findings.literal_backslashes is None and pc.any(has_backslash).as_py():
        findings.literal_backslashes = exists(paths[pc.index(has_backslash, True).as_py()].as_py())
    if not findings.literal_backslashes:
        findings.add(
            "with Windows paths: backslashes were read as slashes",
            pc.indices_nonzero(has_backslash).to_numpy(),
        )
        paths = pc.replace_substring(paths, "\\", "/")
    return pc.replace_substring_regex(paths, r"^(\./+)+", "")


def _leaves_folder(name: str, findings: RowFindings, row: int) -> InputError:
    remedy = "use a path below it, or an absolute path or URI in a uri column"
    if name[1:2] == ":" or name.startswith("\\"):
        remedy = "it is an absolute path of Windows; use a path relative to the table's folder"
    return InputError(
        f"{findings.source}: {findings.place(row)}: image_filename {name!r} is outside the data set's folder; "
        f"{remedy}"
    )


def with_user_columns(
    rows: pa.Table, source_columns: dict[str, Any], findings: RowFindings, roles: Roles
) -> pa.Table:
    """Add class, label, generator and the user's own columns to the columns of a source.

    Args:
        rows: n rows of the user's table.
        source_columns: columns that are already final, of length n.
        findings: of the table so far; unknown classes and the number of rows are added.
        roles: what the columns are; the metadata are kept.

    Returns:
        n rows. ``real_or_synthetic`` is null for values other than 'real' and 'synthetic', in any case.
        ``generator`` is null for real rows and defaults to ``synthetic`` for others; ``size_bytes`` and ``etag``
        are null, and user columns of these names get the prefix ``user_``.
    """
    n = len(rows)
    given = _text_column(rows, "real_or_synthetic")
    kinds = pc.utf8_lower(pc.utf8_trim_whitespace(given))
    is_known = pc.fill_null(pc.is_in(kinds, pa.array([REAL, SYNTHETIC])), False)
    if not pc.all(is_known).as_py():
        is_unknown = pc.invert(is_known)
        if not findings.unknown:
            findings.first_unknown = findings.rows + pc.index(is_unknown, True).as_py()
        findings.unknown.update(map(str, kinds.filter(is_unknown).to_pylist()))
        kinds = pc.if_else(is_known, kinds, pa.scalar(None, pa.string()))
    names = _without_blanks(_text_column(rows, "generator"))
    is_real = pc.fill_null(pc.equal(kinds, REAL), False)
    columns: dict[str, Any] = {
        **source_columns,
        "real_or_synthetic": kinds,
        "label": _text_column(rows, "label"),
        "generator": pc.if_else(is_real, pa.scalar(None, pa.string()), pc.fill_null(names, SYNTHETIC)),
        "size_bytes": pa.nulls(n, pa.int64()),
        "etag": pa.nulls(n, pa.string()),
    }
    findings.rows += n
    for name in roles.metadata:
        if name not in rows.column_names:
            continue
        if name in {"size_bytes", "etag", "fault"}:
            columns[f"user_{name}"] = rows.column(name)
        elif name not in columns:
            columns[name] = rows.column(name)
    return pa.table(columns)


def _text_column(rows: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a column as strings, without nulls' NaN; all null if there is no such column."""
    if name not in rows.column_names:
        return pa.chunked_array([pa.nulls(len(rows), pa.string())])
    return as_text(rows.column(name))


def _without_blanks(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return strings, with null for those that are empty."""
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def check_columns(names: list[str], source: str, *, are_images: bool) -> None:
    """Raise InputError, with the likely cause, if a table lacks a column that it must have.

    Args:
        names: canonical names of its columns.
        source: name of the table.
        are_images: whether its rows are images, not vectors.
    """
    if "real_or_synthetic" not in names:
        raise missing_column(source, "real_or_synthetic", names)
    if are_images and not IMAGE_COLUMNS & set(names):
        raise missing_column(source, "image_filename (or file_name, or uri)", names)
    if not are_images and "id" not in names:
        raise missing_column(source, "id", names)
