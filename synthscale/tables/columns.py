"""Columns of Arrow tables as arrays."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from synthscale.errors import SchemaError


def to_float64(column: pa.ChunkedArray, missing: float) -> NDArray[np.float64]:
    """Return a column of numbers as float64, with ``missing`` in the place of null: (n,)."""
    result: NDArray[np.float64] = column.cast(pa.float64()).fill_null(missing).to_numpy()
    return result


def from_matrix(values: NDArray[np.floating]) -> pa.FixedSizeListArray:
    """Return the rows of an array (n, m) as lists of m numbers; NaN becomes null."""
    flat = values.ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, mask=np.isnan(flat)), values.shape[1])


def to_matrix(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Return a column of lists of one length as (n, m); null becomes NaN."""
    flat = column.combine_chunks().flatten()
    if len(flat) == 0:
        return np.empty((0, column.type.list_size))
    known = flat.is_valid().to_numpy(zero_copy_only=False)
    # Arrow can neither cast float16 with nulls nor fill them.
    values = np.frombuffer(flat.buffers()[1], flat.type.to_pandas_dtype())[flat.offset : flat.offset + len(flat)]
    result: NDArray[np.float64] = np.where(known, values.astype(np.float64), np.nan)
    return result.reshape(-1, column.type.list_size)


def iter_chunks(column: pa.ChunkedArray, rows: int = 8192) -> Iterator[pa.Array]:
    """Yield a column in parts of so many rows at most: what is made of one at a time stays small."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), rows):
            yield chunk.slice(start, rows)


def vector_matrix(table: pa.Table, dimensions: tuple[int, int]) -> NDArray[np.floating]:
    """Return the column ``vector`` as (n, stop - start), the given range of dimensions, in its stored type."""
    column = table.column("vector").combine_chunks()
    width = column.type.list_size
    flat = column.flatten().to_numpy(zero_copy_only=False)
    result: NDArray[np.floating] = flat.reshape(-1, width)[:, dimensions[0] : dimensions[1]]
    return result


def is_sliceable(kind: pa.DataType) -> bool:
    """Tell whether rows can be cut by a column of this type: by values that can be named."""
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def rows_of_generator(table: pa.Table, generator: str) -> pa.Table:
    """Return the lines of one generator."""
    return table.filter(pc.equal(table.column("generator"), generator))


def require_embedded(generator: str, wanted: NDArray[np.int64], embedded: NDArray[np.int64]) -> None:
    """Raise SchemaError where rows of a generator's view have no embedding."""
    lost = wanted[~np.isin(wanted, embedded)]
    if len(lost):
        raise SchemaError(
            f"{generator}: embeddings/ lacks {len(lost)} of {len(wanted)} rows, the first {lost[:3].tolist()}; "
            "repeat with --redo-from embed"
        )
