"""Searches and joins by half the squared Euclidean distance are exact, whatever the columns hold."""

from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale.neighbors import cells, projection
from synthscale.neighbors import join as join_module
from synthscale.neighbors.candidate_filter import TorchFilter, allowance, as_database, as_queries, cpu_filter
from synthscale.neighbors.cell_index import CellIndex, train_index
from synthscale.neighbors.cells import JoinPlan, JoinSample, assign_cells, plan_join
from synthscale.neighbors.distance import (
    distances_within,
    divisors,
    half_squared_distance,
    normalized,
    paired_distance,
    squared_norms,
)
from synthscale.neighbors.flat_index import FlatIndex
from synthscale.neighbors.join import JoinResult, hub_edges, join, join_all, place_rows
from synthscale.neighbors.knn_search import (
    ALL_CELLS,
    UNLIMITED,
    KnnResult,
    count_radii_containing,
    count_within_radius,
    search_knn,
)
from synthscale.neighbors.projection import fit_projection
from tests.examples import examples
from tests.reference import brute

Vectors = NDArray[np.float32]
Index = FlatIndex | CellIndex


def flat_index(x: Vectors, rows: NDArray[np.int64]) -> Index:
    return FlatIndex(x, rows, "euclidean")


def cell_index(x: Vectors, rows: NDArray[np.int64]) -> Index:
    index = CellIndex(train_index(x[: max(1, len(x) // 2)], 7, "euclidean"), metric="euclidean")
    index.add(x, rows)
    return index


INDEXES = pytest.mark.parametrize("index_of", [flat_index, cell_index])
KINDS = pytest.mark.parametrize("kind", brute.COLUMN_KINDS)


# Distances.


@KINDS
def test_euclidean_distances_are_half_the_squares_of_differences(kind: str) -> None:
    x = brute.columns(kind, 0, 80)
    expected = brute.halved_squares(x, x)
    rng = np.random.default_rng(1)
    left, right = rng.integers(0, 80, (2, 20_000))
    ones = divisors(x, "euclidean")
    assert (ones == 1).all()
    np.testing.assert_allclose(distances_within(x, ones, left, right), expected[left, right], rtol=1e-12)
    wide = normalized(x, "euclidean")
    np.testing.assert_array_equal(wide, x.astype(np.float64))
    np.testing.assert_allclose(paired_distance(wide, left, wide, right), expected[left, right], rtol=1e-12)
    np.testing.assert_allclose(half_squared_distance(wide[:, None], wide[None]), expected, rtol=1e-12)
    np.testing.assert_allclose(squared_norms(x), (x.astype(np.float64) ** 2).sum(axis=1), rtol=1e-12)


def test_rows_of_zeros_and_of_any_length_have_euclidean_distances() -> None:
    x = np.array([[0, 0], [3, 4], [6, 8], [0, 0]], np.float32)
    rows = np.arange(4)
    for index_of in (flat_index, cell_index):
        distance, row = search_knn(index_of(x, rows), x, rows, 3, ALL_CELLS)
        assert distance.tolist() == [[0, 12.5, 50], [12.5, 12.5, 12.5], [12.5, 50, 50], [0, 12.5, 50]]
        assert row.tolist() == [[3, 1, 2], [0, 2, 3], [1, 0, 3], [0, 1, 2]]


# The candidate filter.


@given(
    kind=st.sampled_from(brute.COLUMN_KINDS),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 60),
    share=st.floats(0, 1),
)
@examples(75)
def test_the_filter_keeps_every_pair_within_its_limit(kind: str, seed: int, n: int, share: float) -> None:
    x = brute.columns(kind, seed, n)
    distances, magnitude = brute.halved_squares(x, x), squared_norms(x)
    limit = float(np.quantile(distances, share, method="nearest"))
    left, right = cpu_filter(as_queries(x, limit, magnitude), as_database(x, 0.0, magnitude))
    found = np.zeros((n, n), np.bool_)
    found[left, right] = True
    assert found[distances <= limit].all()
    # What else it keeps is near the limit, as float32 can tell.
    own = allowance(x, magnitude)
    assert (distances[found] <= (limit * (1 + 1e-6) + 4 * (own[:, None] + own))[found]).all()


@given(kind=st.sampled_from(brute.COLUMN_KINDS), seed=st.integers(0, 2**32 - 1), other=st.integers(0, 2**32 - 1))
@examples(50)
def test_a_projection_increases_no_distance_beyond_the_allowance(kind: str, seed: int, other: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projection, "_WIDTHS", (1, 2))
        fitted = fit_projection(brute.columns(kind, seed, 30), 0.1, 1e9)
    x = np.vstack([brute.columns(kind, seed, 30), brute.columns(kind, other, 30)])
    points = fitted.of_stored(x, divisors(x, "euclidean"))
    own = allowance(points, squared_norms(x))
    growth = brute.halved_squares(points, points) - brute.halved_squares(x, x)
    assert (growth <= own[:, None] + own).all()


# k-NN and radius searches.


@INDEXES
@given(
    kind=st.sampled_from(brute.COLUMN_KINDS),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 70),
    k=st.integers(1, 12),
)
@examples(60)
def test_nearest_rows_are_those_of_brute_force(index_of, kind: str, seed: int, n: int, k: int) -> None:
    x = brute.columns(kind, seed, n)
    rows = np.random.default_rng(seed).permutation(3 * n)[:n]
    expected = brute.among(x, "euclidean")
    distance, row = search_knn(index_of(x, rows), x, rows, k, ALL_CELLS)
    np.testing.assert_allclose(distance, brute.k_smallest(expected, k), rtol=1e-6)
    at = {int(row): i for i, row in enumerate(rows)}
    for i in range(n):
        known = row[i][row[i] >= 0].tolist()
        assert len(set(known)) == len(known) == min(k, n - 1)
        np.testing.assert_allclose([expected[i, at[j]] for j in known], distance[i, : len(known)], rtol=1e-6)


@INDEXES
def test_equal_distances_go_to_the_smaller_row_on_integer_columns(index_of) -> None:
    x = brute.columns("integers", 1, 300)
    rows = np.random.default_rng(2).permutation(900)[:300]
    distances = brute.among(x, "euclidean")
    index = index_of(x, rows)
    distance, row = search_knn(index, x, rows, 5, ALL_CELLS)
    expected = [sorted(zip(own.tolist(), rows.tolist(), strict=True))[:5] for own in distances]
    assert distance.tolist() == [[d for d, _ in own] for own in expected]
    if isinstance(index, FlatIndex):
        assert row.tolist() == [[r for _, r in own] for own in expected]


@INDEXES
@given(
    kind=st.sampled_from(brute.COLUMN_KINDS),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(7, 70),
    m=st.integers(1, 40),
    most=st.sampled_from([1, 3, UNLIMITED]),
)
@examples(60)
def test_rows_within_knn_radii_are_counted_as_by_brute_force(
    index_of, kind: str, seed: int, n: int, m: int, most: int
) -> None:
    both = brute.columns(kind, seed, n + m)
    x, queries, rows, asked = both[:n], both[n:], np.arange(n), np.arange(n, n + m)
    apart = brute.among(both, "euclidean")
    index = index_of(x, rows)
    found = KnnResult(rows, *search_knn(index, x, rows, 5, ALL_CELLS))
    radii, kth = found.radius(5), brute.k_smallest(apart[:n, :n], 5)[:, -1]
    # A distance equal to the radius is within it, however both were rounded.
    sure, possible = (apart[n:, :n] <= kth * (1 + share) for share in (1e-9, 3e-6))
    count = count_radii_containing(index, queries, asked, radii, ALL_CELLS, most)
    assert (np.minimum(sure.sum(axis=1), most) <= count).all()
    assert (count <= np.minimum(possible.sum(axis=1), most)).all()
    # The other way round: rows of the queries' set, with their copies, within the radii of x.
    copies = np.random.default_rng(seed).integers(1, 4, m)
    count = count_within_radius(index_of(queries, asked), x, rows, radii, copies, (ALL_CELLS, most))
    assert (np.minimum(sure.T @ copies, most) <= count).all()
    assert (count <= np.minimum(possible.T @ copies, most)).all()


@INDEXES
def test_ties_at_the_kth_distance_of_integer_columns_are_within_the_radius(index_of) -> None:
    # Distances are multiples of 1/2, so that brute force decides every tie without rounding.
    x = brute.columns("integers", 3, 200)
    queries, rows, asked = brute.columns("integers", 4, 60), np.arange(200), np.arange(200, 260)
    index = index_of(x, rows)
    radii = KnnResult(rows, *search_knn(index, x, rows, 5, ALL_CELLS)).radius(5)
    kth = brute.k_smallest(brute.among(x, "euclidean"), 5)[:, -1]
    within = brute.halved_squares(queries, x) <= kth
    assert (within != (brute.halved_squares(queries, x) < kth)).any()
    count = count_radii_containing(index, queries, asked, radii, ALL_CELLS, UNLIMITED)
    assert count.tolist() == within.sum(axis=1).tolist()


def test_scaled_ties_stay_ties_after_rounding_to_float32() -> None:
    # A third of an integer has no exact float32, so equal differences round differently.
    x = (brute.columns("integers", 5, 300) / 3 - 0.7).astype(np.float32)
    rows = np.arange(300)
    exact = brute.among(brute.columns("integers", 5, 300), "euclidean")
    kth = brute.k_smallest(exact, 5)[:, -1]
    for index_of in (flat_index, cell_index):
        index = index_of(x, rows)
        radii = KnnResult(rows, *search_knn(index, x, rows, 5, ALL_CELLS)).radius(5)
        count = count_radii_containing(index, x, rows, radii, ALL_CELLS, UNLIMITED)
        assert count.tolist() == (exact <= kth).sum(axis=1).tolist()


@pytest.mark.parametrize("index_of", [flat_index, cell_index])
def test_faiss_reads_the_written_index_and_ranks_by_distance(index_of, tmp_path: Path) -> None:
    x, rows = brute.columns("normal", 6, 200), np.random.default_rng(7).permutation(1000)[:200]
    index = index_of(x, rows)
    index.write(str(tmp_path / "index.faiss"))
    read = faiss.read_index(str(tmp_path / "index.faiss"))
    if isinstance(index, CellIndex):
        faiss.extract_index_ivf(faiss.downcast_index(read.index).base_index).nprobe = 7
    squared, found = read.search(x, 1)
    assert found[:, 0].tolist() == rows.tolist()
    np.testing.assert_allclose(squared[:, 0], 0, atol=1e-3)


def test_torch_searches_as_numpy_does() -> None:
    x, rows = brute.columns("heavy", 8, 400), np.arange(400)
    trained = train_index(x, 9, "euclidean")
    one, other = CellIndex(trained, metric="euclidean"), CellIndex(trained, TorchFilter("cpu"), "euclidean")
    for index in (one, other):
        index.add(x, rows)
    for left, right in zip(one.nearest(x, rows, 5, 9), other.nearest(x, rows, 5, 9), strict=True):
        np.testing.assert_array_equal(left, right)


# Joins.


def planned(x: Vectors, code: NDArray[np.int32], radius: float) -> JoinPlan:
    sizes = dict(zip(*(part.tolist() for part in np.unique(code, return_counts=True)), strict=True))
    return plan_join(JoinSample(x, np.arange(len(x)), code), sizes, radius, "euclidean")


def true_pairs(x: Vectors, code: NDArray[np.int32], radius: float) -> dict[tuple[int, int], float]:
    """Pairs of one set, or of the real set and another, whose distance by brute force is below the radius."""
    apart = brute.halved_squares(x, x)
    related = (code[:, None] == code) | (code[:, None] == 0) | (code == 0)
    near = np.argwhere(np.triu((apart < radius) & related, 1))
    return {(int(i), int(j)): float(apart[i, j]) for i, j in near}


def assert_joined(found: JoinResult, x: Vectors, code: NDArray[np.int32], radius: float) -> None:
    """All pairs within the radius, or some of them that connect the same rows in every view and every set."""
    truth = true_pairs(x, code, radius)
    pairs = list(zip(found.edges.left.tolist(), found.edges.right.tolist(), strict=True))
    assert set(pairs) <= set(truth)
    np.testing.assert_allclose(found.edges.distance, [truth[pair] for pair in pairs], rtol=1e-12)
    if found.is_whole:
        assert set(pairs) == set(truth)
    views = [np.flatnonzero((code == 0) | (code == view)) for view in set(code.tolist())]
    for rows in [*views, *(np.flatnonzero(code == own) for own in set(code.tolist()))]:
        at = {int(row): i for i, row in enumerate(rows)}
        ours, theirs = (
            brute.components(len(rows), {(at[i], at[j]) for i, j in some if i in at and j in at})
            for some in (pairs, truth)
        )
        assert ours == theirs


def radius_between(x: Vectors, share: float) -> float:
    """A radius in the middle between two distances that occur, so that rounding decides nothing."""
    values = np.unique(brute.halved_squares(x, x))
    gaps = np.flatnonzero(np.diff(values) > 1e-9 * values[1:])
    if not len(gaps):
        return 1.0
    at = gaps[int(share * (len(gaps) - 1))]
    return float(values[at] + values[at + 1]) / 2


joins = given(
    kind=st.sampled_from(brute.COLUMN_KINDS),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 60),
    share=st.floats(0, 1),
    sets=st.integers(1, 3),
    centers=st.sampled_from(["planned", "bad"]),
)


@joins
@pytest.mark.parametrize(("hub_rows", "edges_per_row"), [(256, 64), (3, 64), (256, 1), (3, 0)])
@examples(40)
def test_a_join_misses_no_pair_within_the_radius(
    hub_rows: int, edges_per_row: int, kind: str, seed: int, n: int, share: float, sets: int, centers: str
) -> None:
    x, rng = brute.columns(kind, seed, n), np.random.default_rng(seed)
    code, radius = rng.integers(0, sets, n).astype(np.int32), radius_between(x, share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projection, "_WIDTHS", (2, 4))
        patch.setattr(cells, "_FEWEST_ROWS", 0)
        patch.setattr(cells, "_CELL_S", -1.0)
        patch.setattr(cells, "_HUB_ROWS", hub_rows)
        patch.setattr(join_module, "EDGES_PER_ROW", edges_per_row)
        patch.setattr(join_module, "_BLOCK", 16)
        plan = planned(x, code, radius)
        if centers == "bad":
            # Some far rows as centres, and twice the same.
            some = plan.projection(x)[rng.integers(0, n, 5)]
            plan = replace(plan, centers=np.concatenate([some, some[:1], 1.5 * some[:2]]))
        assert_joined(join_all(plan, x, np.arange(n), code), x, code, radius)
        chosen = rng.random(n) < 0.5
        pieces = [place_rows(plan, x[part], np.flatnonzero(part), code[part]) for part in (chosen, ~chosen)]
        parts = [join(plan, pieces[0]), join(plan, pieces[1]), join(plan, *pieces)]
        stars = [hub_edges(plan, piece) for piece in pieces]
        edges = join_module.distinct_edges([*(part.edges for part in parts), *stars])
        whole = all(part.is_whole for part in parts) and not any(map(len, stars))
        assert_joined(JoinResult(edges, whole), x, code, radius)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("apart", [1e-3, 1.0, 1e3])
def test_rows_on_both_sides_of_a_boundary_share_a_cell_whatever_their_length(size: float, apart: float) -> None:
    # Each pair is a little less than r apart, across the plane between two centres, near and far from the origin.
    rng = np.random.default_rng(0)
    across = np.eye(5)[0]
    middle = size * rng.normal(size=(100, 5)) * (1 - across) * np.logspace(-2, 4, 100)[:, None]
    radius = (0.01 * size) ** 2
    half = 0.4999 * np.sqrt(2 * radius) * across
    x = np.vstack([middle + half, middle - half]).astype(np.float32)
    centers = np.stack([apart * size / 2 * across, -apart * size / 2 * across]).astype(np.float32)
    code = np.zeros(200, np.int32)
    plan = planned(x[:1], code[:1], radius)
    plan = replace(plan, projection=replace(plan.projection, mean=np.zeros(5, np.float32)), centers=centers)
    placed = assign_cells(plan, x, code)
    entries = set(zip(placed.row_index.tolist(), placed.cell.tolist(), strict=True))
    homes = dict(zip(placed.row_index[placed.home].tolist(), placed.cell[placed.home].tolist(), strict=True))
    for i in range(100):
        assert (i, homes[100 + i]) in entries or (100 + i, homes[i]) in entries


def test_many_rows_in_cells_are_joined_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    # In earnest so few dimensions are compared at once.
    monkeypatch.setattr(cells, "_CELL_S", -1.0)
    rng = np.random.default_rng(1)
    near = rng.normal(size=(300, 16))[rng.integers(0, 300, 5000)] + 0.004 * rng.normal(size=(5000, 16))
    x = np.vstack([near, 10 * rng.standard_cauchy((200, 16))]).astype(np.float32)
    code = rng.integers(0, 2, len(x)).astype(np.int32)
    plan = planned(x, code, 2e-4)
    assert plan.estimate.method == "cells"
    assert plan.cells > 50
    found = join_all(plan, x, np.arange(len(x)), code)
    assert len(found.edges) > 1000
    assert_joined(found, x, code, 2e-4)


def test_a_hub_of_columns_is_one_group_with_edges_linear_in_its_size() -> None:
    rng = np.random.default_rng(2)
    x = (np.vstack([500 + 1e-3 * rng.normal(size=(600, 6)), rng.normal(size=(100, 6))])).astype(np.float32)
    code = np.repeat([0, 1, 0], [300, 300, 100]).astype(np.int32)
    plan = planned(x, code, 1e-3)
    assert sorted(plan.hubs.code.tolist()) == [0, 1]
    found = join_all(plan, x, np.arange(700), code)
    assert len(found.edges) < 3 * 700
    assert not found.is_whole
    assert_joined(found, x, code, 1e-3)


# Rows far longer than all others.


@pytest.mark.parametrize("value", [0.0, 1e4, 1e9, 1e15])
def test_one_corrupt_row_does_not_make_every_pair_a_candidate(value: float) -> None:
    x = brute.columns("normal", 9, 600)
    x[7] += np.float32(value)
    seen = []

    def counted(left: Vectors, right: Vectors) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        found = cpu_filter(left, right)
        if len(left):
            seen.append(len(found[0]))
        return found

    rows, code = np.arange(600), np.zeros(600, np.int32)
    plan = planned(x, code, 1e-3)
    joined = join_all(plan, x, rows, code, counted)
    assert_joined(joined, x, code, 1e-3)
    # The corrupt row may be a candidate of all others, but they are none of one another.
    assert sum(seen) < 20 * 600
    seen.clear()
    index = CellIndex(train_index(x, 7, "euclidean"), counted, "euclidean")
    index.add(x, rows)
    index.nearest(np.delete(x, 7, axis=0), np.delete(rows, 7), 5, 7)
    assert sum(seen) < 600 * 600 / 4


@pytest.mark.parametrize("zeros", [0, 1, 150, 199, 200])
def test_an_index_and_a_join_of_mostly_zeros_are_exact(zeros: int) -> None:
    x, rows, code = brute.columns("normal", 10, 200), np.arange(200), np.zeros(200, np.int32)
    x[200 - zeros :] = 0
    index = cell_index(x[::-1].copy(), rows)
    distance, _ = search_knn(index, x, rows + 200, 5, ALL_CELLS)
    np.testing.assert_allclose(distance, brute.k_smallest(brute.halved_squares(x, x), 5), rtol=1e-6)
    assert_joined(join_all(planned(x, code, 0.05), x, rows, code), x, code, 0.05)
