import itertools
import math
from collections import Counter
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthscale.metrics.slices import MAX_SLICES, Counts, Slicing, as_text, choose_slices, count_values

Columns = pa.Array | pa.ChunkedArray


def counted(column: Columns, cuts: tuple[int, ...] = ()) -> Counts:
    """Count rows by value shard by shard and merge the counts, as a run does."""
    total: Counts = Counter()
    stops = [0, *cuts, len(column)]
    for start, stop in itertools.pairwise(stops):
        total += count_values(column.slice(start, stop - start))
    return total


def cut(column: Columns, cuts: tuple[int, ...] = ()) -> Slicing:
    return choose_slices("column", counted(column, cuts))


def members(column: Columns, cuts: tuple[int, ...] = ()) -> dict[str, list[int]]:
    """Return the row numbers of each slice by its name."""
    found = cut(column, cuts)
    assert len(set(found.names)) == len(found.names), "two slices have one name"
    rows: dict[str, list[int]] = {name: [] for name in found.names}
    for i, place in enumerate(found.of(column).tolist()):
        if place >= 0:
            rows[found.names[place]].append(i)
    return rows


def by_value(values: list[Any]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for i, value in enumerate(values):
        if value is not None:
            rows.setdefault(str(value), []).append(i)
    return rows


TEXTS = ["b", None, "a", "b", "", "c d", "b", None]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(TEXTS),
        pa.array(TEXTS).dictionary_encode(),
        pa.chunked_array([TEXTS[:3], TEXTS[3:]]),
        pa.chunked_array([pa.array(part).dictionary_encode() for part in (TEXTS[:3], TEXTS[3:])]),
        pa.array(TEXTS, pa.large_string()),
    ],
    ids=["plain", "dictionary", "chunks", "chunks of dictionaries", "large"],
)
@pytest.mark.parametrize("cuts", [(), (3,), (0, 2, 8)])
def test_texts_are_cut_by_value_and_null_is_in_no_slice(column: Columns, cuts: tuple[int, ...]) -> None:
    assert members(column, cuts) == by_value(TEXTS)
    assert cut(column).of(column)[[1, 7]].tolist() == [-1, -1]
    assert cut(column).names == ("", "a", "b", "c d")


@pytest.mark.parametrize(
    "values",
    [
        [True, False, None, True],
        [3, 1, 2, 3, None],
        [0.5, -1.25, 0.5, None],
        [date(2024, 5, 1), date(2023, 1, 1), None],
        [Decimal("1.10"), Decimal("2.00"), None],
        [b"\x00", b"\xff", None],
    ],
    ids=["bool", "int", "float", "date", "decimal", "bytes"],
)
def test_few_values_of_any_kind_are_cut_by_value_in_their_order(values: list[Any]) -> None:
    column = pa.array(values)
    assert members(column, (2,)) == by_value(values)
    assert cut(column).names == tuple(str(value) for value in sorted({v for v in values if v is not None}))


def test_a_column_of_nulls_has_no_slice() -> None:
    for column in (pa.nulls(4), pa.nulls(4, pa.string()), pa.nulls(4, pa.float64()), pa.array([], pa.int64())):
        assert cut(column).names == ()
        assert cut(column).of(column).tolist() == [-1] * len(column)
        assert cut(column).warning is None


def test_a_shard_with_other_values_or_none_is_cut_alike() -> None:
    found = cut(pa.array(["a", "b", "a"]))
    assert found.of(pa.array(["b", "z", None])).tolist() == [1, -1, -1]
    assert found.of(pa.array(["b", "a"]).dictionary_encode()).tolist() == [1, 0]
    assert found.of(pa.array([], pa.string())).tolist() == []
    assert found.of(pa.chunked_array([], pa.string())).tolist() == []


numbers = st.one_of(
    st.lists(st.one_of(st.none(), st.integers(-(10**6), 10**6)), min_size=1, max_size=200),
    st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6).map(lambda x: x + 0.0)), min_size=1, max_size=200),
    st.lists(st.integers(0, 40), min_size=1, max_size=200),
)


@given(numbers, st.lists(st.integers(0, 200), max_size=3))
@settings(deadline=None)
def test_every_known_number_is_in_one_slice_and_slices_are_ordered(values: list[Any], cuts: list[int]) -> None:
    kind = pa.float64() if any(isinstance(v, float) for v in values) else pa.int64()
    column = pa.array(values, kind)
    places = tuple(sorted(min(c, len(values)) for c in cuts))
    found = cut(column, places)
    of = found.of(column)
    assert ((of >= 0) == np.array([value is not None for value in values])).all()
    # The result does not depend on the order of shards or on where they are split.
    assert found == cut(column.take(pa.array(np.arange(len(values))[::-1])))
    known = sorted((value, place) for value, place in zip(values, of.tolist(), strict=True) if value is not None)
    assert [place for _, place in known] == sorted(place for _, place in known)
    distinct = len({value for value in values if value is not None})
    if distinct <= 20:
        assert len(found.names) == distinct
    else:
        assert 1 < len(found.names) <= 10


def test_twenty_numbers_are_values_and_more_are_ranges() -> None:
    assert cut(pa.array(range(20))).names == tuple(map(str, range(20)))
    found = cut(pa.array(range(100)))
    assert len(found.names) == 10
    assert found.of(pa.array(range(100))).tolist() == sorted(found.of(pa.array(range(100))).tolist())
    sizes = np.bincount(found.of(pa.array(range(100))))
    assert sizes.min() >= 9
    assert sizes.max() <= 11


def test_ranges_hold_about_as_many_rows_whatever_the_spread_of_numbers() -> None:
    values = np.exp(np.random.default_rng(0).normal(0, 3, 5000))
    sizes = np.bincount(cut(pa.array(values)).of(pa.array(values)))
    assert len(sizes) == 10
    np.testing.assert_allclose(sizes, 500, atol=5)


def test_the_names_of_ranges_are_their_ends() -> None:
    names = cut(pa.array(range(100))).names
    ends = [name.replace(" below", "").split(" to ") for name in names]
    for (_, high), (low, _) in itertools.pairwise(ends):
        assert high == low
    assert (ends[0][0], ends[-1][1]) == ("0", "99")


@pytest.mark.parametrize("share", [0.05, 0.11, 0.5, 0.95])
@pytest.mark.parametrize("value", [-1, 40, 1000], ids=["least", "middle", "greatest"])
def test_one_number_may_have_most_of_the_rows(share: float, value: int) -> None:
    # As in counts of objects, where most values are 0.
    often = [value] * int(share / (1 - share) * 100)
    column = pa.array([*often, *range(100)])
    rows = members(column)
    assert sum(map(len, rows.values())) == len(column)
    assert any(set(range(len(often))) <= set(own) for own in rows.values())
    assert len(rows) > 1


def test_ranges_of_numbers_far_from_0_have_names_of_their_own() -> None:
    # As in timestamps or ids, which six digits do not distinguish.
    column = pa.array([1_700_000_000 + i for i in range(50)])
    rows = members(column)
    assert len(rows) == 10
    assert sum(map(len, rows.values())) == 50


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64()])
def test_numbers_of_64_bits_are_cut_into_ranges(kind: pa.DataType) -> None:
    # Random seeds often use the whole 64-bit range.
    column = pa.array([2**62 + i * 10**15 for i in range(60)], kind)
    rows = members(column)
    assert sum(map(len, rows.values())) == 60
    assert len(rows) == 10


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
@pytest.mark.parametrize("distinct", [5, 40])
@pytest.mark.parametrize("cuts", [(), (30, 60)])
def test_nan_is_at_most_one_slice_of_its_own(kind: pa.DataType, distinct: int, cuts: tuple[int, ...]) -> None:
    values = np.arange(100) % distinct * 0.5
    values[::7] = np.nan
    column = pa.array(values).cast(kind)
    rows = members(column, cuts)
    unknown = set(np.flatnonzero(np.isnan(values)).tolist())
    for name, own in rows.items():
        assert name == "nan" or not unknown & set(own)
    known = [row for name, own in rows.items() if name != "nan" for row in own]
    assert sorted(known) == sorted(set(range(100)) - unknown)


@pytest.mark.parametrize("distinct", [3, 40])
def test_minus_zero_is_zero(distinct: int) -> None:
    column = pa.array([0.0, -0.0, *map(float, range(1, distinct))])
    of = cut(column).of(column)
    assert of[0] == of[1] == 0


def test_infinite_numbers_are_in_the_outermost_ranges() -> None:
    column = pa.array([*map(float, range(50)), math.inf, -math.inf])
    of = cut(column).of(column)
    assert (of[50], of[51]) == (of[:50].max(), 0)


def test_of_more_than_a_thousand_values_those_with_the_most_rows_are_kept() -> None:
    values = [f"prompt {i:04d}" for i in range(MAX_SLICES + 500)]
    column = pa.array([*values, *values[700:], *values[1490:]])
    found = cut(column)
    assert len(found.names) == MAX_SLICES
    assert found.left_out == 500
    # 800 values have two rows or more; ties are resolved by name.
    assert set(found.names) == {*values[700:], *values[:200]}
    of = found.of(column)
    assert set(of[200:700].tolist()) == {-1}
    assert (of[700 : MAX_SLICES + 500] >= 0).all()
    assert found.warning is not None
    assert "column" in found.warning
    assert "1,500" in found.warning
    assert "1,000" in found.warning
    assert cut(pa.array(values[:MAX_SLICES])).warning is None


def test_the_values_kept_do_not_depend_on_the_order_of_rows() -> None:
    values = np.array([f"{i}" for i in range(1300)] * 2 + [f"{i}" for i in range(300)])
    moved = np.random.default_rng(0).permutation(values)
    assert cut(pa.array(values)) == cut(pa.array(moved), (17, 900))


def test_dictionaries_are_compared_by_their_values() -> None:
    column = pa.array(["a", "b", None]).dictionary_encode()
    assert as_text(column).to_pylist() == ["a", "b", None]
    assert as_text(pa.array([1])).to_pylist() == [1]
