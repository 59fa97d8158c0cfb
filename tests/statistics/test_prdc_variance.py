"""Design effects of precision and coverage against simulated data sets and brute force."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from synthscale.neighbors.copies import vector_keys
from synthscale.statistics import prdc_variance
from synthscale.statistics.jackknife import Blocks
from synthscale.statistics.prdc_variance import SAMPLE_ROWS, sample_rows
from synthscale.tables.schemas import BLOCKS
from tests.classify.trainings import normal as centred
from tests.reference import brute

K = 5
Vectors = NDArray[np.float64]
BOTH = ("precision", "coverage")


def around_a_mean(seed: int, n: int, d: int = 8, shift: float = 0.0) -> Vectors:
    """Return normal vectors (n, d) around a mean away from 0, as embeddings are."""
    return centred(seed, n, d) + np.r_[3 + shift, np.zeros(d - 1)]


def spreads(real: Vectors, synthetic: Vectors, k: int) -> dict[str, Blocks]:
    """Return the deviations for vectors of any length, assigned to parts by the hashes of the vectors."""
    hashes = (vector_keys(real, "ids")[:, 0], vector_keys(synthetic, "ids")[:, 0])
    return prdc_variance.share_deviations(real.astype(np.float64), synthetic.astype(np.float64), hashes, k)


def effects(real: Vectors, synthetic: Vectors) -> dict[str, float]:
    """Return the design effects, which are the sums of the squared deviations."""
    return {name: float(np.square(part).sum()) for name, part in spreads(real, synthetic, K).items()}


@pytest.mark.parametrize(("n", "m"), [(120, 90), (700, 650)])
def test_the_order_of_rows_does_not_matter(n: int, m: int) -> None:
    real, synthetic = around_a_mean(0, n), around_a_mean(1, m, shift=0.5)
    expected = spreads(real, synthetic, K)
    assert set(BOTH) <= set(expected)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        found = spreads(real[rng.permutation(n)], synthetic[rng.permutation(m)], K)
        assert found.keys() == expected.keys()
        for name, deviations in expected.items():
            np.testing.assert_allclose(found[name], deviations, atol=1e-9)


def test_the_order_of_rows_does_not_matter_with_copies_of_real_rows() -> None:
    # A synthetic row then lies exactly on the radius of every row that has its original as the k-th neighbour.
    for data in range(20):
        real, synthetic = (around_a_mean(2 * data + i, 90).astype(np.float32) for i in range(2))
        synthetic[:14] = real[:14]
        expected = spreads(real, synthetic, K)
        for seed in range(10):
            rng = np.random.default_rng(seed)
            found = spreads(real[rng.permutation(90)], synthetic[rng.permutation(90)], K)
            assert found.keys() == expected.keys()
            for name, deviations in expected.items():
                np.testing.assert_allclose(found[name], deviations, atol=1e-9)


def test_the_length_of_vectors_does_not_matter() -> None:
    real, synthetic = around_a_mean(2, 150), around_a_mean(3, 150)
    scale = np.random.default_rng(0).uniform(0.1, 10, 150)[:, None]
    # Scaled vectors have other hashes and so other parts; results can only be compared on average.
    found = [effects(size * real, size * synthetic)["coverage"] for size in (1, 2, 3, 0.5, 7)]
    other = [effects(size * scale * real, synthetic)["coverage"] for size in (1, 2, 3, 0.5, 7)]
    assert np.mean(found) == pytest.approx(np.mean(other), rel=0.5)


def test_there_is_a_deviation_per_block_and_they_sum_to_0_within_each_division() -> None:
    found = spreads(around_a_mean(4, 300), around_a_mean(5, 300, shift=0.5), K)
    for name in BOTH:
        assert found[name].shape == (BLOCKS,)
        # Fewer than 600 rows are divided into five parts, four times.
        np.testing.assert_allclose(found[name].reshape(-1, 5).sum(1), 0, atol=1e-12)


def data_sets(count: int, n: int, m: int, d: int, shift: float) -> tuple[dict[str, float], dict[str, float]]:
    """Return the true design effects over data sets, and the mean of the estimates from each data set."""
    shares, shown = [], []
    for seed in range(count):
        real, synthetic = around_a_mean(2 * seed, n, d), around_a_mean(2 * seed + 1, m, d, shift)
        shares.append(brute.precision_and_coverage(real, synthetic, K))
        shown.append(effects(real, synthetic))
    mean, variance = np.mean(shares, axis=0), np.var(shares, axis=0, ddof=1)
    true = variance * np.array([m, n]) / (mean * (1 - mean))
    return dict(zip(BOTH, true.tolist(), strict=True)), {
        name: float(np.mean([one[name] for one in shown if name in one])) for name in BOTH
    }


@pytest.mark.parametrize(
    ("n", "m", "d", "shift"),
    [
        (240, 120, 8, 0.5),
        pytest.param(150, 150, 8, 0.0, marks=pytest.mark.slow),
        pytest.param(150, 150, 8, 1.0, marks=pytest.mark.slow),
        pytest.param(100, 200, 16, 0.5, marks=pytest.mark.slow),
        pytest.param(150, 150, 2, 0.3, marks=pytest.mark.slow),
    ],
)
def test_the_estimated_variance_is_within_a_factor_of_two_of_that_over_data_sets(
    n: int, m: int, d: int, shift: float
) -> None:
    true, shown = data_sets(120, n, m, d, shift)
    for name in BOTH:
        # The variance over 120 data sets is known to 13 %.
        assert 1 / 2 < shown[name] / true[name] < 2.2, (name, true, shown)


def test_independent_rows_have_a_design_effect_near_1() -> None:
    # Half of the synthetic rows lie among the real ones and half far away, independently: precision is one half.
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        real, synthetic = (around_a_mean(s, 300, 3) + np.r_[5, 0, 0] for s in (seed, seed + 1000))
        # Shrunk, to lie well within the real rows.
        synthetic[:, 1:] *= 0.3
        away = rng.random(300) < 0.5
        synthetic[away] = -synthetic[away]
        found.append(effects(real, synthetic)["precision"])
    assert np.mean(found) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("n", "m"), [(39, 200), (200, 39), (3, 3), (1, 1), (6, 6)])
def test_too_few_rows_give_no_estimate(n: int, m: int) -> None:
    found = spreads(around_a_mean(0, n), around_a_mean(1, m), K)
    assert not set(BOTH) & set(found)


def test_shares_of_0_or_1_give_no_estimate() -> None:
    far = np.r_[30, np.zeros(7)]
    nowhere = spreads(around_a_mean(0, 200) + far, -(around_a_mean(1, 200) + far), K)
    assert not set(BOTH) & set(nowhere)
    within = np.r_[8, 0, 0] + 0.01 * centred(1, 900, 3)
    everywhere = spreads(around_a_mean(0, 100, 3) + np.r_[5, 0, 0], within, K)
    assert "precision" not in everywhere


def test_deviations_are_finite_for_nearly_identical_rows() -> None:
    real, synthetic = (np.ones(6) + 1e-9 * centred(seed, 200, 6) for seed in (0, 1))
    for deviations in spreads(real, synthetic, K).values():
        assert np.isfinite(deviations).all()


@pytest.mark.parametrize(
    ("real", "synthetic"), [(10, 10), (SAMPLE_ROWS, 7), (10**6, 10**6), (10**9, 10**4), (1, 10**7), (9000, 30_000)]
)
def test_sample_sizes_are_proportional_to_the_sets_and_bounded(real: int, synthetic: int) -> None:
    found = sample_rows(real, synthetic)
    assert max(found) <= SAMPLE_ROWS
    assert 1 <= found[0] <= real
    assert 1 <= found[1] <= synthetic
    if max(real, synthetic) <= SAMPLE_ROWS:
        assert found == (real, synthetic)
    else:
        assert max(found) == SAMPLE_ROWS
        exact = SAMPLE_ROWS / max(real, synthetic)
        assert found == (math.ceil(round(real * exact, 6)), math.ceil(round(synthetic * exact, 6)))


@pytest.mark.parametrize(("rows", "parts"), [(599, 5), (600, 10), (2000, 20)])
def test_more_rows_are_divided_into_more_parts(rows: int, parts: int) -> None:
    found = spreads(around_a_mean(0, rows), around_a_mean(1, rows, shift=1), K)["coverage"]
    np.testing.assert_allclose(found.reshape(-1, parts).sum(1), 0, atol=1e-9)
