"""Parts of a data set that metrics are also given for: the values of a column, or ranges of its numbers."""

import hashlib
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
_MOST_COUNTED = 1_000_000
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
            # Integers beyond 2^53 lose their last digits, which no range needs.
            numbers = pc.cast(as_text(column), pa.float64(), safe=False).to_numpy(zero_copy_only=False)
            found = np.searchsorted(self.edges, numbers, side="right") - 1
            return np.where(np.isnan(numbers), -1, np.clip(found, 0, None)).astype(np.int64)
        own = as_text(column)
        codes = pc.index_in(own, pa.array(self.values, own.type))
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


def as_text(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Return a column in the type in which its values are compared: dictionaries decoded, NaN as null, -0 as 0."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        wide = column.cast(pa.float64())
        return pc.add(pc.if_else(pc.is_nan(wide), None, wide), 0.0)
    return column


def count_values(column: pa.ChunkedArray | pa.Array) -> Counts:
    """Return the rows by value."""
    found = pc.value_counts(as_text(column)).to_pylist()
    return Counter({item["values"]: item["counts"] for item in found if item["values"] is not None})


def keep_largest(counts: Counts) -> Counts:
    """Return counts of no more than a million values: those with the most rows, and a random part of the rest.

    So a column of texts that are all different, or of seeds, needs no more memory than others, and ranges of
    numbers stay where they were.
    """
    if len(counts) <= _MOST_COUNTED:
        return counts
    drawn = {value: hashlib.blake2b(repr(value).encode(), digest_size=8).digest() for value in counts}
    kept = sorted(counts, key=lambda value: (-counts[value], drawn[value]))[: _MOST_COUNTED // 2]
    return Counter({value: counts[value] for value in kept})


def choose_slices(name: str, counts: Counts) -> Slicing:
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
    # The value at which each tenth of the rows begins.
    first = np.searchsorted(share, share[-1] * np.arange(_RANGES) / _RANGES, side="right")
    # A value that has a tenth of the rows or more is a range of its own, up to the next.
    heavy = [i + 1 for i, value in enumerate(values[:-1]) if counts[value] * _RANGES >= share[-1]]
    starts = [values[i] for i in sorted({*first.tolist(), *heavy})]
    ends = _named([*starts, values[-1]])
    names = [f"{low} to below {high}" for low, high in itertools.pairwise(ends[:-1])]
    return Slicing(name, (*names, f"{ends[-2]} to {ends[-1]}"), edges=tuple(map(float, starts)))


def _named(values: list[float]) -> list[str]:
    """Return numbers as short as tells them apart."""
    for digits in range(4, 18):
        names = [str(value) if isinstance(value, int) else f"{value:.{digits}g}" for value in values]
        if len(set(names)) == len(set(values)):
            break
    return names
