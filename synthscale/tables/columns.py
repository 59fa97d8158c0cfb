"""Conversions between Arrow columns and NumPy arrays, and row selections that several stages need.

Works on tables in memory; reads and writes no files.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthscale.errors import SchemaError


def to_float64(column: pa.ChunkedArray, missing: float) -> NDArray[np.float64]:
    """Convert a numeric column to a float64 array, (n,), with nulls replaced by ``missing``."""
    result: NDArray[np.float64] = column.cast(pa.float64()).fill_null(missing).to_numpy()
    return result


def from_matrix(values: NDArray[np.floating]) -> pa.FixedSizeListArray:
    """Convert a matrix (n, m) to n fixed-size lists of length m; NaN becomes null."""
    flat = values.ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, mask=np.isnan(flat)), values.shape[1])


def to_matrix(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Convert a column of fixed-size lists of length m to a float64 matrix (n, m); null becomes NaN."""
    flat = column.combine_chunks().flatten()
    if len(flat) == 0:
        return np.empty((0, column.type.list_size))
    is_valid = flat.is_valid().to_numpy(zero_copy_only=False)
    # Arrow can neither cast float16 with nulls nor fill them, so the value buffer is read directly.
    values = np.frombuffer(flat.buffers()[1], flat.type.to_pandas_dtype())[flat.offset : flat.offset + len(flat)]
    result: NDArray[np.float64] = np.where(is_valid, values.astype(np.float64), np.nan)
    return result.reshape(-1, column.type.list_size)


def iter_chunks(column: pa.ChunkedArray, rows: int = 8192) -> Iterator[pa.Array]:
    """Yield slices of at most ``rows`` rows, so that converting one to Python objects takes bounded memory."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), rows):
            yield chunk.slice(start, rows)


def vector_matrix(table: pa.Table, dimensions: tuple[int, int]) -> NDArray[np.floating]:
    """Return a range of dimensions of the vectors as a matrix, in the type in which they are stored.

    Args:
        table: n rows with a column ``vector`` of fixed-size float lists.
        dimensions: (start, stop), half-open.

    Returns:
        (n, stop - start), float32 or float16 as stored.
    """
    column = table.column("vector").combine_chunks()
    width = column.type.list_size
    flat = column.flatten().to_numpy(zero_copy_only=False)
    result: NDArray[np.floating] = flat.reshape(-1, width)[:, dimensions[0] : dimensions[1]]
    return result


def is_sliceable(kind: pa.DataType) -> bool:
    """Return True if metrics can be sliced by a column of this type: neither nested nor binary."""
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def rows_of_generator(table: pa.Table, generator: str) -> pa.Table:
    """Filter a table to the rows whose column ``generator`` equals the given name."""
    return table.filter(pc.equal(table.column("generator"), generator))


def require_embedded(generator: str, wanted: NDArray[np.int64], embedded: NDArray[np.int64]) -> None:
    """Raise SchemaError if rows that a generator's metrics need have no embedding.

    Args:
        generator: name for the message.
        wanted: row numbers that are needed.
        embedded: row numbers found in ``embeddings/``.
    """
    missing = wanted[~np.isin(wanted, embedded)]
    if len(missing):
        raise SchemaError(
            f"{generator}: {len(missing)} of {len(wanted)} rows have no vector in embeddings/ (first row numbers: "
            f"{missing[:3].tolist()}); rerun with --redo-from embed"
        )
