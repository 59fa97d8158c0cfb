"""What searches found -> nearest rows, Datalab's edges and the numbers of a view: the pure functions."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale.config import NeighborsConfig
from synthscale.in_memory.neighbors import MemoryBackend, MemoryRows, analyse_vectors
from synthscale.neighbors.analysis import search_near_duplicates
from synthscale.neighbors.copies import Copies
from synthscale.neighbors.groups import Groups
from synthscale.neighbors.knn_search import KnnResult, Recall
from synthscale.neighbors.radius import EXACT_COPIES_ONLY, RadiusCalibration, ViewSearches
from synthscale.neighbors.search_backend import SetPair, view_pairs
from synthscale.neighbors.search_space import SearchSpace
from synthscale.neighbors.view import (
    DATALAB_K,
    K,
    NeighborView,
    RadiusCounts,
    listed_edges,
    nearest_rows,
    searches_summary,
)
from synthscale.tables.id_hashes import hash_ids
from tests.examples import examples
from tests.neighbors.views import (
    DATALAB,
    EXACT,
    NONE,
    Vectors,
    found_by_brute_force,
    normal,
    numbered,
    pairs_of,
    sets_of,
)
from tests.reference import brute


@given(
    kind=st.sampled_from(["uniform", "duplicated"]),
    seed=st.integers(0, 2**32 - 1),
    some=st.lists(st.booleans(), min_size=30, max_size=30),
)
@examples(20)
def test_nearest_rows_of_a_shard_are_those_of_the_whole(kind: str, seed: int, some: list[bool]) -> None:
    sets = dict(zip(("real", "fake"), sets_of(kind, seed, 18, 12), strict=True))
    x, rows, copies = numbered(sets)
    distinct = [own[copies.are_distinct(own)] for own in rows.values()]
    found = found_by_brute_force(x, *distinct, 5)
    whole = nearest_rows(found, copies, rows["real"], rows["fake"])
    assert whole.row.tolist() == list(range(30))
    chosen = np.flatnonzero(some)
    part = nearest_rows(found, copies, chosen[chosen < 18], chosen[chosen >= 18])
    for name, values in vars(whole).items():
        np.testing.assert_array_equal(getattr(part, name), values[chosen], err_msg=name)
    searched = analyse_vectors(x, rows, copies, EXACT).nearest["fake"]
    for name in ("nn_distance", "nearest_real_distance"):
        np.testing.assert_allclose(getattr(searched, name), getattr(whole, name), atol=1e-15)
    # Euclidean vectors are moved to the mean and rounded to float32.
    for name in ("manifold_real_distance", "distinct_real_distance", "knn_radius"):
        np.testing.assert_allclose(getattr(searched, name), getattr(whole, name), rtol=1e-5, err_msg=name)
    for name in ("manifold_real_row", "in_real_manifold", "covered"):
        np.testing.assert_array_equal(getattr(searched, name), getattr(whole, name), err_msg=name)


def test_rows_are_exact_where_both_their_searches_are() -> None:
    x = normal(50, 30)
    real, own = np.arange(20), np.arange(20, 30)
    found = found_by_brute_force(x, real, own, 5)
    parts = dict(vars(found.searches))
    for name, real_is, own_is in (
        ("real_real", False, True),
        ("real_synthetic", False, True),
        ("synthetic_real", True, False),
        ("synthetic_synthetic", True, False),
    ):
        whole = parts[name]
        probed = KnnResult(whole.row, whole.distance, whole.neighbor, Recall(0.99, 0.96, 100, 8))
        searches = ViewSearches(**{**parts, name: probed})
        exact = nearest_rows(replace(found, searches=searches), NONE, real, own).exact
        assert (exact[:20] == real_is).all()
        assert (exact[20:] == own_is).all()


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 4), (6, 5), (40, 30)])
@pytest.mark.parametrize("codes", [(0, 1), (0, 3)])
def test_listed_edges_are_those_of_the_ten_nearest_of_either_end(n: int, m: int, codes: tuple[int, int]) -> None:
    real, fake = sets_of("clustered", n, n, m)
    x = np.vstack([real, fake])
    distances, rows = brute.nearest_lists(x, min(10, n + m - 1))
    radius = float(np.quantile(brute.among(x)[np.isfinite(brute.among(x))], 0.3)) * (1 + 1e-9)
    wanted = {
        (min(i, int(j)), max(i, int(j)))
        for i in range(n + m)
        for j, d in zip(rows[i], distances[i], strict=True)
        if d < radius
    }
    found = found_by_brute_force(x, np.arange(n), np.arange(n, n + m), DATALAB_K)
    edges = listed_edges(found.searches, NONE, radius, codes)
    assert pairs_of(edges) == wanted
    np.testing.assert_array_equal(edges.left_code, np.where(edges.left < n, *codes))
    np.testing.assert_array_equal(edges.right_code, np.where(edges.right < n, *codes))
    if n == 40:
        assert len(wanted) < len(brute.edges(x, radius))


def test_a_listed_pair_at_exactly_the_radius_is_no_edge() -> None:
    axes = np.eye(4, dtype=np.float32)
    found = found_by_brute_force(axes, np.arange(2), np.arange(2, 4), DATALAB_K)
    assert len(listed_edges(found.searches, NONE, 1.0, (0, 1))) == 0
    assert len(listed_edges(found.searches, NONE, float(np.nextafter(1.0, 2)), (0, 1))) == 6


# Beside cleanlab's Datalab.


@pytest.mark.parametrize(
    ("config", "listed"), [(EXACT, 1), (DATALAB, 10), (NeighborsConfig(calibrate_on="all"), 1)]
)
def test_a_search_for_near_duplicates_lists_one_neighbour_and_datalabs_ten(
    config: NeighborsConfig, listed: int
) -> None:
    assert (K, DATALAB_K) == (5, 10)
    x, rows, copies = numbered({"real": normal(1, 30), "fake": normal(2, 20)})
    data = MemoryRows(x, rows, copies, hash_ids(map(str, range(50))))
    backend = MemoryBackend(data, SearchSpace("near_duplicates", "cosine", (0, 8)))
    search_near_duplicates(backend, config, 1)
    for pair in view_pairs(1):
        assert backend.results[pair].distance.shape[1] == listed
    # Where both spaces are one, the search within each set also gives the k-NN radii.
    search_near_duplicates(backend, config, K)
    assert backend.results[SetPair(0, 0)].distance.shape[1] == max(listed, K)


def test_inside_is_looked_up_by_row() -> None:
    inside = RadiusCounts(np.array([2, 5, 9]), np.array([True, False, True]))
    assert inside.of(np.array([9, 5, 2, 2])).tolist() == [True, False, True, True]
    assert inside.of(np.empty(0, np.int64)).tolist() == []


# Datalab's lists over rows that have copies.


def walked(x: Vectors, copies: Copies, sets: list[NDArray[np.int64]], radius: float) -> set[tuple[int, int]]:
    """Pairs of distinct rows, by walking down each one's list of all other rows, its own copies first."""
    rows = np.concatenate(sets)
    distances, of = brute.among(x), copies.representatives(rows)
    is_own = np.isin(rows, sets[1])
    pairs = set()
    for i in rows[of == rows].tolist():
        own = [j for j in rows.tolist() if of[j] == i and j != i]
        others = sorted((distances[i, j], of[j], j) for j in rows.tolist() if of[j] != i)
        assert all(is_own[j] == is_own[i] for j in own)
        for d, j, _ in ([(0.0, i, j) for j in own] + others)[:DATALAB_K]:
            if d < radius and j != i:
                pairs.add((min(i, int(j)), max(i, int(j))))
    return pairs


@given(
    kind=st.sampled_from(["duplicated", "clustered"]),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    m=st.integers(1, 40),
    share=st.floats(0.05, 1),
)
@examples(50)
def test_listed_edges_are_those_of_lists_over_all_rows_with_copies(
    kind: str, seed: int, n: int, m: int, share: float
) -> None:
    real, fake = sets_of(kind, seed, n, m)
    # Some pictures so often that they fill a list alone.
    rng = np.random.default_rng(seed)
    real = real[np.sort(rng.choice(n, n + 15, p=rng.dirichlet(np.full(n, 0.3))))]
    x, rows, copies = numbered({"real": real, "fake": fake})
    distances = brute.among(x)
    radius = float(np.quantile(distances[np.isfinite(distances)], share)) * (1 + 1e-9)
    distinct = [own[copies.are_distinct(own)] for own in rows.values()]
    edges = listed_edges(found_by_brute_force(x, *distinct, DATALAB_K).searches, copies, radius, (0, 1))
    found, wanted = pairs_of(edges), walked(x, copies, list(rows.values()), radius)
    # Which of more than ten rows at distance 0 come first is Datalab's business: see test_datalab.py.
    assert {pair for pair in found if distances[pair] > 0} == {pair for pair in wanted if distances[pair] > 0}
    zero = {(i, j) for i in distinct[0] for j in distinct[1] if distances[i, j] == 0}
    assert {pair for pair in wanted if distances[pair] == 0} <= {pair for pair in found if distances[pair] == 0}
    assert {pair for pair in found if distances[pair] == 0} <= zero
    np.testing.assert_array_equal(edges.left_code, np.isin(edges.left, rows["fake"]))
    np.testing.assert_array_equal(edges.right_code, np.isin(edges.right, rows["fake"]))
    np.testing.assert_allclose(edges.distance, distances[edges.left, edges.right], atol=1e-15)


def line(distances: list[float], counts: list[int]) -> tuple[ViewSearches, Copies]:
    """A real row 0 that finds synthetic rows 100, 200, .. at these distances and they it; each so many times."""
    far = 100 * np.arange(1, len(distances) + 1)
    row = np.concatenate([np.arange(counts[0]), *(k + np.arange(c) for k, c in zip(far, counts[1:], strict=True))])
    of = np.repeat([0, *far.tolist()], counts)
    often = np.repeat(counts, counts) > 1
    width = max(len(distances), 1)
    there = KnnResult(np.array([0]), np.array([distances]), far[None])
    back = KnnResult(far, np.array(distances)[:, None], np.zeros((len(far), 1), np.int64))

    def none(rows: NDArray[np.int64]) -> KnnResult:
        return KnnResult(rows, np.full((len(rows), width), np.inf), np.full((len(rows), width), -1))

    return ViewSearches(none(np.array([0])), there, back, none(far)), Copies(row[often], of[often])


@pytest.mark.parametrize(
    ("counts", "seen"),
    [
        # Twelve others fit ten places; a row's copies and its neighbours' take them up.
        ([1] * 13, 10),
        ([2] + [1] * 12, 9),
        ([10] + [1] * 12, 1),
        ([11] + [1] * 12, 0),
        ([1, 10] + [1] * 11, 1),
        ([1, 9] + [1] * 11, 2),
        ([1, 4, 4, 4, 4] + [1] * 8, 3),
        ([3, 4, 4, 4, 4] + [1] * 8, 2),
    ],
)
def test_copies_take_up_places_on_datalabs_list(counts: list[int], seen: int) -> None:
    searches, copies = line([0.01 * i for i in range(1, 13)], counts)
    # Seen from the other side the row would stand on their lists: they find nothing here.
    blind = replace(searches.synthetic_real, distance=np.full((12, 1), np.inf), neighbor=np.full((12, 1), -1))
    edges = listed_edges(replace(searches, synthetic_real=blind), copies, 1.0, (0, 1))
    assert pairs_of(edges) == {(0, 100 * i) for i in range(1, seen + 1)}
    # A pair is an edge where either end lists the other.
    either = listed_edges(searches, copies, 1.0, (0, 1))
    assert pairs_of(either) == {(0, 100 * i) for i in range(1, 13) if i <= seen or counts[i] <= DATALAB_K}


# The block of metrics.json.


def view_of(radius: float, median: float | None, *, is_whole: bool = True) -> NeighborView:
    """Rows 1, 2, 7 of one group and 4, 5 of another, all of one component, of twenty rows."""
    groups = Groups(
        np.array([1, 2, 4, 5, 7]),
        np.array([1, 1, 4, 4, 1]),
        np.array([3, 3, 2, 2, 3]),
        np.array([True, True, False, False, True]),
        np.array([True, True, True, True, True]),
        np.array([0.3, 0.3, 0.01, 0.01, 0.3]),
        np.array([True, True, False, False, True]),
        np.array([True, True, False, False, False]),
        np.array([1, 1, 1, 1, 1]),
        np.array([2, 2, 3, 3, 3]),
        np.array([1, 1, 4, 4, 7]),
        np.array([2, 2, 2, 2, 1]),
    )
    calibration = RadiusCalibration(median, median, median, radius, 8, 8)
    return NeighborView("fake", calibration, groups, 20, searches_summary([None]), is_whole)


def test_a_views_summary_counts_its_groups() -> None:
    summary = view_of(0.05, 0.4).summary()
    assert {name: value for name, value in summary.items() if not isinstance(value, dict)} == {
        "radius": 0.05,
        "median_distance": 0.4,
        "groups": 2,
        "components": 1,
        "rows_in_groups": 5,
        "share_in_groups": 0.25,
        "share_in_largest": 0.15,
        "chains": 1,
        "largest_diameter": 0.3,
        "recall": 1.0,
    }
    assert summary["nearest"] == {"exact": True, "recall": 1.0, "recall_all": 1.0, "queries": 0}


def test_the_recall_of_datalabs_lists_is_null_with_a_reason() -> None:
    summary = view_of(0.05, 0.4, is_whole=False).summary()
    assert summary["recall"] is None
    assert summary["reason"]
    assert (summary["radius"], summary["median_distance"], summary["groups"]) == (0.05, 0.4, 2)


@pytest.mark.parametrize(("radius", "median"), [(EXACT_COPIES_ONLY, None), (EXACT_COPIES_ONLY, 0.0), (0.1, None)])
def test_without_a_calibrated_radius_a_summary_says_why(radius: float, median: float | None) -> None:
    summary = view_of(radius, median).summary()
    assert "distinct real rows" in summary["reason"]
    assert summary["radius"] == (None if radius == EXACT_COPIES_ONLY else radius)
    assert summary["median_distance"] == median


def test_a_view_without_groups_has_zeros() -> None:
    groups = view_of(0.05, 0.4).groups
    groups = Groups(*(values[:0] for values in vars(groups).values()))
    summary = replace(view_of(0.05, 0.4), groups=groups, rows=0).summary()
    assert [summary[name] for name in ("groups", "rows_in_groups", "share_in_groups", "share_in_largest")] == [
        0
    ] * 4
    assert summary["largest_diameter"] == summary["chains"] == 0


def test_searches_are_as_good_as_the_worst_of_them() -> None:
    found = searches_summary([None, Recall(0.999, 0.96, 100, 8), Recall(0.99, 0.98, 80, 16)])
    assert found == {"exact": False, "recall": 0.99, "recall_all": 0.96, "queries": 80}
    assert searches_summary([])["exact"]
