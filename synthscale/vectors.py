"""Precomputed vectors: reading a range of rows from Parquet, and the checks that every vector goes through."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synthscale import filesystems as fsys
from synthscale.config import StorageConfig
from synthscale.errors import InputError, StorageError
from synthscale.schemas import Reason


@dataclass(frozen=True)
class VectorSource:
    """Where precomputed vectors lie: Parquet files in row order, and the columns that hold the numbers."""

    files: list[str]
    file_rows: list[int]
    columns: list[str]
    dimensions: int


def check_vectors(vectors: NDArray[np.float32], facts: list[dict[str, Any]], search: tuple[int, int]) -> None:
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
) -> tuple[NDArray[np.float32], list[dict[str, Any]]]:
    """Return the vectors of rows start..stop-1, (n, D) float32, and one facts mapping a row.

    Rows count through the source's files. A vector of another length than most is left zero and gets a reason.
    """
    pieces, offset = [], 0
    for uri, rows in zip(source.files, source.file_rows, strict=True):
        low, high = max(start - offset, 0), min(stop - offset, rows)
        if low < high:
            pieces += _rows_of_file(uri, (low, high), rows, source.columns, storage)
        offset += rows
    table = pa.concat_tables(pieces)
    if source.columns == ["embedding"]:
        return _from_lists(table.column("embedding").to_pylist(), source.dimensions)
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
            if file.metadata.num_rows != rows:
                raise InputError(f"{uri}: has {file.metadata.num_rows} rows, and had {rows} when the run began")
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                low, high = max(wanted[0] - offset, 0), min(wanted[1] - offset, size)
                if low < high:
                    pieces.append(file.read_row_group(group, columns=columns).slice(low, high - low))
                offset += size
        except pa.ArrowInvalid as error:
            raise StorageError(f"{uri}: damaged or not a Parquet file: {error}") from error
    return pieces


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


def _narrow(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    # A float64 beyond float32's range becomes infinite, and so a failure of its row.
    with np.errstate(over="ignore"):
        return vectors.astype(np.float32)
