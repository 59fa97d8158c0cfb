"""Which vectors are compared, and how: scaling by the real rows, constant columns, and the two spaces."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from synthscale.config import NeighborsConfig
from synthscale.neighbors.search_space import SearchSpace, search_spaces
from synthscale.statistics.column_moments import ColumnMoments
from synthscale.tables.layout import VectorLayout
from tests.reference import brute

EMBEDDING = VectorLayout(6, (0, 6), (0, 6))
FILTERS = VectorLayout(6, (1, 4), (0, 6), scaled=True)
COLUMNS = VectorLayout(6, (0, 6), (0, 6), scaled=True, columns=True)


def spaces_of(
    layout: VectorLayout, real: NDArray[np.floating], **settings: str
) -> tuple[SearchSpace, SearchSpace]:
    return search_spaces(layout, NeighborsConfig(**settings), ColumnMoments.of(brute.distinct(real)))


def apart(space: SearchSpace, x: NDArray[np.floating]) -> NDArray[np.float64]:
    return brute.distances(space(x), space(x), space.metric)


@pytest.mark.parametrize("kind", ["normal", "units", "offset", "repeated"])
def test_embeddings_are_near_by_direction_and_in_a_manifold_by_difference(kind: str) -> None:
    x = brute.columns(kind, 0, 60)
    near, manifold = spaces_of(EMBEDDING, x[:40])
    assert (near.metric, manifold.metric) == ("cosine", "euclidean")
    np.testing.assert_array_equal(near(x), x)
    # Moved to the mean of the real rows, which changes no distance, and otherwise as they are.
    np.testing.assert_allclose(apart(manifold, x), brute.halved_squares(x, x), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", ["normal", "units", "offset", "repeated", "heavy"])
def test_columns_are_scaled_by_the_distinct_real_rows_and_compared_by_difference(kind: str) -> None:
    x = brute.columns(kind, 1, 60)
    near, manifold = spaces_of(COLUMNS, x[:40])
    assert near is manifold
    expected = brute.scaled(x, x[:40])
    np.testing.assert_allclose(apart(near, x), brute.halved_squares(expected, expected), rtol=1e-4, atol=1e-9)
    assert near.summary() == {
        "metric": "euclidean",
        "dimensions": 6,
        "scaled": True,
        "constant_dimensions": 0,
    }


def test_filters_search_some_dimensions_by_direction_and_scale_all_for_the_manifold() -> None:
    x = brute.columns("units", 2, 60)
    near, manifold = spaces_of(FILTERS, x[:40])
    assert (near.metric, near.width, manifold.width) == ("cosine", 3, 6)
    np.testing.assert_array_equal(near(x), x[:, 1:4])
    expected = brute.scaled(x, x[:40])
    np.testing.assert_allclose(apart(manifold, x), brute.halved_squares(expected, expected), rtol=1e-4)


@pytest.mark.parametrize("layout", [EMBEDDING, FILTERS, COLUMNS])
@pytest.mark.parametrize("metric", ["auto", "cosine", "euclidean"])
def test_the_setting_changes_how_near_duplicates_are_compared_and_nothing_else(
    layout: VectorLayout, metric: str
) -> None:
    x = brute.columns("units", 3, 60)
    near, manifold = spaces_of(layout, x[:40], metric=metric)
    expected = {"auto": "euclidean" if layout.columns else "cosine"}.get(metric, metric)
    assert near.metric == expected
    assert near.dimensions == layout.search
    # Only columns of a table are scaled for near-duplicates: filters' search dimensions are alike.
    assert (near.scale is not None) == (layout.columns and expected == "euclidean")
    plain = spaces_of(layout, x[:40])[1]
    np.testing.assert_array_equal(manifold(x), plain(x))
    assert (near is manifold) == (expected == "euclidean" and layout is not FILTERS)


def test_mode_datalab_compares_all_vectors_by_direction() -> None:
    x = brute.columns("normal", 4, 60)
    for layout in (EMBEDDING, FILTERS, COLUMNS):
        near, manifold = spaces_of(layout, x[:40], mode="datalab")
        assert (near.metric, manifold.metric) == ("cosine", "euclidean")
        np.testing.assert_array_equal(manifold(x), spaces_of(layout, x[:40])[1](x))


def test_constant_columns_are_left_out_whatever_synthetic_rows_have_there() -> None:
    x = brute.columns("normal", 5, 60)
    x[:40, 2], x[:40, 4] = 7, 0
    x[40:, 4] = 1e6
    (near, _) = spaces_of(COLUMNS, x[:40])
    assert (near.summary()["dimensions"], near.summary()["constant_dimensions"]) == (4, 2)
    expected = brute.scaled(x, x[:40])
    assert expected.shape == (60, 4)
    np.testing.assert_allclose(apart(near, x), brute.halved_squares(expected, expected), rtol=1e-4)


def test_a_column_that_varies_by_rounding_only_is_constant() -> None:
    x = brute.columns("normal", 6, 60)
    x[:, 3] = 0.1 + np.arange(60) % 2 * np.spacing(np.float32(0.1))
    assert spaces_of(COLUMNS, x[:40])[0].summary()["constant_dimensions"] == 1


def test_repeated_real_rows_weigh_once() -> None:
    x = brute.columns("normal", 7, 40)
    once, often = spaces_of(COLUMNS, x), spaces_of(COLUMNS, np.vstack([x, np.repeat(x[:3], 50, axis=0)]))
    np.testing.assert_allclose(often[0](x), once[0](x), rtol=1e-6)


def test_columns_that_are_all_constant_are_compared_as_they_are() -> None:
    x = brute.columns("normal", 8, 5)
    near, _ = spaces_of(COLUMNS, x[:1])
    assert (near.summary()["scaled"], near.summary()["constant_dimensions"]) == (False, 0)
    np.testing.assert_allclose(apart(near, x), brute.halved_squares(x, x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [[0, 1, 7, 40], [0, 40], [0, 0, 20, 20, 40]])
def test_moments_merge_over_shards(parts: list[int]) -> None:
    x = brute.columns("offset", 9, 40)
    whole = ColumnMoments.of(x)
    merged = ColumnMoments.of(x[:0])
    for low, high in pairwise(parts):
        merged += ColumnMoments.of(x[low:high])
    assert merged.count == 40
    np.testing.assert_allclose(merged.mean, x.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(1 / merged.inverse_deviations(), x.astype(np.float64).std(axis=0), rtol=1e-9)
    np.testing.assert_allclose(merged.squares, whole.squares, rtol=1e-9)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_recipe_maps_stored_vectors_as_the_space_does(metric: str) -> None:
    x = brute.columns("units", 10, 60)
    near, _ = spaces_of(COLUMNS, x[:40], metric=metric)
    recipe = near.recipe()
    start, stop = recipe["dimensions"]
    mapped = x[:, start:stop].astype(np.float64)
    if metric == "euclidean":
        mapped = (mapped - recipe["center"]) * recipe["scale"]
    else:
        assert recipe["center"] is recipe["scale"] is None
    assert recipe["metric"] == metric
    np.testing.assert_allclose(mapped, near(x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("value", [1e20, -1e30, float(np.finfo(np.float32).max)])
@pytest.mark.parametrize("layout", [EMBEDDING, COLUMNS])
def test_values_whose_squares_float32_cannot_hold_are_cut_off(layout: VectorLayout, value: float) -> None:
    x = brute.columns("normal", 11, 60)
    x[50:, 2] = value
    _, manifold = spaces_of(layout, x[:40])
    found = manifold(x)
    assert np.isfinite(np.square(found).sum(axis=1)).all()
    assert (found[50:, 2] == np.sign(value) * np.float32(1e15)).all()
    # All other values are as they would be without.
    x[50:, 2] = 0
    plain = manifold(x)
    np.testing.assert_array_equal(found[:50], plain[:50])
    np.testing.assert_array_equal(np.delete(found, 2, axis=1), np.delete(plain, 2, axis=1))
