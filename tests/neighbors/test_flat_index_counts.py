"""Counts of rows whose radius contains a query: both indexes against brute force, with ties at the radius."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthscale.neighbors.cell_index import CellIndex, train_index
from synthscale.neighbors.flat_index import FlatIndex
from synthscale.neighbors.knn_search import UNLIMITED
from tests.examples import examples
from tests.reference import brute

K = 5


class Cells:
    """A cell index with the interface of a flat one: it probes all cells."""

    def __init__(self, vectors, rows, cells=7):
        self.index = CellIndex(train_index(vectors, min(cells, len(vectors))))
        self.index.add(vectors, rows)

    def nearest(self, vectors, rows, k):
        return self.index.nearest(vectors, rows, k, self.index.cells)

    def count_containing(self, vectors, rows, radii, most):
        return self.index.count_containing(vectors, rows, radii, self.index.cells, most)


KINDS = pytest.mark.parametrize("index", [FlatIndex, Cells])


def counts(queries, query_rows, database, rows, radii):
    """Number of radii that contain each query, and the bounds within which rounding may move it."""
    distances = brute.cosine_distances(queries, database)
    distances[query_rows[:, None] == rows[None, :]] = np.inf
    slack = 2e-7 * np.abs(radii) + 1e-12
    return (distances <= radii - slack).sum(1), (distances <= radii + slack).sum(1)


@KINDS
@pytest.mark.parametrize("kind", brute.KINDS)
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_counts_equal_brute_force(index, kind, share):
    database, queries = brute.vectors(kind, 1, 300), brute.vectors(kind, 2, 120)
    rows, query_rows = np.arange(300) * 3 + 1, np.arange(120) * 3
    radii = np.quantile(brute.cosine_distances(database, queries), share, axis=1)
    # Radii are half way between two distances, so that rounding cannot change a count.
    radii *= np.random.default_rng(0).uniform(0.9, 1.1, 300)
    found = index(database, rows).count_containing(queries, query_rows, radii, most=UNLIMITED)
    fewest, most = counts(queries, query_rows, database, rows, radii)
    assert (fewest <= found).all()
    assert (found <= most).all()
    assert found.max() > 3
    if kind not in {"tight", "duplicated"}:
        assert (fewest == most).all()


@KINDS
@pytest.mark.parametrize("kind", ["uniform", "clustered", "plane"])
def test_the_kth_neighbor_is_within_the_knn_radius(index, kind):
    # The radius is the distance of the k-th neighbour, and must contain it whatever the rounding.
    x = brute.vectors(kind, 3, 200)
    rows = np.arange(200)
    own = index(x, rows)
    distance, neighbor = own.nearest(x, rows, K)
    found = own.count_containing(x, rows, distance[:, -1], most=UNLIMITED)
    expected = np.bincount(neighbor.ravel(), minlength=200)
    assert (found == expected).all()
    assert found.sum() == 200 * K


@KINDS
def test_ties_at_the_radius_are_counted(index):
    # Distances among unit axes are 0, 1 and 2 exactly.
    axes = np.concatenate([np.eye(6), -np.eye(6)]).astype(np.float32)
    rows = np.arange(12)
    own = index(axes, rows)
    assert (own.count_containing(axes, rows, np.full(12, 1.0), most=100) == 10).all()
    assert (own.count_containing(axes, rows, np.full(12, np.nextafter(1.0, 0)), most=100) == 0).all()
    assert (own.count_containing(axes, rows, np.full(12, 2.0), most=100) == 11).all()


@KINDS
def test_a_row_is_not_counted_for_itself_but_its_copies_are(index):
    x = np.repeat(brute.vectors("uniform", 4, 10), 2, axis=0)
    rows = np.arange(20)
    found = index(x, rows).count_containing(x, rows, np.zeros(20), most=100)
    assert (found == 1).all()
    others = index(x, rows).count_containing(x, rows + 100, np.zeros(20), most=100)
    assert (others == 2).all()


@KINDS
def test_counts_do_not_depend_on_the_scale_of_vectors(index):
    x, queries = brute.vectors("uniform", 5, 80), brute.vectors("uniform", 6, 30)
    rows, asked = np.arange(80), np.arange(100, 130)
    radii = np.full(80, 0.3)
    one = index(x, rows).count_containing(queries, asked, radii, most=1000)
    two = index(x * 64, rows).count_containing(queries / 32, asked, radii, most=1000)
    assert (one == two).all()


@KINDS
def test_rows_without_a_radius_contain_nothing(index):
    x, queries = brute.vectors("uniform", 7, 60), brute.vectors("uniform", 8, 20)
    rows, asked = np.arange(60), np.arange(100, 120)
    radii = np.where(np.arange(60) % 2 == 0, 0.4, -np.inf)
    found = index(x, rows).count_containing(queries, asked, radii, most=1000)
    half = index(x[::2], rows[::2]).count_containing(queries, asked, np.full(30, 0.4), most=1000)
    assert (found == half).all()
    assert (index(x, rows).count_containing(queries, asked, np.full(60, -np.inf), most=1000) == 0).all()


@KINDS
@examples(12)
@given(seed=st.integers(0, 1000), most=st.integers(1, 40), share=st.sampled_from([0.0, 0.03, 0.2, 0.9]))
def test_counts_are_exact_up_to_most(index, seed, most, share):
    rng = np.random.default_rng(seed)
    x, queries = (brute.vectors("clustered", seed + i, n) for i, n in ((0, 90), (1, 25)))
    queries[:5] = x[:5]
    radii = np.quantile(brute.cosine_distances(x, queries), share, axis=1) * rng.uniform(0.9, 1.1, 90)
    rows, asked = np.arange(90), np.arange(100, 125)
    own = index(x, rows)
    exact = own.count_containing(queries, asked, radii, most=10_000)
    found = own.count_containing(queries, asked, radii, most=most)
    assert (np.minimum(found, most) == np.minimum(exact, most)).all()
    assert ((own.count_containing(queries, asked, radii, most=1) > 0) == (exact > 0)).all()


@KINDS
def test_most_is_respected_if_float64_decides(index):
    # All distances lie within float32's reach of the radius.
    rng = np.random.default_rng(9)
    base = rng.normal(size=16)
    x = (base + 1e-5 * rng.normal(size=(60, 16))).astype(np.float32)
    rows, own = np.arange(60), index(x, np.arange(60))
    radii = own.nearest(x, rows, K)[0][:, -1]
    exact = own.count_containing(x, rows, radii, most=10_000)
    assert exact.sum() >= 60 * K
    for most in (1, 2, 5):
        found = own.count_containing(x, rows, radii, most=most)
        assert (np.minimum(found, most) == np.minimum(exact, most)).all()


@KINDS
def test_no_queries_give_no_counts(index):
    x = brute.vectors("uniform", 10, 12)
    own = index(x, np.arange(12))
    assert own.count_containing(x[:0], np.arange(0), np.full(12, 0.5), most=9).shape == (0,)


def test_an_empty_flat_index_counts_nothing():
    own = FlatIndex(np.empty((0, 8), np.float32), np.arange(0))
    assert (
        own.count_containing(brute.vectors("uniform", 0, 4), np.arange(4), np.empty(0), most=9).tolist() == [0] * 4
    )


def test_an_empty_cell_index_counts_nothing():
    own = CellIndex(train_index(brute.vectors("uniform", 0, 20), 3))
    found = own.count_containing(brute.vectors("uniform", 1, 4), np.arange(4), np.empty(0), own.cells, most=9)
    assert found.tolist() == [0] * 4


def test_flat_counts_do_not_depend_on_the_block_size(monkeypatch):
    x, queries = brute.vectors("uniform", 11, 50), brute.vectors("uniform", 12, 33)
    own, radii = FlatIndex(x, np.arange(50)), np.full(50, 0.35)
    whole = own.count_containing(queries, np.arange(50, 83), radii, most=1000)
    monkeypatch.setattr("synthscale.neighbors.flat_index._BLOCK", 7)
    assert (own.count_containing(queries, np.arange(50, 83), radii, most=1000) == whole).all()


def test_fewer_probes_never_increase_a_count():
    x, queries = brute.vectors("clustered", 13, 400), brute.vectors("clustered", 14, 50)
    own = CellIndex(train_index(x, 20))
    own.add(x, np.arange(400))
    radii = np.full(400, 0.2)
    found = [
        own.count_containing(queries, np.arange(400, 450), radii, probes, 10_000) for probes in (1, 5, own.cells)
    ]
    assert (found[0] <= found[1]).all()
    assert (found[1] <= found[2]).all()
    assert (found[2] == counts(queries, np.arange(400, 450), x, np.arange(400), radii)[1]).all()
