from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale.neighbors.distance import (
    distances_within,
    divisors,
    half_squared_distance,
    normalized,
    paired_distance,
)
from synthscale.neighbors.flat_index import FlatIndex
from tests.examples import examples
from tests.reference import brute

data = given(
    kind=st.sampled_from(brute.KINDS),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 60),
    share=st.floats(0, 1),
)


def is_inside(index: FlatIndex, queries: Any, query_rows: Any, radii: Any) -> NDArray[np.bool_]:
    """Return which queries are within the radius of another row of the index: (m,)."""
    return index.count_containing(queries, query_rows, radii, most=1) > 0


@pytest.mark.parametrize("kind", brute.KINDS)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 60), k=st.integers(1, 6))
@examples(25)
def test_nearest_equals_brute_force(kind: str, seed: int, n: int, k: int) -> None:
    x = brute.vectors(kind, seed, n)
    rows = np.arange(n, dtype=np.int64)
    expected = brute.among(x)
    distances, found = FlatIndex(x, rows).nearest(x, rows, k)
    np.testing.assert_allclose(distances, brute.k_smallest(expected, k), rtol=1e-9, atol=1e-15)
    known = found >= 0
    assert (known == np.isfinite(distances)).all()
    assert (found != rows[:, None]).all()
    np.testing.assert_allclose(
        np.take_along_axis(expected, np.where(known, found, 0), axis=1)[known], distances[known], atol=1e-15
    )


@data
@examples(50)
def test_is_inside_equals_brute_force(kind: str, seed: int, n: int, share: float) -> None:
    x = brute.vectors(kind, seed, n)
    rows = np.arange(n, dtype=np.int64)
    expected = brute.among(x)
    # With radii close to the nearest distances, a single row decides about half of the results.
    factor = np.random.default_rng(seed).uniform(0.3, 1.0 + share, n)
    radii = expected.min(axis=1) * factor
    assume((np.abs(expected - radii) > 1e-13).all())
    found = is_inside(FlatIndex(x, rows), x, rows, radii)
    np.testing.assert_array_equal(found, (expected <= radii[None, :]).any(axis=1))


def test_only_the_row_number_identifies_the_query_in_the_index() -> None:
    rng = np.random.default_rng(1)
    real, fake = rng.normal(size=(30, 5)).astype(np.float32), rng.normal(size=(20, 5)).astype(np.float32)
    expected = brute.cosine_distances(fake, real)
    index, rows = FlatIndex(real, np.arange(30)), np.arange(100, 120)
    distance, row = index.nearest(fake, rows, 3)
    np.testing.assert_allclose(distance, brute.k_smallest(expected, 3), atol=1e-15)
    np.testing.assert_array_equal(row[:, 0], expected.argmin(axis=1))
    np.testing.assert_array_equal(is_inside(index, fake, rows, np.full(30, 0.2)), (expected <= 0.2).any(axis=1))
    # A query with the number of a row of the index is that row, and is excluded from its own result.
    expected[np.arange(20), np.arange(20)] = np.inf
    distance, row = index.nearest(fake, np.arange(20), 3)
    np.testing.assert_allclose(distance, brute.k_smallest(expected, 3), atol=1e-15)
    inside = is_inside(index, fake, np.arange(20), np.full(30, 0.2))
    np.testing.assert_array_equal(inside, (expected <= 0.2).any(axis=1))


def test_queries_beyond_one_block_are_searched() -> None:
    x = np.random.default_rng(2).normal(size=(2100, 4)).astype(np.float32)
    rows = np.arange(2100)
    expected = brute.among(x)
    index = FlatIndex(x, rows)
    np.testing.assert_allclose(index.nearest(x, rows, 2)[0], brute.k_smallest(expected, 2), rtol=1e-9)
    radii = expected.min(axis=1) * 0.9
    np.testing.assert_array_equal(is_inside(index, x, rows, radii), (expected <= radii).any(axis=1))


def test_a_row_at_exactly_the_knn_radius_is_inside() -> None:
    axes = np.eye(4, dtype=np.float32)
    index = FlatIndex(axes[:3], np.arange(3))
    query, row = axes[3:], np.array([3])
    assert is_inside(index, query, row, np.ones(3)).all()
    assert not is_inside(index, query, row, np.full(3, np.nextafter(1.0, 0))).any()


def test_exact_copies_are_at_distance_zero_whatever_their_length() -> None:
    x = np.random.default_rng(3).normal(size=(5, 100)).astype(np.float32)
    both = np.vstack([x, x, 4 * x])
    distance, _ = FlatIndex(both, np.arange(15)).nearest(both, np.arange(15), 2)
    assert (distance == 0).all()


def test_equal_distances_go_to_the_smaller_row() -> None:
    axes = np.eye(4, dtype=np.float32)
    rows = np.array([9, 4, 6, 5])
    _, found = FlatIndex(axes, rows).nearest(axes, rows, 2)
    assert found.tolist() == [[4, 5], [5, 6], [4, 5], [4, 6]]


def test_missing_neighbors_are_inf_and_minus_one() -> None:
    x = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    distance, row = FlatIndex(x, np.arange(2)).nearest(x, np.arange(2), 3)
    assert distance[0].tolist() == [1.0, np.inf, np.inf]
    assert row[0].tolist() == [1, -1, -1]


@pytest.mark.parametrize("queries", [0, 3])
def test_an_empty_index_returns_no_neighbors(queries: int) -> None:
    index = FlatIndex(np.empty((0, 2), np.float32), np.empty(0, np.int64))
    points = np.ones((queries, 2), np.float32)
    rows = np.arange(queries)
    assert np.isinf(index.nearest(points, rows, 2)[0]).all()
    assert not is_inside(index, points, rows, np.empty(0)).any()


def test_the_formula_is_exact_where_one_minus_a_float32_product_is_not() -> None:
    a, b = np.array([[1.0, 0.0]]), np.array([[1.0, 1e-5]])
    # 1 - cos(arctan(1e-5)) = 5e-11 to 10 digits.
    assert half_squared_distance(normalized(a), normalized(b))[0] == pytest.approx(5e-11, rel=1e-9)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_norms_in_blocks_equal_float64_norms(dtype: type) -> None:
    # The squares overflow float16, and there are more rows than one block holds.
    x = (np.random.default_rng(4).normal(size=(5000, 6)) * 1e4).astype(dtype)
    found = divisors(x)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.sqrt((x.astype(np.float64) ** 2).sum(axis=1)), rtol=1e-15)
    assert divisors(x[:0]).shape == (0,)


def test_unit_scales_rows_and_does_not_modify_its_input() -> None:
    x = np.random.default_rng(5).normal(size=(50, 7)) * np.logspace(-30, 30, 50)[:, None]
    before = x.copy()
    scaled = normalized(x)
    np.testing.assert_allclose((scaled**2).sum(axis=1), 1, rtol=1e-15)
    np.testing.assert_allclose(scaled * np.sqrt((x**2).sum(axis=1, keepdims=True)), x, rtol=1e-14)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("kind", brute.KINDS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_distances_of_pairs_equal_brute_force(kind: str, dtype: type) -> None:
    x = brute.vectors(kind, 6, 200).astype(dtype)
    expected = brute.cosine_distances(x, x)
    # More pairs than one block holds, in no order, some of a row with itself.
    left, right = np.random.default_rng(7).integers(0, 200, (2, 20_000))
    found = distances_within(x, divisors(x), left, right)
    np.testing.assert_allclose(found, expected[left, right], rtol=1e-12, atol=1e-16)
    assert (found[left == right] == 0).all()
    scaled = normalized(x)
    np.testing.assert_allclose(paired_distance(scaled, left, scaled, right), expected[left, right], atol=1e-16)
    # The distance is symmetric, and all functions that compute it agree.
    np.testing.assert_array_equal(distances_within(x, divisors(x), right, left), found)
    np.testing.assert_array_equal(paired_distance(scaled, left, scaled, right), found)


def test_no_pairs_give_no_distances() -> None:
    x, none = np.ones((3, 2), np.float32), np.empty(0, np.int64)
    assert distances_within(x, divisors(x), none, none).shape == (0,)
    assert paired_distance(normalized(x), none, normalized(x), none).shape == (0,)


def test_paired_distance_accepts_two_arrays() -> None:
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(40, 4))
    left, right = rng.integers(0, 30, 100), rng.integers(0, 40, 100)
    found = paired_distance(normalized(x), left, normalized(y), right)
    np.testing.assert_allclose(found, brute.cosine_distances(x, y)[left, right], atol=1e-15)


@pytest.mark.parametrize("kind", brute.KINDS)
def test_float16_vectors_are_searched_with_their_exact_values(kind: str) -> None:
    x = brute.vectors(kind, 9, 100).astype(np.float16)
    rows = np.arange(100)
    expected = brute.among(x)
    distance, _ = FlatIndex(x, rows).nearest(x, rows, 3)
    np.testing.assert_allclose(distance, brute.k_smallest(expected, 3), rtol=1e-9, atol=1e-15)


def test_results_of_a_query_do_not_depend_on_other_queries() -> None:
    x, rows = brute.vectors("clustered", 10, 300), np.arange(300)
    index, some = FlatIndex(x, rows), np.array([3, 50, 51, 299])
    all_distances, all_rows = index.nearest(x, rows, 4)
    distance, row = index.nearest(x[some], some, 4)
    np.testing.assert_array_equal(row, all_rows[some])
    np.testing.assert_array_equal(distance, all_distances[some])


def test_more_ties_than_candidates_still_go_to_the_smallest_rows() -> None:
    # 500 rows at exactly the same distance from the query: FAISS returns an arbitrary fourteen of them.
    axes = np.eye(6, dtype=np.float32)
    sign = np.where(np.arange(500) % 2, 1, -1)[:, None]
    ring = (axes[0] + sign * axes[1 + np.arange(500) % 5]).astype(np.float32)
    rows = np.random.default_rng(12).permutation(500)
    distance, row = FlatIndex(ring, rows).nearest(axes[:1], np.array([-7]), 5)
    assert row.tolist() == [[0, 1, 2, 3, 4]]
    assert len(set(distance[0].tolist())) == 1


def test_radius_minus_infinity_contains_nothing_and_zero_only_copies() -> None:
    x = np.random.default_rng(13).normal(size=(4, 3)).astype(np.float32)
    both, rows = np.vstack([x, x[:2]]), np.arange(6)
    index = FlatIndex(both, rows)
    assert not is_inside(index, both, rows, np.full(6, -np.inf)).any()
    assert is_inside(index, both, rows, np.zeros(6)).tolist() == [True, True, False, False, True, True]


def test_faiss_reads_the_written_index_and_returns_row_numbers(tmp_path: Path) -> None:
    x = brute.vectors("uniform", 14, 80) * 7
    rows = np.random.default_rng(15).permutation(10_000)[:80].astype(np.int64)
    FlatIndex(x, rows).write(str(tmp_path / "flat.faiss"))
    index = faiss.read_index(str(tmp_path / "flat.faiss"))
    assert index.ntotal == 80
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    queries = brute.vectors("uniform", 16, 20)
    similar, found = index.search(normalized(queries).astype(np.float32), 3)
    expected = brute.cosine_distances(queries, x)
    np.testing.assert_array_equal(found[:, 0], rows[expected.argmin(axis=1)])
    np.testing.assert_allclose(1 - similar, brute.k_smallest(expected, 3), atol=1e-6)
