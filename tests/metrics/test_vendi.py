import functools
import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import logm
from scipy.spatial.distance import cdist, pdist
from scipy.stats import ortho_group

from synthscale.metrics.vendi import SecondMoment, fourier_map, vendi_of_kernel, vendi_of_second_moment
from tests.examples import examples


def gaussian_kernel(x: NDArray[np.float64], bandwidth: float) -> NDArray[np.float64]:
    return np.exp(-cdist(x, x, "sqeuclidean") / (2 * bandwidth**2))


def normal(seed: int, n: int, d: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(n, d))


def unit_rows(seed: int, n: int, p: int) -> NDArray[np.float64]:
    rows = normal(seed, n, p)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clusters(seed: int, n: int, d: int) -> NDArray[np.float64]:
    """Return rows around 20 centres of different frequencies."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, 21) / 210
    return 4 * rng.normal(size=(20, d))[rng.choice(20, n, p=share)] + rng.normal(size=(n, d))


def test_published_examples() -> None:
    points = np.array([0.0, 0, 10, 10, 20, 20])
    assert vendi_of_kernel(np.exp(-np.abs(points - points[:, None]))) == pytest.approx(2.9999, abs=1e-4)
    assert vendi_of_kernel(np.array([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]])) == pytest.approx(2.1573, abs=1e-4)


@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_equal_rows_score_one_and_orthogonal_rows_their_number(n: int) -> None:
    assert vendi_of_kernel(np.ones((n, n))) == pytest.approx(1, abs=1e-9)
    assert vendi_of_kernel(np.eye(n)) == pytest.approx(n, rel=1e-12)
    alike = np.repeat(unit_rows(0, 1, 9), n, axis=0)
    assert SecondMoment.of(alike).score() == pytest.approx(1, abs=1e-9)
    basis = ortho_group.rvs(60, random_state=0)[:n]
    assert SecondMoment.of(basis).score() == pytest.approx(n, rel=1e-9)


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.7, 0.2, 0.1], [0.97, 0.01, 0.01, 0.01]])
def test_orthogonal_classes_score_the_exponential_of_their_entropy(shares: list[float]) -> None:
    rows = np.repeat(np.eye(len(shares)), [round(100 * share) for share in shares], axis=0)
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert SecondMoment.of(rows).score() == pytest.approx(expected, rel=1e-9)
    assert vendi_of_kernel(rows @ rows.T) == pytest.approx(expected, rel=1e-9)


def test_the_entropy_is_that_of_the_matrix_logarithm() -> None:
    kernel = gaussian_kernel(normal(0, 12, 3), 1.0)
    share = kernel / 12
    assert vendi_of_kernel(kernel) == pytest.approx(math.exp(-np.trace(share @ logm(share)).real), rel=1e-9)


@pytest.mark.parametrize(("n", "p"), [(40, 7), (7, 40), (30, 30)])
def test_the_second_moment_of_features_scores_as_their_kernel_does(n: int, p: int) -> None:
    features = unit_rows(n, n, p)
    found = vendi_of_second_moment(features.T @ features / n)
    assert found == pytest.approx(vendi_of_kernel(features @ features.T), rel=1e-9)
    assert 1 < found < min(n, p)


def test_repeated_rows_change_nothing() -> None:
    x = normal(0, 30, 4)
    found = vendi_of_kernel(gaussian_kernel(np.repeat(x, 3, axis=0), 1.5))
    assert found == pytest.approx(vendi_of_kernel(gaussian_kernel(x, 1.5)), rel=1e-6)


def test_the_trace_is_made_one_again_after_rounding() -> None:
    features = unit_rows(0, 200, 16)
    exact = SecondMoment.of(features).score()
    assert SecondMoment.of(features.astype(np.float16)).score() == pytest.approx(exact, rel=1e-3)
    assert vendi_of_second_moment(1.001 * features.T @ features / 200) == pytest.approx(exact, rel=1e-9)


def test_without_rows_there_is_no_score() -> None:
    assert math.isnan(SecondMoment.empty(4).score())
    assert math.isnan(vendi_of_kernel(np.empty((0, 0))))
    assert math.isnan(vendi_of_second_moment(np.full((2, 2), np.nan)))


def test_a_kernel_whose_diagonal_is_not_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"k\(x, x\) = 1"):
        vendi_of_kernel(2 * np.eye(3))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_row_of_fourier_features_has_norm_one(dtype: type[np.floating]) -> None:
    rows = (normal(0, 50, 6) * 1000).astype(dtype)
    features = fourier_map(6, 3.0, 33, 0)(rows)
    assert features.shape == (50, 66)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-14)


@pytest.mark.parametrize("bandwidth", [0.5, 3.0])
def test_products_of_fourier_features_are_the_gaussian_kernel_within_their_noise(bandwidth: float) -> None:
    x, m = normal(0, 60, 8), 20_000
    features = fourier_map(8, bandwidth, m, 1)(x)
    apart = features @ features.T - gaussian_kernel(x, bandwidth)
    assert np.abs(apart).max() < 5 / math.sqrt(2 * m)
    # The features are unbiased: the mean over seeds is closer to the kernel than one seed.
    few = [fourier_map(8, bandwidth, 50, seed)(x) for seed in range(200)]
    mean = np.mean([f @ f.T for f in few], axis=0)
    assert np.abs(mean - gaussian_kernel(x, bandwidth)).max() < 6 / math.sqrt(2 * 50 * 200)


def test_a_feature_map_is_deterministic_in_its_seed() -> None:
    same = [fourier_map(5, 2.0, 10, seed).frequencies for seed in (3, 3, 4)]
    np.testing.assert_array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])


@pytest.mark.parametrize(("bandwidth", "features"), [(0.0, 5), (-1.0, 5), (math.nan, 5), (math.inf, 5), (1.0, 0)])
def test_a_map_without_bandwidth_or_features_is_refused(bandwidth: float, features: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        fourier_map(3, bandwidth, features, 0)


@pytest.mark.parametrize(
    ("rows", "share", "tolerance"),
    [
        # A flat tail of small eigenvalues is below the features' noise, so the score is biased low.
        (normal(1, 300, 4), 1.0, 0.03),
        (normal(2, 300, 16), 1.0, 0.04),
        (clusters(0, 400, 32), 0.5, 0.05),
        (normal(3, 300, 16), 0.5, 0.10),
    ],
)
def test_scores_of_fourier_features_are_near_those_of_the_exact_kernel(
    rows: NDArray[np.float64], share: float, tolerance: float
) -> None:
    bandwidth = share * float(np.median(pdist(rows)))
    exact = vendi_of_kernel(gaussian_kernel(rows, bandwidth))
    scores = [SecondMoment.of(fourier_map(rows.shape[1], bandwidth, 768, seed)(rows)).score() for seed in (0, 1)]
    assert np.mean(scores) == pytest.approx(exact, rel=tolerance)
    assert exact > 5


def test_more_modes_score_higher_and_a_radial_collapse_lower() -> None:
    rng = np.random.default_rng(0)
    centres = 10 * rng.normal(size=(8, 6))
    mapped = fourier_map(6, 3.0, 256, 0)
    scores = [
        SecondMoment.of(mapped(centres[rng.integers(0, modes, 400)] + 0.1 * rng.normal(size=(400, 6)))).score()
        for modes in (1, 2, 4, 8)
    ]
    assert scores == pytest.approx([1, 2, 4, 8], rel=0.15)
    x = rng.normal(size=(400, 6))
    assert SecondMoment.of(mapped(0.2 * x)).score() < 0.5 * SecondMoment.of(mapped(x)).score()


def test_no_score_exceeds_the_number_of_features() -> None:
    x = 1000 * normal(0, 500, 6)
    assert vendi_of_kernel(gaussian_kernel(x, 1.0)) == pytest.approx(500)
    found = SecondMoment.of(fourier_map(6, 1.0, 20, 0)(x)).score()
    assert 0.9 * 40 < found <= 40


@given(st.lists(st.integers(0, 40), max_size=5), st.integers(0, 2**32 - 1))
@examples(20)
def test_scores_are_the_same_over_any_split_and_order(cuts: list[int], seed: int) -> None:
    features = unit_rows(seed, 40, 6)
    order = np.random.default_rng(seed).permutation(40)
    parts = [SecondMoment.of(features[part]) for part in np.split(order, sorted(cuts))]
    merged = functools.reduce(operator.add, parts, SecondMoment.empty(6))
    assert merged.count == 40
    assert merged.score() == pytest.approx(vendi_of_kernel(features @ features.T), rel=1e-9)


def test_adding_up_leaves_the_parts_as_they_were() -> None:
    one, two = SecondMoment.of(unit_rows(0, 5, 3)), SecondMoment.of(unit_rows(1, 5, 3))
    before = one.score(), two.score()
    _ = one + two
    assert (one.score(), two.score()) == before


def test_the_score_equals_that_of_the_vendi_score_package() -> None:
    peer = pytest.importorskip("vendi_score.vendi")
    kernel = gaussian_kernel(normal(0, 40, 5), 2.0)
    assert peer.score_K(kernel) == pytest.approx(vendi_of_kernel(kernel), rel=1e-6)
    features = unit_rows(1, 40, 8)
    assert peer.score_dual(features) == pytest.approx(SecondMoment.of(features).score(), rel=1e-6)
