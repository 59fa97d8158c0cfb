from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale.neighbors.candidate_filter import TorchFilter
from synthscale.neighbors.cell_index import CellIndex, cells_for, index_sample_size, train_index
from synthscale.neighbors.knn_search import merge_nearest
from tests.examples import examples
from tests.reference import brute

Vectors = NDArray[np.float32]
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

KINDS = ["uniform", "clustered", "duplicated", "plane", "space", "wide", "one direction"]


def vectors_of(kind: str, seed: int, n: int) -> Vectors:
    rng = np.random.default_rng(seed)
    d = {"plane": 2, "space": 3, "wide": 90}.get(kind, 8)
    x = rng.normal(size=(n, d))
    if kind == "clustered":
        x = rng.normal(size=(5, d))[rng.integers(0, 5, n)] + rng.choice([1e-3, 0.05], (n, 1)) * x
    elif kind == "duplicated":
        x = x[rng.integers(0, max(1, n // 5), n)]
    elif kind == "one direction":
        x = np.repeat(x[:1], n, axis=0) * rng.uniform(0.1, 10, (n, 1))
    return x.astype(np.float32)


def numbered(n: int) -> Rows:
    return np.random.default_rng(n).permutation(5 * n + 1)[:n]


def index_of(x: Vectors, rows: Rows, cells: int, sample: Vectors | None = None) -> CellIndex:
    index = CellIndex(train_index(x if sample is None else sample, cells))
    # In two blocks, as rows come from shards.
    for block in (slice(0, len(x) // 3), slice(len(x) // 3, None)):
        index.add(x[block], rows[block])
    return index


def distances_of(queries: Vectors, query_rows: Rows, x: Vectors, rows: Rows) -> Floats:
    """Exact distances; inf from a row to itself."""
    distances = brute.cosine_distances(queries, x)
    return np.where(query_rows[:, None] == rows, np.inf, distances)


def assert_nearest(answer: tuple[Floats, Rows], distances: Floats, rows: Rows, k: int) -> None:
    """Assert that the result has the k smallest distances and distinct rows at them, padded with inf and -1."""
    found, which = answer
    expected = brute.k_smallest(distances, k)
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-6)
    np.testing.assert_array_equal(which == -1, np.isinf(expected))
    place = {row: i for i, row in enumerate(rows.tolist())}
    for i, (own, ds) in enumerate(zip(which.tolist(), found.tolist(), strict=True)):
        real = [row for row in own if row != -1]
        assert len(set(real)) == len(real)
        np.testing.assert_allclose([distances[i, place[row]] for row in real], ds[: len(real)], atol=1e-6)


cases = given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 80),
    cells=st.integers(1, 10),
    k=st.integers(1, 12),
)


def is_inside(index: CellIndex, queries: Any, query_rows: Any, radii: Any, probes: int) -> NDArray[np.bool_]:
    """Return which queries are within the radius of another row of the index: (m,)."""
    return index.count_containing(queries, query_rows, radii, probes, most=1) > 0


@cases
@examples(60)
def test_probing_all_cells_equals_brute_force(kind: str, seed: int, n: int, cells: int, k: int) -> None:
    x, rows = vectors_of(kind, seed, n + 10), numbered(n + 10)
    index = index_of(x[:n], rows[:n], cells, vectors_of(kind, seed, 100))
    assert index.cells == cells
    assert index.rows.tolist() == rows[:n].tolist()
    # Queries of the index leave themselves out; ten are not in it.
    distances = distances_of(x, rows, x[:n], rows[:n])
    assert_nearest(index.nearest(x, rows, k, index.cells), distances, rows[:n], k)
    assert_nearest(index.nearest(x, rows, k, 2**30), distances, rows[:n], k)


@pytest.mark.parametrize(
    ("n", "d", "rank"), [(1, 8, 8), (2, 8, 8), (4, 8, 8), (9, 8, 2), (90, 100, 20), (110, 100, 20)]
)
def test_training_on_a_low_rank_sample_loses_no_neighbor(n: int, d: int, rank: int) -> None:
    # FAISS's components are orthonormal only where the sample has more rows than dimensions, or spans them all.
    rng = np.random.default_rng(0)
    sample = (rng.normal(size=(n, rank)) @ np.linalg.qr(rng.normal(size=(d, d)))[0][:rank]).astype(np.float32)
    x, rows = rng.normal(size=(200, d)).astype(np.float32), np.arange(200)
    index = index_of(x, rows, 4, sample)
    assert_nearest(index.nearest(x, rows, 5, index.cells), distances_of(x, rows, x, rows), rows, 5)


@cases
@examples(30)
def test_merged_results_of_index_parts_equal_the_whole_index(
    kind: str, seed: int, n: int, cells: int, k: int
) -> None:
    x, rows = vectors_of(kind, seed, n), numbered(n)
    trained = train_index(vectors_of(kind, seed, 100), cells)
    of_part = np.random.default_rng(seed).integers(0, 3, n)
    answers = []
    for part in range(3):
        index = CellIndex(trained)
        index.add(x[of_part == part], rows[of_part == part])
        answers.append(index.nearest(x, rows, k, index.cells))
    merged = merge_nearest(answers, k)
    assert_nearest(merged, distances_of(x, rows, x, rows), rows, k)
    whole = index_of(x, rows, cells, vectors_of(kind, seed, 100)).nearest(x, rows, k, cells)
    np.testing.assert_allclose(merged[0], whole[0], atol=1e-12)


@cases
@examples(30)
def test_is_inside_equals_brute_force_and_few_probes_find_a_subset(
    kind: str, seed: int, n: int, cells: int, k: int
) -> None:
    x, rows = vectors_of(kind, seed, n + 10), numbered(n + 10)
    index = index_of(x[:n], rows[:n], cells, vectors_of(kind, seed, 100))
    distances = distances_of(x, rows, x[:n], rows[:n])
    radii = np.random.default_rng(seed).choice([-np.inf, 0.01, 0.1, 0.4], n)
    excess = (distances - radii).min(axis=1)
    assert (np.abs(excess[np.isfinite(excess)]) > 1e-9).all() or kind == "one direction"
    found = is_inside(index, x, rows, radii, index.cells)
    np.testing.assert_array_equal(found, excess <= 0)
    for probes in range(1, index.cells):
        assert not (is_inside(index, x, rows, radii, probes) & ~found).any()


def test_a_query_at_exactly_the_radius_is_inside() -> None:
    # That of the k-th neighbour, as the manifold has it; by the distances that the index itself gives.
    x, rows = vectors_of("uniform", 1, 200), np.arange(200)
    index = index_of(x, rows, 5)
    distance, neighbor = index.nearest(x, rows, 5, 5)
    for query in range(200):
        radii = np.full(200, -np.inf)
        radii[neighbor[query, 4]] = distance[query, 4]
        assert is_inside(index, x[query : query + 1], rows[query : query + 1], radii, 5).all()
        radii[neighbor[query, 4]] = np.nextafter(distance[query, 4], 0)
        assert not is_inside(index, x[query : query + 1], rows[query : query + 1], radii, 5).any()


@pytest.mark.parametrize("kind", ["uniform", "clustered", "wide"])
def test_recall_rises_with_probes_and_no_distance_is_too_small(kind: str) -> None:
    x, rows = vectors_of(kind, 2, 3000), np.arange(3000)
    index = index_of(x, rows, 50)
    queries, query_rows = x[:200], rows[:200]
    exact, _ = index.nearest(queries, query_rows, 10, 50)
    np.testing.assert_allclose(exact, brute.k_smallest(distances_of(queries, query_rows, x, rows), 10), atol=1e-6)
    recalls = []
    for probes in (1, 2, 4, 8, 16, 32, 50):
        found, _ = index.nearest(queries, query_rows, 10, probes)
        assert (np.diff(found, axis=1) >= 0).all()
        assert (found >= exact - 1e-9).all()
        recalls.append(float((found <= exact + 1e-9).mean()))
    assert recalls == sorted(recalls)
    assert recalls[0] < 1
    assert recalls[-1] == 1


def test_an_index_without_rows_finds_nothing() -> None:
    x, rows = vectors_of("uniform", 3, 30), np.arange(30)
    index = CellIndex(train_index(x, 4))
    index.add(x[:0], rows[:0])
    distance, which = index.nearest(x, rows, 3, 4)
    assert np.isinf(distance).all()
    assert (which == -1).all()
    assert distance.shape == which.shape == (30, 3)
    assert not is_inside(index, x, rows, np.empty(0), 4).any()
    assert index.rows.tolist() == []


def test_no_queries_give_empty_results() -> None:
    x, rows = vectors_of("uniform", 4, 30), np.arange(30)
    index = index_of(x, rows, 4)
    assert index.nearest(x[:0], rows[:0], 3, 2)[0].shape == (0, 3)
    assert is_inside(index, x[:0], rows[:0], np.ones(30), 2).shape == (0,)


def test_a_row_is_never_its_own_neighbor() -> None:
    x, rows = np.eye(4, dtype=np.float32), np.array([7, 3, 9, 1])
    index = index_of(x, rows, 2)
    distance, which = index.nearest(x, rows, 4, 2)
    np.testing.assert_allclose(distance[:, :3], 1, atol=1e-6)
    assert np.isinf(distance[:, 3]).all()
    # Ties go to the smaller row.
    assert which[0].tolist() == [1, 3, 9, -1]
    assert not is_inside(index, x, rows, np.full(4, 0.5), 2).any()
    assert is_inside(index, x, rows + 100, np.full(4, 0.0), 2).all()


def test_torch_finds_the_same_nearest_rows() -> None:
    x, rows = vectors_of("clustered", 5, 500), np.arange(500)
    trained = train_index(x, 9)
    one, other = CellIndex(trained), CellIndex(trained, TorchFilter("cpu"))
    for index in (one, other):
        index.add(x, rows)
    for probes in (1, 3, 9):
        for left, right in zip(one.nearest(x, rows, 5, probes), other.nearest(x, rows, 5, probes), strict=True):
            np.testing.assert_allclose(left, right, atol=1e-12)


def test_the_trained_index_is_not_modified_and_stays_alive() -> None:
    trained = train_index(vectors_of("uniform", 6, 100), 4)
    before = trained.copy()
    indexes = [CellIndex(trained.copy()) for _ in range(20)]
    for number, index in enumerate(indexes):
        x = vectors_of("uniform", number, 10)
        index.add(x, np.arange(10) + number)
        assert index.cells == 4
    assert [index.rows[0] for index in indexes] == list(range(20))
    np.testing.assert_array_equal(trained, before)


@pytest.mark.parametrize("kind", ["clustered", "wide"])
def test_faiss_reads_the_written_index_and_returns_row_numbers(kind: str, tmp_path: Path) -> None:
    x, rows = vectors_of(kind, 7, 400), numbered(400)
    index_of(x, rows, 8).write(str(tmp_path / "index"))
    read = faiss.read_index(str(tmp_path / "index"))
    assert read.ntotal == 400
    unit = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    squared, found = read.search(unit, 1)
    assert found[:, 0].tolist() == rows.tolist()
    np.testing.assert_allclose(squared[:, 0], 0, atol=1e-6)


def test_an_index_read_from_a_file_gives_the_same_results(tmp_path: Path) -> None:
    x, rows = vectors_of("clustered", 8, 300), numbered(300)
    index = index_of(x, rows, 6)
    index.write(str(tmp_path / "index"))
    again = CellIndex.read(str(tmp_path / "index"))
    for left, right in zip(index.nearest(x, rows, 4, 3), again.nearest(x, rows, 4, 3), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("n", [1, 2, 100, 10**6, 10**10])
def test_cells_and_their_sample_fit_the_rows(n: int) -> None:
    assert 1 <= cells_for(n) <= min(n, 16384)
    assert cells_for(n) <= index_sample_size(n) <= n
