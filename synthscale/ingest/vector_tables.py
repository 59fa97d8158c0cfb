"""Rows of precomputed vectors: tables with an ``embedding`` column of lists, or one column per dimension.

Reads the metadata columns and the vectors' lengths of Parquet files; CSV and JSON Lines are converted to Parquet
first. `vector_reader` reads the vectors themselves, for embed.
"""

import os
from collections import Counter
from collections.abc import Iterator
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthscale.config import Config
from synthscale.errors import InputError
from synthscale.ingest.dataset import Dataset, RowFindings, check_columns, with_user_columns
from synthscale.ingest.spool import Spool
from synthscale.ingest.table_columns import SPECIAL_COLUMNS, Roles, as_text, choose_roles, is_list, is_number
from synthscale.ingest.table_reader import open_table
from synthscale.ingest.user_table import UserTable
from synthscale.storage import filesystems as fsys
from synthscale.storage.run_directory import digest
from synthscale.tables.layout import VectorSource

_GROUP_ROWS = 16_384
"""Rows of a row group of a converted table: those of the largest shard, so that a task decodes little else."""
_TOLERATED = 20
"""A column of n integers is a counter with up to n / 20 gaps and repeated values.

Of n random integers below n, 37 % repeat another; of a counter, those of rows that occur twice or were removed.
"""
_NUMBER = r"^\s*[-+]?(\d+\.?\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|inf|nan|NaN|Inf|infinity)\s*$"
"""Texts that Arrow can convert to numbers."""


def from_vectors(tables: list[UserTable], uris: list[str], config: Config) -> Dataset:
    """Return the rows of tables of vectors, in the order of the files, without the vectors.

    Args:
        tables: open tables, at least one. The first one decides which columns are the vectors.
        uris: their URIs.
        config: the configuration of the run.

    Returns:
        Rows, and the location of the vectors: D is the most frequent length, and they are float16 if all files
        have lists of float16.

    Raises:
        ConfigError: a column of ``input`` does not exist.
        InputError: a table lacks ``id``, ``real_or_synthetic`` or a vector column.
        StorageError: a table cannot be read.
    """
    versions = [[uri, fsys.version(uri, config.storage)] for uri in uris]
    tables, uris, folder, notes = _as_parquet(tables, uris, config)
    first = tables[0]
    assert first.schema is not None
    if "real_or_synthetic" not in first.names:
        check_columns(first.names, first.source, are_images=False)
    roles = choose_roles(first.schema, config.input, first.source)
    _check_features(first, roles)
    for table in tables:
        check_columns(table.names, table.source, are_images=False)
        missing = [name for name in roles.features if table.written.get(name) != first.written[name]]
        if missing:
            raise InputError(f"{table.source}: missing columns: {', '.join(missing[:3])}")
    if not config.input.feature_columns:
        _drop_counters(tables, roles)
    parts, rows, lengths, half = [], [], Counter[int](), True
    is_lists = is_list(first.schema.field(roles.features[0]).type)
    for table in tables:
        schema = table.schema
        assert schema is not None
        kind = schema.field(roles.features[0]).type
        half = half and is_lists and is_list(kind) and kind.value_type == pa.float16()
        findings = RowFindings(table.source, table.place)
        parts += [_vector_rows(batch, findings, roles) for batch in table.batches(roles.metadata)]
        rows.append(findings.rows)
        notes += [*table.notes, *findings.notes(config.max_failure_fraction)]
        if is_lists:
            lengths.update(_count_lengths(table, roles.features[0]))
    # A vector of a different length is recorded as a failure of its row when embed reads it.
    dimensions = lengths.most_common(1)[0][0] if lengths else len(roles.features)
    columns = [first.written[name] for name in roles.features]
    if not sum(rows):
        raise InputError(f"{first.source}: has no rows")
    rows_table = pa.concat_tables(parts, promote_options="permissive")
    source = VectorSource(uris, rows, columns, dimensions, half, is_lists)
    return Dataset(
        rows_table, digest(versions), source, notes=[*notes, roles.note(first.source)], converted=folder
    )


def _as_parquet(
    tables: list[UserTable], uris: list[str], config: Config
) -> tuple[list[UserTable], list[str], TemporaryDirectory[str] | None, list[str]]:
    """Convert tables of other formats to Parquet files in a temporary folder.

    Returns:
        The tables with their URIs, the folder (None if nothing was converted) and notes.
    """
    notes = list[str]()
    if all(table.schema is not None for table in tables):
        return tables, uris, None, notes
    folder = TemporaryDirectory(prefix="synthscale-vectors-")
    result, files = [], []
    for i, (table, uri) in enumerate(zip(tables, uris, strict=True)):
        path = uri
        if table.schema is None:
            path = os.path.join(folder.name, f"part-{i:06d}.parquet")
            notes += _convert(table, path, config)
            converted = open_table(path, config.storage)
            converted.source, converted.place, converted.notes = table.source, table.place, table.notes
            table = converted
        result.append(table)
        files.append(path)
    return result, files, folder, notes


def _check_features(table: UserTable, roles: Roles) -> None:
    """Raise InputError unless the features are one column of lists, or columns of numbers."""
    assert table.schema is not None
    kinds = {name: table.schema.field(name).type for name in roles.features}
    lists = [name for name, kind in kinds.items() if is_list(kind) and is_number(kind.value_type)]
    if lists and len(kinds) > 1:
        raise InputError(f"{table.source}: the column {lists[0]} holds whole vectors; name it alone")
    for name, kind in kinds.items():
        if name == "embedding" and not lists:
            raise InputError(f"{table.source}: the column embedding must contain lists of numbers, not {kind}")
        if not lists and not is_number(kind) and not pa.types.is_boolean(kind):
            raise InputError(
                f"{table.source}: the column {name} contains {kind}, not numbers, and cannot be a feature"
            )


def _vector_rows(rows: pa.Table, findings: RowFindings, roles: Roles) -> pa.Table:
    """Convert a batch to manifest rows. Vectors may come with the URIs of their images, which the report shows."""
    uris = as_text(rows.column("uri")) if "uri" in rows.column_names else pa.nulls(len(rows), pa.string())
    shown = [
        fsys.absolute(uri) if uri is not None and (uri.startswith(("/", "s3://", "file://"))) else None
        for uri in uris.to_pylist()
    ]
    ids = as_text(rows.column("id"))
    if ids.null_count:
        findings.add("without an id: known by the number", pc.indices_nonzero(pc.is_null(ids)).to_numpy())
        numbers = pa.array([f"row {i}" for i in range(findings.rows, findings.rows + len(rows))])
        ids = pc.coalesce(ids, numbers)
    names = rows.column("image_filename") if "image_filename" in rows.column_names else None
    source_columns = {
        "id": ids,
        "uri": pa.array(shown, pa.string()),
        "image_filename": pa.nulls(len(rows), pa.string()) if names is None else as_text(names),
    }
    return with_user_columns(rows, source_columns, findings, roles)


def _count_lengths(table: UserTable, column: str) -> Counter[int]:
    """Count the vectors of each length in a file, except null and empty ones, one batch in memory at a time."""
    counts = Counter[int]()
    for batch in table.batches([column]):
        lengths = pc.value_counts(pc.list_value_length(batch.column(0)))
        counts.update({entry["values"]: entry["counts"] for entry in lengths.to_pylist() if entry["values"]})
    return counts


# Counters: integers that number the rows. A classifier would tell sets apart by them, whatever the other features.


def _drop_counters(tables: list[UserTable], roles: Roles) -> None:
    """Ignore the integer features that are unique and consecutive: in all rows, in each file, or in each set."""
    for name in list(roles.features):
        kinds = [table.schema.field(name).type for table in tables if table.schema is not None]
        if all(pa.types.is_integer(kind) for kind in kinds) and _is_counter(tables, name):
            roles.ignore(name, "a counter: integers that number the rows")
    if not roles.features:
        raise InputError(
            f"{tables[0].source}: all numeric columns are counters ({', '.join(list(roles.ignored)[:3])}), "
            "integers that number the rows; if they are features, name them with --feature-columns"
        )


def _is_counter(tables: list[UserTable], name: str) -> bool:
    groups = ["all rows", "file", "set"]
    spans: list[dict[object, _Span]] = [{}, {}, {}]
    # Two passes: the ends of each group, and whether each number between them occurs once.
    for check in (_Span.extend, _Span.mark):
        for i, table in enumerate(tables):
            for batch in table.batches([name, "real_or_synthetic", "generator"]):
                values = batch.column(name)
                if values.null_count:
                    return False
                numbers = values.to_numpy()
                for group, by_key in zip(groups, spans, strict=True):
                    for key, mask in _keys(group, batch, i):
                        check(by_key.setdefault(key, _Span()), numbers if mask is None else numbers[mask])
        spans = [by_key if all(span.is_possible for span in by_key.values()) else {} for by_key in spans]
        groups = [group for group, by_key in zip(groups, spans, strict=True) if by_key]
        spans = [by_key for by_key in spans if by_key]
        if not groups:
            return False
    return True


def _keys(group: str, batch: pa.Table, file: int) -> Iterator[tuple[object, NDArray[np.bool_] | None]]:
    if group == "all rows":
        yield 0, None
    elif group == "file":
        yield file, None
    else:
        columns = [as_text(batch.column(n)) for n in ("real_or_synthetic", "generator") if n in batch.column_names]
        texts = pc.binary_join_element_wise(*[pc.fill_null(c, "") for c in columns], "\n")
        for key in pc.unique(texts).to_pylist():
            yield key, pc.equal(texts, key).to_numpy()


class _Span:
    """Whether integers, seen twice, are unique and without gaps, but for a few."""

    def __init__(self) -> None:
        self.low, self.high, self.count = 0, -1, 0
        self.seen: NDArray[np.bool_] | None = None

    @property
    def tolerance(self) -> int:
        """Number of gaps and of repeated values that are tolerated: rows may occur twice or be missing."""
        return self.count // _TOLERATED

    @property
    def is_possible(self) -> bool:
        """Whether the integers seen so far may be a counter."""
        distinct = self.count if self.seen is None else int(self.seen.sum())
        gaps = self.high - self.low + 1 - distinct
        return abs(gaps) <= self.tolerance and self.count - distinct <= self.tolerance

    def extend(self, numbers: NDArray[np.integer]) -> None:
        """Extend the ends and the count by some numbers, on the first pass."""
        if len(numbers):
            low, high = int(numbers.min()), int(numbers.max())
            self.low, self.high = (min(self.low, low), max(self.high, high)) if self.count else (low, high)
            self.count += len(numbers)

    def mark(self, numbers: NDArray[np.integer]) -> None:
        """Mark the numbers as seen, on the second pass."""
        if self.seen is None:
            self.seen = np.zeros(self.high - self.low + 1, np.bool_)
        self.seen[numbers.astype(np.int64) - self.low] = True


# CSV and JSON Lines.


def _convert(table: UserTable, path: str, config: Config) -> list[str]:
    """Write a table to a Parquet file, with texts that are vectors or chosen features as numbers; return notes."""
    notes = list[str]()
    with Spool() as spool:
        for batch in table.batches():
            spool.add(_with_numbers(batch, config.input.feature_columns))
        rows = spool.rows()
    if not rows.num_rows:
        raise InputError(f"{table.source}: has no rows")
    notes += table.notes_of_lines(rows.num_rows, config.max_failure_fraction)
    with fsys.storage_errors(path, "write"), pq.ParquetWriter(path, rows.schema) as writer:
        for start in range(0, rows.num_rows, _GROUP_ROWS):
            writer.write_table(rows.slice(start, _GROUP_ROWS))
    for name in rows.column_names:
        if name not in SPECIAL_COLUMNS and pa.types.is_string(rows.schema.field(name).type):
            notes += _note_of_numbers(table, name, rows.column(name))
    return notes


def _note_of_numbers(table: UserTable, name: str, column: pa.ChunkedArray) -> list[str]:
    """Return a note if a column of texts is one of numbers but for a few values."""
    is_odd = pc.fill_null(pc.invert(pc.match_substring_regex(column, _NUMBER)), False)
    odd = pc.sum(is_odd).as_py() or 0
    if not odd or odd > (len(column) - column.null_count) / 2:
        return []
    first = pc.index(is_odd, True).as_py()
    return [
        f"{table.source}: the column {name} is no feature, since {odd:,} of its values are no numbers (first: "
        f"{column[first].as_py()!r}, {table.place(first)}); with --feature-columns those rows fail instead"
    ]


def _with_numbers(rows: pa.Table, features: tuple[str, ...]) -> pa.Table:
    for name in {"embedding", *features} & set(rows.column_names):
        column = rows.column(name)
        if not pa.types.is_string(column.type):
            continue
        is_vector = name == "embedding" or pc.any(pc.match_substring_regex(column, r"^\s*\[")).as_py()
        numbers = _vectors_of_texts(column) if is_vector else _to_numbers(column)
        rows = rows.set_column(rows.column_names.index(name), name, numbers)
    return rows


def _to_numbers(texts: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Convert texts to float64; null for those that are no numbers, whose rows then fail."""
    is_number_ = pc.match_substring_regex(texts, _NUMBER)
    return pc.cast(
        pc.utf8_trim_whitespace(pc.if_else(is_number_, texts, pa.scalar(None, pa.string()))), pa.float64()
    )


def _vectors_of_texts(texts: pa.ChunkedArray) -> pa.Array:
    """Convert texts such as ``[0.1, 2]`` or NumPy's ``[0.1 2.]`` to lists of float64."""
    # As printed by NumPy and torch: np.float64(0.1), array([0.1], dtype=float32), tensor([0.1]).
    plain = pc.replace_substring_regex(texts.combine_chunks(), r", dtype=[\w.]+|[A-Za-z][\w.]*\(|\)", "")
    plain = pc.utf8_trim(plain, " \t\r\n[]()\"'")
    lists = pc.split_pattern_regex(plain, r"[\s,;]+")
    values = _to_numbers(pc.list_flatten(lists))
    return pa.ListArray.from_arrays(lists.offsets, values, mask=pc.is_null(lists))
