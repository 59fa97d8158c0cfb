"""The map, against scikit-learn: axes and explained variance, separate clusters, and identical rows."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import normalize

from synthscale.report.maps import HEIGHT, WIDTH, MapProjection, project

MARGIN = 8


def pca(vectors: NDArray[np.float64]) -> MapProjection:
    found = project(vectors)[0]
    assert found.name == "PCA"
    assert found.points.shape == (len(vectors), 2)
    assert np.isfinite(found.points).all()
    assert (found.points >= MARGIN).all()
    assert (found.points <= [WIDTH - MARGIN, HEIGHT - MARGIN]).all()
    return found


def drawn(seed: int, n: int, d: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    # Axes of different lengths, around a mean that is not 0, of rows of different lengths.
    return (rng.normal(size=d) + rng.normal(size=(n, d)) / np.sqrt(1 + np.arange(d))) * rng.uniform(0.5, 9, (n, 1))


@pytest.mark.parametrize(("n", "d"), [(300, 64), (50, 200), (12, 3), (400, 2)])
def test_points_and_explained_variance_match_scikit_learn(n: int, d: int) -> None:
    vectors = drawn(n, n, d)
    found = pca(vectors)
    oracle = PCA(2, svd_solver="full").fit(normalize(vectors))
    np.testing.assert_allclose(found.shown, oracle.explained_variance_ratio_, rtol=1e-6)
    expected = oracle.transform(normalize(vectors))
    box = np.array([WIDTH, HEIGHT]) - 2 * MARGIN
    for axis in range(2):
        own, others = found.points[:, axis], expected[:, axis]
        inside = (own > MARGIN) & (own < MARGIN + box[axis])
        assert inside.mean() > 0.8
        slope, shift = np.polyfit(others[inside], own[inside], 1)
        # Points are rounded to tenths.
        np.testing.assert_allclose(own[inside], slope * others[inside] + shift, atol=0.06)
        assert np.ptp(own) == pytest.approx(box[axis])
        # Points on the border are further out than all inner points.
        placed = np.sign(slope) * others
        assert (placed[own == MARGIN] <= placed[inside].min()).all()
        assert (placed[own == MARGIN + box[axis]] >= placed[inside].max()).all()


def test_the_length_of_vectors_does_not_matter() -> None:
    vectors = drawn(1, 80, 16)
    longer = vectors * np.random.default_rng(2).uniform(0.01, 100, (80, 1))
    np.testing.assert_allclose(pca(longer).points, pca(vectors).points, atol=0.11)


def test_the_order_of_rows_does_not_flip_the_map() -> None:
    vectors = drawn(3, 60, 8)
    order = np.random.default_rng(4).permutation(60)
    np.testing.assert_allclose(pca(vectors[order]).points, pca(vectors).points[order], atol=0.11)
    np.testing.assert_allclose(project(vectors)[0].points, project(vectors.copy())[0].points)


def test_the_largest_component_of_an_axis_is_positive() -> None:
    vectors = np.random.default_rng(5).normal(size=(500, 12)) * 0.05
    vectors[:, 7] += np.linspace(-1, 1, 500)
    vectors[:, 2] += 3
    unit = normalize(vectors)
    assert np.corrcoef(pca(vectors).points[:, 0], unit[:, 7])[0, 1] > 0.99


def test_clusters_stay_apart() -> None:
    rng = np.random.default_rng(6)
    of = np.repeat(np.arange(3), 40)
    vectors = 3 * np.eye(32)[of] + 0.1 * rng.normal(size=(120, 32))
    found = pca(vectors)
    assert silhouette_score(found.points, of) > 0.8
    assert sum(found.shown) > 0.8
    mixed = pca(rng.normal(size=(120, 32)))
    assert silhouette_score(mixed.points, of) < 0.1
    assert sum(mixed.shown) < 0.3


def test_an_outlier_does_not_hide_the_clusters() -> None:
    rng = np.random.default_rng(7)
    of = np.repeat(np.arange(2), 200)
    vectors = np.eye(16)[of] + 0.05 * rng.normal(size=(400, 16))
    vectors[0] = -np.eye(16)[5]
    assert silhouette_score(pca(vectors).points[1:], of[1:]) > 0.5


@pytest.mark.parametrize("d", [2, 3, 50])
def test_three_rows_have_a_map(d: int) -> None:
    vectors = np.random.default_rng(d).normal(size=(3, d))
    found = pca(vectors)
    assert sum(found.shown) == pytest.approx(1)
    assert len(np.unique(found.points, axis=0)) == 3


def test_one_dimension_gives_two_positions_on_one_line() -> None:
    found = pca(np.array([[0.5], [-2.0], [3.0], [-1e-3], [7.0]]))
    assert found.shown == (pytest.approx(1), 0)
    right, left = WIDTH - MARGIN, MARGIN
    assert found.points[:, 0].tolist() == [right, left, right, left, right]
    assert len(np.unique(found.points[:, 1])) == 1


def test_zero_vectors_are_at_one_position() -> None:
    found = pca(np.zeros((5, 4)))
    assert found.shown == (0, 0)
    assert len(np.unique(found.points, axis=0)) == 1


def test_equal_rows_among_others_are_at_one_position() -> None:
    vectors = drawn(8, 40, 10)
    vectors[[3, 17, 39]] = vectors[5]
    points = pca(vectors).points
    assert (points[[3, 17, 39]] == points[5]).all()


IDENTICAL = [(3, 8), (7, 64), (800, 384)]


@pytest.mark.parametrize(("n", "d"), IDENTICAL)
def test_identical_rows_are_at_one_position(n: int, d: int) -> None:
    row = np.random.default_rng(0).normal(size=d)
    assert np.ptp(pca(np.tile(row, (n, 1))).points, axis=0).max() < 1


@pytest.mark.parametrize(("n", "d"), IDENTICAL)
def test_identical_rows_explain_no_variance(n: int, d: int) -> None:
    row = np.random.default_rng(0).normal(size=d)
    assert pca(np.tile(row, (n, 1))).shown == pytest.approx((0, 0))


@pytest.mark.parametrize("n", [10, 40])
def test_two_distinct_rows_are_at_two_positions(n: int) -> None:
    kinds = np.random.default_rng(0).normal(size=(2, 16))
    points = pca(kinds[np.arange(n) % 2]).points
    assert np.ptp(points[::2], axis=0).max() < 1
    assert np.ptp(points[1::2], axis=0).max() < 1


def test_umap_is_a_second_projection_if_it_is_installed(tmp_path, monkeypatch):
    # Not umap-learn, which is heavy: a module of its name that keeps the first two dimensions.
    (tmp_path / "umap.py").write_text(
        "class UMAP:\n"
        "    def __init__(self, **settings): self.settings = settings\n"
        "    def fit_transform(self, vectors):\n"
        "        assert self.settings['metric'] == 'cosine' and self.settings['random_state'] == 0\n"
        "        return vectors[:, :2].astype('float32')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    vectors = np.random.default_rng(0).normal(size=(60, 5))
    found = project(vectors)
    assert [each.name for each in found] == ["PCA", "UMAP"]
    assert found[1].shown is None
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for axis in range(2):
        order = np.argsort(unit[:, axis])
        assert (np.diff(found[1].points[order, axis]) >= 0).all()
