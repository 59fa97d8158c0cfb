"""Precomputed vectors: reading a range of rows from Parquet, and the checks that every vector goes through."""

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


def check_vectors(vectors: NDArray[np.floating], facts: list[dict[str, Any]], search: tuple[int, int]) -> None:
    """Put a reason into ``facts`` (n of them) where a vector, (n, D), is not finite or has no direction."""
    finite = np.isfinite(vectors).sum(axis=1) == vectors.shape[1]
    nonzero: NDArray[np.bool_] = (vectors[:, search[0] : search[1]] != 0).any(axis=1)
    for i, fact in enumerate(facts):
        if "reason" in fact:
            continue
        if not finite[i]:
            fact |= {"reason": Reason.NON_FINITE.value, "detail": "the vector holds NaN or infinity"}
        elif not nonzero[i]:
            fact |= {"reason": Reason.ZERO_VECTOR.value, "detail": "the vector is all zeros and has no direction"}


def read_rows(
    source: VectorSource, start: int, stop: int, storage: StorageConfig
) -> tuple[NDArray[np.floating], list[dict[str, Any]]]:
    """Return the vectors of rows start..stop-1, (n, D) float32 or, if stored so, float16; one facts mapping a row.

    Rows count through the source's files. A vector of another length than most is left zero and gets a reason.
    """
    pieces, offset = [], 0
    for uri, rows in zip(source.files, source.file_rows, strict=True):
        low, high = max(start - offset, 0), min(stop - offset, rows)
        if low < high:
            pieces += _rows_of_file(uri, (low, high), rows, source.columns, storage)
        offset += rows
    if source.columns == ["embedding"]:
        number = np.float16 if source.half else np.float32
        # Files may hold numbers of different width.
        parts = [_of_lists(piece.column("embedding"), source.dimensions) for piece in pieces]
        vectors = np.concatenate([part.astype(number, copy=False) for part, _ in parts])
        return vectors, [fact for _, facts in parts for fact in facts]
    table = pa.concat_tables(pieces)
    columns = [table.column(name).to_numpy(zero_copy_only=False) for name in source.columns]
    # A null is no number: it becomes NaN, and so a failure of its row.
    vectors = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
    return _narrow(vectors), [{} for _ in range(len(vectors))]


def _rows_of_file(
    uri: str, wanted: tuple[int, int], rows: int, columns: list[str], storage: StorageConfig
) -> list[pa.Table]:
    """Return some rows of a file, decoding only the row groups that hold them."""
    pieces, offset = [], 0
    with fsys.storage_errors(uri, "read"), fsys.filesystem(uri, storage).open(uri, "rb") as opened:
        try:
            file = pq.ParquetFile(opened)
            state = str(fsys.filesystem(uri, storage).ukey(uri))
            if file.metadata.num_rows != rows:
                raise InputError(f"{uri}: has {file.metadata.num_rows} rows, and had {rows} when the run began")
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                low, high = max(wanted[0] - offset, 0), min(wanted[1] - offset, size)
                if low < high:
                    pieces.append(_decoded(file, (uri, state, group, tuple(columns))).slice(low, high - low))
                offset += size
        except pa.ArrowInvalid as error:
            raise StorageError(f"{uri}: damaged or not a Parquet file: {error}") from error
    return pieces


_last: dict[tuple[str, str, int, tuple[str, ...]], pa.Table] = {}
"""The row group that this process decoded last: a large one holds the rows of several shards."""


def _decoded(file: pq.ParquetFile, state: tuple[str, str, int, tuple[str, ...]]) -> pa.Table:
    if state not in _last:
        _last.clear()
        _last[state] = file.read_row_group(state[2], columns=list(state[3]))
    return _last[state]


def _of_lists(column: pa.ChunkedArray, dimensions: int) -> tuple[NDArray[np.floating], list[dict[str, Any]]]:
    lists = column.combine_chunks()
    flat = lists.flatten()
    lengths = pc.equal(pc.list_value_length(lists), dimensions)
    if flat.null_count == 0 and pc.all(lengths, skip_nulls=False).as_py():
        values = flat.to_numpy(zero_copy_only=False).reshape(-1, dimensions)
        return values if values.dtype == np.float16 else _narrow(values), [{} for _ in range(len(values))]
    return _from_lists(lists.to_pylist(), dimensions)


def _from_lists(
    lists: list[list[float] | None], dimensions: int
) -> tuple[NDArray[np.float32], list[dict[str, Any]]]:
    vectors = np.zeros((len(lists), dimensions), np.float64)
    facts: list[dict[str, Any]] = []
    for i, values in enumerate(lists):
        found = 0 if values is None else len(values)
        if values is None or found != dimensions:
            detail = f"the vector has {found} numbers, and most have {dimensions}"
            facts.append({"reason": Reason.WRONG_LENGTH.value, "detail": detail})
            continue
        vectors[i] = [np.nan if value is None else value for value in values]
        facts.append({})
    return _narrow(vectors), facts


def _narrow(vectors: NDArray[np.number]) -> NDArray[np.float32]:
    # A float64 beyond float32's range becomes infinite, and so a failure of its row.
    with np.errstate(over="ignore"):
        return vectors.astype(np.float32)
