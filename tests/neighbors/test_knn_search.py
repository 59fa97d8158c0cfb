from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthscale.neighbors.cell_index import CellIndex, train_index
from synthscale.neighbors.distance import Floats, Rows
from synthscale.neighbors.flat_index import FlatIndex
from synthscale.neighbors.knn_search import (
    ALL_CELLS,
    KnnResult,
    Recall,
    choose_probes,
    concatenate_results,
    count_radii_containing,
    is_exact,
    merge_nearest,
    probes_to_try,
    radius_recall,
    search_knn,
)
from synthscale.tables.id_hashes import sampling_threshold
from tests.examples import examples

INF = np.inf
RELATION = KnnResult(
    np.array([2, 5, 9]),
    np.array([[0.1, 0.2, 0.4], [0.3, INF, INF], [INF, INF, INF]]),
    np.array([[5, 9, 11], [2, -1, -1], [-1, -1, -1]]),
)


def test_of_returns_the_neighbors_of_rows_in_their_order() -> None:
    distance, neighbor = RELATION.of(np.array([9, 2, 2]))
    assert distance.tolist() == [[INF] * 3, [0.1, 0.2, 0.4], [0.1, 0.2, 0.4]]
    assert neighbor.tolist() == [[-1] * 3, [5, 9, 11], [5, 9, 11]]
    assert RELATION.of(np.empty(0, np.int64))[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("k", "radii"),
    [(1, [0.1, 0.3, -INF]), (2, [0.2, 0.3, -INF]), (3, [0.4, 0.3, -INF]), (7, [0.4, 0.3, -INF])],
)
def test_the_radius_is_the_distance_of_the_kth_or_last_neighbor(k: int, radii: list[float]) -> None:
    # A little more, so that rounding excludes no row at the same distance.
    found = RELATION.radius(k)
    assert found.tolist() == pytest.approx(radii, rel=2e-6)
    assert (found >= radii).all()


def test_an_empty_result_has_no_radii() -> None:
    assert KnnResult(np.empty(0, np.int64), np.empty((0, 3)), np.empty((0, 3), np.int64)).radius(3).shape == (0,)


@pytest.mark.parametrize("enough", [8, 16, 100, 128, 1000])
@pytest.mark.parametrize("cells", [100, 1000])
def test_choose_probes_returns_the_fewest_sufficient_probes_or_all_cells(enough: int, cells: int) -> None:
    exact = np.random.default_rng(0).random((50, 10))
    tried = probes_to_try(cells)
    recall = choose_probes(
        {probes: exact if probes >= min(enough, cells) else exact + 0.1 for probes in tried}, cells
    )
    assert recall.probes == min(probes for probes in tried if probes >= min(enough, cells))
    assert (recall.nearest, recall.all, recall.queries) == (1, 1, 50)


@pytest.mark.parametrize("cells", [1, 3, 8, 9, 64, 100, 16384])
def test_probes_double_up_to_all_cells(cells: int) -> None:
    first, *more_and_more = probes_to_try(cells)
    assert first == cells  # the exact result, which the others are compared with
    tried = [*more_and_more, cells]
    assert tried[0] == min(8, cells)
    assert all(fewer < more <= 2 * fewer for fewer, more in pairwise(tried))


@pytest.mark.parametrize(
    ("wrong_nearest", "wrong_others", "suffices"),
    [(0, 0, True), (1, 0, True), (2, 0, False), (0, 5, True), (0, 6, False)],
)
def test_choose_probes_requires_recall_99_percent_nearest_and_95_all(
    wrong_nearest: int, wrong_others: int, suffices: bool
) -> None:
    exact = np.sort(np.random.default_rng(1).random((100, 10)), axis=1)
    short = exact.copy()
    short[:wrong_nearest, 0] += 0.5
    # Several of each row's others, so that their share of all decides.
    short[:wrong_others, 1:] = INF
    recall = choose_probes({8: short, 500: exact}, 500)
    assert recall.probes == (8 if suffices else 500)


def test_missing_neighbors_do_not_lower_recall() -> None:
    exact = np.array([[0.1, INF], [INF, INF]])
    assert choose_probes({8: exact, 100: exact}, 100) == Recall(1, 1, 2, 8)
    # A neighbour at the same distance up to rounding is correct, whichever row it is.
    assert choose_probes({8: exact * (1 + 1e-8), 100: exact}, 100).probes == 8


def test_choose_probes_without_the_exact_result_is_an_error() -> None:
    with pytest.raises((ValueError, KeyError)):
        choose_probes({8: np.ones((2, 2))}, 100)


def test_radius_recall_is_the_share_of_true_counts() -> None:
    true = np.array([True, True, True, True, False])
    found = np.array([True, True, True, False, False])
    recall = radius_recall(found, true, 16)
    assert (recall.nearest, recall.all, recall.queries, recall.probes) == (0.75, 0.75, 5, 16)


@given(wanted=st.integers(1, 10**6), population=st.integers(1, 10**11))
@examples(100)
def test_the_sampling_threshold_passes_the_wanted_share_of_hashes(wanted: int, population: int) -> None:
    limit = sampling_threshold(wanted, population)
    assert isinstance(limit, np.uint64)
    assert int(limit) / 2**64 == pytest.approx(min(1.0, wanted / population), rel=1e-9)


def test_the_sample_size_is_close_to_the_wanted_one() -> None:
    draws = np.random.default_rng(2).integers(0, 2**64 - 1, 100_000, dtype=np.uint64, endpoint=True)
    assert (draws < sampling_threshold(5000, 100_000)).sum() == pytest.approx(5000, rel=0.05)
    assert (draws <= sampling_threshold(100_000, 100_000)).all()


@given(seed=st.integers(0, 2**32 - 1), parts=st.integers(1, 4), m=st.integers(0, 6), k=st.integers(1, 8))
@examples(50)
def test_merging_keeps_the_k_nearest_and_breaks_ties_by_row(seed: int, parts: int, m: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    answers: list[tuple[Floats, Rows]] = []
    expected: list[list[tuple[float, int]]] = [[] for _ in range(m)]
    for part in range(parts):
        known = rng.integers(0, k + 1)
        # Few different distances: many ties, within parts and across.
        distance = np.sort(rng.choice([0.0, 0.1, 0.2], (m, known)), axis=1)
        rows = np.array([rng.choice(100, known, replace=False) * parts + part for _ in range(m)]).reshape(m, known)
        rows = np.take_along_axis(rows, np.lexsort((rows, distance), axis=1), 1)
        for i in range(m):
            expected[i] += zip(distance[i].tolist(), rows[i].tolist(), strict=True)
        fill = ((0, 0), (0, k - known))
        answers.append((np.pad(distance, fill, constant_values=INF), np.pad(rows, fill, constant_values=-1)))
    distance, rows = merge_nearest(answers, k)
    assert distance.shape == rows.shape == (m, k)
    for i in range(m):
        nearest = sorted(expected[i])[:k]
        nearest += [(INF, -1)] * (k - len(nearest))
        assert list(zip(distance[i].tolist(), rows[i].tolist(), strict=True)) == nearest


def test_flat_and_cell_indexes_agree() -> None:
    rng = np.random.default_rng(3)
    x, rows, radii = rng.normal(size=(200, 8)).astype(np.float32), np.arange(200), rng.uniform(0, 0.2, 200)
    cells = CellIndex(train_index(x, 6))
    cells.add(x, rows)
    flat = FlatIndex(x, rows)
    for left, right in zip(search_knn(flat, x, rows, 4, 1), search_knn(cells, x, rows, 4, ALL_CELLS), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)
    np.testing.assert_array_equal(
        count_radii_containing(flat, x, rows, radii, 1), count_radii_containing(cells, x, rows, radii, ALL_CELLS)
    )


def test_is_exact_depends_on_the_number_of_pairs_only() -> None:
    assert is_exact(50_000, 50_000)
    assert is_exact(10**9, 4)
    assert is_exact(0, 10**12)
    assert not is_exact(100_000, 100_000)


@given(seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(0, 20), max_size=5))
@settings(deadline=None)
def test_results_of_row_ranges_are_concatenated_in_order(seed: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    whole = KnnResult(
        np.sort(rng.choice(100, 20, replace=False)),
        np.sort(rng.random((20, 3)), axis=1),
        rng.integers(-1, 99, (20, 3)),
    )
    # Empty ranges too, at either end and within.
    stops = [0, *sorted(cuts), 20]
    parts = [KnnResult(whole.row[i:j], whole.distance[i:j], whole.neighbor[i:j]) for i, j in pairwise(stops)]
    found = concatenate_results(parts)
    for name in ("row", "distance", "neighbor"):
        values = getattr(found, name)
        np.testing.assert_array_equal(values, getattr(whole, name))
        assert values.dtype == getattr(whole, name).dtype
    assert found.recall is None
    np.testing.assert_array_equal(found.radius(2), whole.radius(2))
