import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale.neighbors import projection as module
from synthscale.neighbors.candidate_filter import allowance
from synthscale.neighbors.projection import Projection, fit_projection
from tests.examples import examples
from tests.reference import brute

Vectors = NDArray[np.float32]


def unit(x: NDArray[np.floating]) -> Vectors:
    wide = x.astype(np.float64)
    return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)


def vectors_of(kind: str, seed: int, n: int, d: int) -> Vectors:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    if kind == "power":
        x *= np.arange(1, d + 1) ** -1.0
    elif kind == "clustered":
        x = rng.normal(size=(3, d))[rng.integers(0, 3, n)] + rng.choice([1e-6, 1e-3, 0.1], (n, 1)) * x
    elif kind == "subspace":
        x[:, d // 2 + 1 :] = 0
    elif kind == "one direction":
        x = np.repeat(x[:1], n, axis=0)
    elif kind == "offset":
        x += 100
    return unit(x)


def grown(projection: Projection, x: Vectors, magnitude: NDArray[np.floating] | float = 1.0) -> float:
    """Largest increase of half the squared distance over all pairs of rows, as a share of the pair's allowance.

    ``magnitude`` has the squared norms of the vectors.
    """
    points = projection(x)
    own = allowance(points, magnitude)
    growth = brute.halved_squares(points, points) - brute.halved_squares(x, x)
    return float((growth / (own[:, None] + own)).max())


KINDS = ["flat", "power", "clustered", "subspace", "one direction", "offset"]


@given(
    kind=st.sampled_from(KINDS),
    other=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 40),
    d=st.sampled_from([1, 2, 3, 4, 12, 90]),
    radius=st.sampled_from([5e-324, 1e-9, 1e-3, 0.3, 2.0]),
)
@examples(75)
def test_no_distance_grows_for_any_fitting_sample(
    kind: str, other: str, seed: int, n: int, d: int, radius: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WIDTHS", (1, 2, 8))
        fitted = fit_projection(vectors_of(kind, seed, n, d), radius, 1e9)
    x = np.vstack([vectors_of(other, seed + 1, 30, d), vectors_of(kind, seed, n, d)])
    assert fitted(x).shape == (len(x), fitted.width)
    assert grown(fitted, x) < 1


@given(seed=st.integers(0, 2**32 - 1), d=st.integers(2, 20), share=st.floats(0, 1))
@examples(30)
def test_no_distance_grows_for_any_basis_and_mean(seed: int, d: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(d, d)))
    mean = share * unit(rng.normal(size=(1, d)))[0]
    any_one = Projection(mean.astype(np.float32), basis[:, : rng.integers(1, d + 1)].astype(np.float32))
    assert grown(any_one, vectors_of("flat", seed, 40, d)) < 1


@pytest.mark.parametrize("out", [0.03, 0.1, 0.3])
@pytest.mark.parametrize("almost", [1e-5, 1e-4, 3e-4, 1e-3])
def test_the_distance_of_a_row_almost_within_the_components_to_one_outside_does_not_grow(
    out: float, almost: float
) -> None:
    # The residual of the first row is smaller than the rounding error of its squared norm.
    rng = np.random.default_rng(0)
    low = np.zeros((50, 64))
    low[:, :31] = unit(rng.normal(size=(50, 31)))
    basis = np.linalg.qr(np.hstack([np.eye(64)[:, :31], rng.normal(size=(64, 1))]))[0]
    inside, outside = low.copy(), low.copy()
    inside[:, 40], outside[:, 40] = almost, out
    projection = Projection(np.zeros(64, np.float32), basis.astype(np.float32))
    assert grown(projection, unit(np.vstack([inside, outside]))) < 1


@pytest.mark.parametrize("size", [1e-39, 1e-30, 1.0, 1e4, 1e30, 1e38])
@pytest.mark.parametrize("width", [5, None])
def test_points_do_not_depend_on_the_length_of_stored_vectors(size: float, width: int | None) -> None:
    x = vectors_of("flat", 4, 60, 24)
    stored = (x * np.float64(size) * np.linspace(0.5, 2, 60)[:, None]).astype(np.float32)
    lengths = np.linalg.norm(stored.astype(np.float64), axis=1)
    basis = np.linalg.qr(np.random.default_rng(5).normal(size=(24, 24)))[0].astype(np.float32)
    projection = Projection(x.mean(axis=0), None if width is None else basis[:, :width])
    points = projection.of_stored(stored, lengths)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points, projection(unit(stored)), atol=1e-6)


def test_points_do_not_depend_on_dtype_or_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x = vectors_of("flat", 6, 50, 24).astype(np.float16)
    projection = Projection(np.full(24, 0.01, np.float32), np.eye(24, dtype=np.float32)[:, :7])
    whole = projection(unit(x))
    monkeypatch.setattr(module, "_BLOCK", 8)
    lengths = np.linalg.norm(x.astype(np.float64), axis=1)
    np.testing.assert_allclose(projection.of_stored(x, lengths), whole, atol=1e-6)
    np.testing.assert_allclose(projection(unit(x)), whole, atol=1e-6)


@pytest.mark.parametrize("width", [None, 2])
def test_no_rows_give_no_points(width: int | None) -> None:
    projection = Projection(np.zeros(4, np.float32), None if width is None else np.eye(4, dtype=np.float32)[:, :2])
    assert projection(np.empty((0, 4), np.float32)).shape == (0, projection.width)
    assert projection.of_stored(np.empty((0, 4), np.float32), np.empty(0)).shape == (0, projection.width)


def test_a_falling_spectrum_needs_few_dimensions_and_a_flat_one_at_a_large_radius_all() -> None:
    rng = np.random.default_rng(7)
    steep = unit(rng.normal(size=(600, 300)) * np.arange(1, 301) ** -1.5)
    flat = unit(rng.normal(size=(600, 300)))
    assert fit_projection(steep, 1e-3, 1e10).width <= 65
    assert fit_projection(flat, 0.9, 1e10).width == 300


@pytest.mark.parametrize("d", [1, 2, 3, 32, 33])
def test_few_dimensions_are_all_kept(d: int) -> None:
    assert fit_projection(vectors_of("flat", 8, 100, d), 0.01, 1e9).width == d


@pytest.mark.parametrize(("n", "d"), [(1, 50), (2, 50), (100, 50), (100, 3)])
def test_equal_rows_have_equal_points(n: int, d: int) -> None:
    x = vectors_of("one direction", 9, n, d)
    points = fit_projection(x, 1e-6, 1e9)(x)
    assert np.isfinite(points).all()
    assert np.ptp(points, axis=0).max() < 1e-3
