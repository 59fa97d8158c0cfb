import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale.search import FlatIndex, MemorySearcher, cosine_distance, unit
from tests.reference import brute

KINDS = ("uniform", "clustered", "tight", "duplicated", "plane", "offset")


def make(kind: str, seed: int, n: int) -> NDArray[np.float32]:
    """Vectors of the shapes that search has to cope with; none is zero."""
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        x = rng.uniform(-1, 1, (n, 8))
    elif kind == "clustered":
        x = rng.normal(size=(4, 16))[rng.integers(0, 4, n)] + 0.05 * rng.normal(size=(n, 16))
    elif kind == "tight":
        # Distances of about 1e-9: float32 inner products cannot order them.
        x = rng.normal(size=(2, 16))[rng.integers(0, 2, n)] + 1e-5 * rng.normal(size=(n, 16))
    elif kind == "duplicated":
        x = rng.normal(size=(n, 6))[rng.integers(0, max(n // 3, 1), n)]
    elif kind == "plane":
        x = rng.normal(size=(n, 2))
    else:
        # Raw pixels have a common brightness, and so small angles throughout.
        x = 300 + rng.normal(size=(n, 12))
    return x.astype(np.float32)


def radius_in_a_gap(distances: NDArray[np.float64], share: float) -> float:
    """A radius that no distance is close to, so that rounding in the oracle cannot decide a test."""
    values = np.unique(distances[np.isfinite(distances)])
    gaps = np.flatnonzero((np.diff(values) > 1e-13) & (np.diff(values) > 1e-9 * values[1:]))
    assume(len(gaps))
    at = gaps[int(share * (len(gaps) - 1))]
    return float(values[at] + values[at + 1]) / 2


data = given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 60),
    share=st.floats(0, 1),
)


@data
@settings(max_examples=150, deadline=None)
def test_pairs_within_a_radius_are_exactly_those_of_brute_force(
    kind: str, seed: int, n: int, share: float
) -> None:
    x = make(kind, seed, n)
    rows = np.arange(n, dtype=np.int64) * 3 + 7
    expected = brute.among(x)
    radius = radius_in_a_gap(expected, share)
    found = FlatIndex(x, rows).within(unit(x), rows, radius)
    pairs = list(zip(found.left.tolist(), found.right.tolist(), strict=True))
    wanted = {(int(rows[i]), int(rows[j])) for i, j in zip(*np.nonzero(expected < radius), strict=True)}
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == wanted
    np.testing.assert_allclose(found.distance, expected[(found.left - 7) // 3, (found.right - 7) // 3], atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 60), k=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_nearest_distances_are_those_of_brute_force(kind: str, seed: int, n: int, k: int) -> None:
    x = make(kind, seed, n)
    rows = np.arange(n, dtype=np.int64)
    expected = brute.among(x)
    distances, found = FlatIndex(x, rows).nearest(unit(x), rows, k)
    np.testing.assert_allclose(distances, brute.k_smallest(expected, k), rtol=1e-9, atol=1e-15)
    known = found >= 0
    assert (known == np.isfinite(distances)).all()
    assert (found != rows[:, None]).all()
    np.testing.assert_allclose(
        np.take_along_axis(expected, np.where(known, found, 0), axis=1)[known], distances[known], atol=1e-15
    )


@data
@settings(max_examples=100, deadline=None)
def test_inside_tells_whether_some_other_rows_radius_reaches(kind: str, seed: int, n: int, share: float) -> None:
    x = make(kind, seed, n)
    rows = np.arange(n, dtype=np.int64)
    expected = brute.among(x)
    # Radii around the nearest distances make about half of the answers hang on a single row.
    factor = np.random.default_rng(seed).uniform(0.3, 1.0 + share, n)
    radii = expected.min(axis=1) * factor
    assume((np.abs(expected - radii) > 1e-13).all())
    found = FlatIndex(x, rows).inside(unit(x), rows, radii)
    np.testing.assert_array_equal(found, (expected <= radii[None, :]).any(axis=1))


def test_search_across_sets_keeps_rows_that_share_a_number_apart_by_row_number_only() -> None:
    rng = np.random.default_rng(1)
    real, fake = rng.normal(size=(30, 5)).astype(np.float32), rng.normal(size=(20, 5)).astype(np.float32)
    sets = {"real": (real, np.arange(30)), "fake": (fake, np.arange(100, 120))}
    searcher = MemorySearcher(sets)
    expected = brute.cosine_distances(fake, real)
    distance, row = searcher.nearest("fake", "real", 3)
    np.testing.assert_allclose(distance, brute.k_smallest(expected, 3), atol=1e-15)
    np.testing.assert_array_equal(row[:, 0], expected.argmin(axis=1))
    pairs = searcher.within("fake", "real", 0.4)
    wanted = {(100 + i, j) for i, j in zip(*np.nonzero(expected < 0.4), strict=True)}
    assert set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == wanted
    inside = searcher.inside("fake", "real", np.full(30, 0.2))
    np.testing.assert_array_equal(inside, (expected <= 0.2).any(axis=1))


def test_more_queries_than_one_block_are_all_answered() -> None:
    x = np.random.default_rng(2).normal(size=(2100, 4)).astype(np.float32)
    rows = np.arange(2100)
    expected = brute.among(x)
    index = FlatIndex(x, rows)
    np.testing.assert_allclose(index.nearest(unit(x), rows, 2)[0], brute.k_smallest(expected, 2), rtol=1e-9)
    pairs = index.within(unit(x), rows, 1e-3)
    assert len(pairs.left) == (expected < 1e-3).sum()
    radii = expected.min(axis=1) * 0.9
    np.testing.assert_array_equal(index.inside(unit(x), rows, radii), (expected <= radii).any(axis=1))


def test_a_pair_at_exactly_the_radius_is_no_edge() -> None:
    # Axes are at distance 1 and opposite axes at 2, without any rounding.
    axes = np.vstack([np.eye(4), -np.eye(4)]).astype(np.float32)
    rows = np.arange(8)
    index = FlatIndex(axes, rows)
    assert len(index.within(unit(axes), rows, 1.0).left) == 0
    above_one = index.within(unit(axes), rows, float(np.nextafter(1.0, 2)))
    assert len(above_one.left) == 8 * 6
    assert (above_one.distance == 1.0).all()
    assert len(index.within(unit(axes), rows, 2.0).left) == 8 * 6
    assert len(index.within(unit(axes), rows, 2.5).left) == 8 * 7


def test_a_row_at_exactly_the_knn_radius_is_inside() -> None:
    axes = np.eye(4, dtype=np.float32)
    index = FlatIndex(axes[:3], np.arange(3))
    query, row = unit(axes[3:]), np.array([3])
    assert index.inside(query, row, np.ones(3)).all()
    assert not index.inside(query, row, np.full(3, np.nextafter(1.0, 0))).any()


def test_exact_copies_are_at_distance_zero_whatever_their_length() -> None:
    x = np.random.default_rng(3).normal(size=(5, 100)).astype(np.float32)
    both = np.vstack([x, x, 4 * x])
    distance, _ = FlatIndex(both, np.arange(15)).nearest(unit(both), np.arange(15), 2)
    assert (distance == 0).all()


def test_equal_distances_go_to_the_smaller_row() -> None:
    axes = np.eye(4, dtype=np.float32)
    rows = np.array([9, 4, 6, 5])
    _, found = FlatIndex(axes, rows).nearest(unit(axes), rows, 2)
    assert found.tolist() == [[4, 5], [5, 6], [4, 5], [4, 6]]


def test_what_is_missing_is_inf_and_minus_one() -> None:
    x = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    distance, row = FlatIndex(x, np.arange(2)).nearest(unit(x), np.arange(2), 3)
    assert distance[0].tolist() == [1.0, np.inf, np.inf]
    assert row[0].tolist() == [1, -1, -1]


@pytest.mark.parametrize("queries", [0, 3])
def test_an_empty_set_answers_with_nothing(queries: int) -> None:
    index = FlatIndex(np.empty((0, 2), np.float32), np.empty(0, np.int64))
    points = unit(np.ones((queries, 2)))
    rows = np.arange(queries)
    assert np.isinf(index.nearest(points, rows, 2)[0]).all()
    assert len(index.within(points, rows, 1.0).left) == 0
    assert not index.inside(points, rows, np.empty(0)).any()


def test_the_formula_is_exact_where_one_minus_a_float32_product_is_not() -> None:
    a, b = np.array([[1.0, 0.0]]), np.array([[1.0, 1e-5]])
    # 1 - cos(arctan(1e-5)) = 5e-11 to 10 digits.
    assert cosine_distance(unit(a), unit(b))[0] == pytest.approx(5e-11, rel=1e-9)
