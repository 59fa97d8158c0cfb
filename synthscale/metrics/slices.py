"""Slices of a data set: rows with one value of a column, or with numbers in a range.

Counts values over the shards of a column, chooses its slices, and maps rows to them; reads and writes no files.
"""

import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

MAX_SLICES = 1000
"""Maximum number of slices by value of a column; the values with the most rows are kept. It bounds the size of
metrics.json."""
_RANGES = 10
"""Number of ranges that a numeric column is divided into, with about equal numbers of rows."""
_MAX_COUNTED = 1_000_000
"""Maximum number of distinct values of a column whose counts are kept; it bounds the driver's memory."""
_MANY_NUMBERS = 20
"""A numeric column with more distinct finite values than this is divided into ranges."""

Counts = Counter[Any]
"""Value -> number of rows; null is not counted."""


@dataclass(frozen=True)
class Slicing:
    """Division of rows into slices by a column.

    Attributes:
        column: name of the column.
        names: names of the slices.
        values: value of each slice; empty for ranges.
        edges: lower ends of the ranges, ascending; empty for slices by value.
        left_out: number of values without a slice, because `MAX_SLICES` others have more rows.
    """

    column: str
    names: tuple[str, ...]
    values: tuple[Any, ...] = ()
    edges: tuple[float, ...] = ()
    left_out: int = 0

    def of(self, column: pa.ChunkedArray | pa.Array) -> NDArray[np.int64]:
        """Return the index of each row's slice, -1 for rows in no slice: (n,)."""
        if self.edges:
            # Integers beyond 2^53 are rounded, which does not matter for ranges.
            numbers = pc.cast(as_text(column), pa.float64(), safe=False).to_numpy(zero_copy_only=False)
            index = np.searchsorted(self.edges, numbers, side="right") - 1
            return np.where(np.isnan(numbers), -1, np.clip(index, 0, None)).astype(np.int64)
        comparable = as_text(column)
        codes = pc.index_in(comparable, pa.array(self.values, comparable.type))
        result: NDArray[np.int64] = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        return result

    @property
    def warning(self) -> str | None:
        """Warning that values were left out; None if there are none."""
        if not self.left_out:
            return None
        return (
            f"column {self.column} has {self.left_out + len(self.names):,} distinct values: metrics are given "
            f"only for the {len(self.names):,} with the most rows"
        )


def as_text(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Normalise a column so that equal values compare equal; despite the name, numbers stay numbers.

    Dictionaries are decoded, floats become float64, NaN becomes null and -0 becomes 0.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        wide = column.cast(pa.float64())
        return pc.add(pc.if_else(pc.is_nan(wide), None, wide), 0.0)
    return column


def count_values(column: pa.ChunkedArray | pa.Array) -> Counts:
    """Return the number of rows of each value of a column."""
    return counter_of(value_counts(column))


def value_counts(column: pa.ChunkedArray | pa.Array) -> pa.StructArray:
    """Return the distinct values of a column, null among them, and their numbers of rows."""
    return pc.value_counts(as_text(column))


def counter_of(counted: pa.StructArray) -> Counts:
    """Return the counts of `value_counts` by value."""
    items = counted.to_pylist()
    return Counter({item["values"]: item["counts"] for item in items if item["values"] is not None})


def keep_largest(counts: Counts) -> Counts:
    """Limit counts of more than `_MAX_COUNTED` values to half as many: those with the most rows.

    This bounds the memory for columns whose values are all different, such as free text or seeds. Ties are broken
    by a hash of the value, so the values kept among equals are a random sample and ranges of numbers hardly move.
    """
    if len(counts) <= _MAX_COUNTED:
        return counts
    hashes = {value: hashlib.blake2b(repr(value).encode(), digest_size=8).digest() for value in counts}
    kept = sorted(counts, key=lambda value: (-counts[value], hashes[value]))[: _MAX_COUNTED // 2]
    return Counter({value: counts[value] for value in kept})


def choose_slices(name: str, counts: Counts) -> Slicing:
    """Choose the slices of a column: ranges for more than 20 distinct numbers, else one slice per value.

    Args:
        name: name of the column.
        counts: rows by value over the whole run.
    """
    numbers = [value for value in counts if isinstance(value, (int, float)) and not isinstance(value, bool)]
    finite = [value for value in numbers if np.isfinite(value)]
    if len(numbers) == len(counts) and len(finite) > _MANY_NUMBERS:
        return _ranges(name, sorted(finite), counts)
    ordered = sorted(counts, key=lambda value: (-counts[value], str(value)))[:MAX_SLICES]
    chosen = tuple(sorted(ordered, key=lambda value: (str(type(value)), value)))
    return Slicing(name, tuple(map(str, chosen)), chosen, left_out=len(counts) - len(chosen))


def _ranges(name: str, values: list[float], counts: Counts) -> Slicing:
    """Divide the ascending distinct ``values`` into about `_RANGES` ranges with equal numbers of rows."""
    cumulative = np.cumsum([counts[value] for value in values])
    first = np.searchsorted(cumulative, cumulative[-1] * np.arange(_RANGES) / _RANGES, side="right")
    # A value with a tenth of the rows or more gets a range of its own: the next range begins at the next value.
    heavy = [i + 1 for i, value in enumerate(values[:-1]) if counts[value] * _RANGES >= cumulative[-1]]
    starts = [values[i] for i in sorted({*first.tolist(), *heavy})]
    ends = _short_names([*starts, values[-1]])
    names = [f"{low} to below {high}" for low, high in itertools.pairwise(ends[:-1])]
    return Slicing(name, (*names, f"{ends[-2]} to {ends[-1]}"), edges=tuple(map(float, starts)))


def _short_names(values: list[float]) -> list[str]:
    """Format numbers with the fewest digits that keep them distinct."""
    for digits in range(4, 18):
        names = [str(value) if isinstance(value, int) else f"{value:.{digits}g}" for value in values]
        if len(set(names)) == len(set(values)):
            break
    return names
