"""Read ranges of precomputed vectors from Parquet files, and check the vectors of any source.

Writes no files. A vector that cannot be used is recorded as a failure of its row, and the run continues.
"""

import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthscale.config import StorageConfig
from synthscale.errors import InputError, StorageError
from synthscale.storage import filesystems as fsys
from synthscale.tables.faults import Reason
from synthscale.tables.layout import VectorSource


def check_vectors(
    vectors: NDArray[np.floating], facts: list[dict[str, Any]], search: tuple[int, int] | None
) -> None:
    """Mark the rows whose vector is not finite or has norm 0, for which cosine similarity is undefined.

    Args:
        vectors: (n, D) floating point.
        facts: n mappings, changed in place: ``reason`` (a `Reason`) and ``detail`` are added to those of unusable
            rows. Rows that already have a reason are left unchanged.
        search: (start, stop), half-open range of the dimensions whose directions are compared; a vector that is
            all zeros in it is marked. None if no directions are compared. All D dimensions must be finite.
    """
    finite = np.isfinite(vectors).sum(axis=1) == vectors.shape[1]
    nonzero = np.ones(len(vectors), np.bool_)
    if search is not None:
        nonzero = (vectors[:, search[0] : search[1]] != 0).any(axis=1)
    for i, fact in enumerate(facts):
        if "reason" in fact:
            continue
        if not finite[i]:
            fact |= {"reason": Reason.NON_FINITE.value, "detail": "the vector contains NaN or infinity"}
        elif not nonzero[i]:
            fact |= {"reason": Reason.ZERO_VECTOR.value, "detail": "the vector is all zeros and has no direction"}


def read_vectors(
    source: VectorSource, start: int, stop: int, storage: StorageConfig
) -> tuple[NDArray[np.floating], list[dict[str, Any]]]:
    """Read the vectors of a range of rows.

    Args:
        source: files and columns.
        start: first row of the run, whose rows are those of all files but `VectorSource.dropped`.
        stop: row after the last.
        storage: S3 settings.

    Returns:
        The vectors, (stop - start, D), float16 if ``source.half`` and float32 otherwise, and a mapping per row:
        empty, or with ``reason`` and ``detail`` if the vector's length is not D; the vector is then all zeros.
        Nulls become NaN, and values beyond the range of float32 infinity, which `check_vectors` marks.

    Raises:
        InputError: a file's number of rows has changed since the run began.
        StorageError: a file is missing, damaged or cannot be read.
    """
    pieces, offset = [], 0
    start, stop, kept = _rows_of_files(source, start, stop)
    for uri, rows in zip(source.files, source.file_rows, strict=True):
        low, high = max(start - offset, 0), min(stop - offset, rows)
        if low < high:
            pieces += _rows_of_file(uri, (low, high), rows, source.columns, storage)
        offset += rows
    if kept is not None:
        pieces = [pa.concat_tables(pieces, promote_options="permissive").filter(kept)]
    if source.holds_lists:
        dtype = np.float16 if source.half else np.float32
        # Files may differ in the float type of their lists.
        parts = [_to_vectors(piece.column(source.columns[0]), source.dimensions) for piece in pieces]
        vectors = np.concatenate([part.astype(dtype, copy=False) for part, _ in parts])
        return vectors, [fact for _, facts in parts for fact in facts]
    table = pa.concat_tables(pieces)
    columns = [table.column(name).to_numpy(zero_copy_only=False) for name in source.columns]
    # A null becomes NaN, which `check_vectors` records as a failure of its row.
    vectors = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
    return _to_float32(vectors), [{} for _ in range(len(vectors))]


def _rows_of_files(source: VectorSource, start: int, stop: int) -> tuple[int, int, pa.Array | None]:
    """Return the range of rows of the files that holds a range of the run's, and a mask of those; None if all."""
    if not source.dropped or start >= stop:
        return start, stop, None
    # Row r of the run is the row of the files before which r rows are kept.
    dropped = np.array(source.dropped)
    kept_before = dropped - np.arange(len(dropped))
    first, last = (row + int(np.searchsorted(kept_before, row, "right")) for row in (start, stop - 1))
    mask = ~np.isin(np.arange(first, last + 1), dropped)
    return first, last + 1, None if mask.all() else pa.array(mask)


def _rows_of_file(
    uri: str, row_range: tuple[int, int], rows: int, columns: list[str], storage: StorageConfig
) -> list[pa.Table]:
    """Return the rows of a half-open range of a file, decoding only the row groups that contain them."""

    def read() -> list[pa.Table]:
        pieces, offset = [], 0
        with fsys.open_file(uri, storage) as opened:
            file = pq.ParquetFile(opened)
            version = fsys.version(uri, storage)
            if file.metadata.num_rows != rows:
                raise InputError(
                    f"{uri}: has {file.metadata.num_rows:,} rows, but had {rows:,} when the run began"
                )
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                low, high = max(row_range[0] - offset, 0), min(row_range[1] - offset, size)
                if low < high:
                    pieces.append(_decode(file, (uri, version, group, tuple(columns))).slice(low, high - low))
                offset += size
        return pieces

    try:
        # The folder was there when the run began. That it is empty may mean that its only file was deleted.
        folder = os.path.dirname(uri)
        return fsys.attempt(uri, "read", storage, read, root=None if os.path.isdir(folder) else folder)
    except pa.ArrowInvalid as error:
        raise StorageError(f"{uri}: damaged or not a Parquet file: {error}") from error


_last_row_group: dict[tuple[str, str, int, tuple[str, ...]], pa.Table] = {}
"""The row group that this process decoded last, by URI, file version (``ukey`` of fsspec), group and columns.

A large row group contains the rows of several shards, and would otherwise be decoded once for each.
"""


def _decode(file: pq.ParquetFile, key: tuple[str, str, int, tuple[str, ...]]) -> pa.Table:
    if key not in _last_row_group:
        _last_row_group.clear()
        _last_row_group[key] = file.read_row_group(key[2], columns=list(key[3]))
    return _last_row_group[key]


def _to_vectors(column: pa.ChunkedArray, dimensions: int) -> tuple[NDArray[np.floating], list[dict[str, Any]]]:
    """Convert a list column to vectors and facts as `read_vectors` returns them.

    If no value is null and all lengths are D, the values are converted as one array; otherwise list by list.
    """
    lists = column.combine_chunks()
    flat = lists.flatten()
    has_length = pc.equal(pc.list_value_length(lists), dimensions)
    if flat.null_count == 0 and pc.all(has_length, skip_nulls=False).as_py():
        values = flat.to_numpy(zero_copy_only=False).reshape(-1, dimensions)
        return values if values.dtype == np.float16 else _to_float32(values), [{} for _ in range(len(values))]
    return _to_checked_vectors(lists.to_pylist(), dimensions)


def _to_checked_vectors(
    lists: list[list[float] | None], dimensions: int
) -> tuple[NDArray[np.float32], list[dict[str, Any]]]:
    """Convert lists one by one; a null or a list of a different length gives zeros and a reason."""
    vectors = np.zeros((len(lists), dimensions), np.float64)
    facts: list[dict[str, Any]] = []
    for i, values in enumerate(lists):
        length = 0 if values is None else len(values)
        if values is None or length != dimensions:
            detail = f"the vector has {length} numbers, but most have {dimensions}"
            facts.append({"reason": Reason.WRONG_LENGTH.value, "detail": detail})
            continue
        vectors[i] = [np.nan if value is None else value for value in values]
        facts.append({})
    return _to_float32(vectors), facts


def _to_float32(vectors: NDArray[np.number]) -> NDArray[np.float32]:
    # Values beyond the range of float32 become infinite, which `check_vectors` records as a failure of the row.
    with np.errstate(over="ignore"):
        return vectors.astype(np.float32)
