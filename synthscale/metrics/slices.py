"""Parts of a data set that metrics are also given for: the values of a column, or ranges of its numbers."""

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

MOST = 1000
"""Values of one column that metrics are given for: those with the most rows."""
_RANGES = 10
_MANY_NUMBERS = 20
"""A column with more distinct numbers than this is cut into ranges of about equal size."""

Counts = Counter[Any]
"""Rows by value; null is not counted."""


@dataclass(frozen=True)
class Slicing:
    """How a column cuts rows into slices.

    Attributes:
        column: its name.
        names: of the slices.
        values: the value of each slice; none where it is cut into ranges.
        edges: the lower ends of ranges, ascending; none where it is cut by value.
        left_out: values without a slice of their own, since others have more rows.
    """

    column: str
    names: tuple[str, ...]
    values: tuple[Any, ...] = ()
    edges: tuple[float, ...] = ()
    left_out: int = 0

    def of(self, column: pa.ChunkedArray | pa.Array) -> NDArray[np.int64]:
        """Return the slice of each row, -1 where it is in none: (n,)."""
        if self.edges:
            numbers = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)
            found = np.searchsorted(self.edges, numbers, side="right") - 1
            return np.where(np.isnan(numbers), -1, np.clip(found, 0, None)).astype(np.int64)
        codes = pc.index_in(plain(column), pa.array(self.values, plain_type(column.type)))
        result: NDArray[np.int64] = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        return result

    @property
    def warning(self) -> str | None:
        """What a reader should know of values that are not there."""
        if not self.left_out:
            return None
        return (
            f"{self.column} has {self.left_out + len(self.names):,} values: metrics are given for the "
            f"{len(self.names):,} with the most rows"
        )


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type in which a column's values are compared."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def plain(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Return a column with dictionaries decoded."""
    return column.cast(plain_type(column.type)) if pa.types.is_dictionary(column.type) else column


def count(column: pa.ChunkedArray | pa.Array) -> Counts:
    """Return the rows by value."""
    found = pc.value_counts(plain(column)).to_pylist()
    return Counter({item["values"]: item["counts"] for item in found if item["values"] is not None})


def slicing(name: str, counts: Counts) -> Slicing:
    """Return how to cut a column whose values occur so often."""
    numbers = [value for value in counts if isinstance(value, (int, float)) and not isinstance(value, bool)]
    finite = [value for value in numbers if np.isfinite(value)]
    if len(numbers) == len(counts) and len(finite) > _MANY_NUMBERS:
        return _ranges(name, sorted(finite), counts)
    ordered = sorted(counts, key=lambda value: (-counts[value], str(value)))[:MOST]
    chosen = tuple(sorted(ordered, key=lambda value: (str(type(value)), value)))
    return Slicing(name, tuple(map(str, chosen)), chosen, left_out=len(counts) - len(chosen))


def _ranges(name: str, values: list[float], counts: Counts) -> Slicing:
    share = np.cumsum([counts[value] for value in values])
    share = (share - share[0]) / share[-1]
    first = [int(np.searchsorted(share, i / _RANGES)) for i in range(_RANGES)]
    starts = [values[i] for i in sorted(set(first))]
    names = [f"{low:g} to below {high:g}" for low, high in itertools.pairwise(starts)]
    return Slicing(name, (*names, f"{starts[-1]:g} to {values[-1]:g}"), edges=tuple(map(float, starts)))
