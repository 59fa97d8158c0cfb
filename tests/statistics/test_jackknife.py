"""Jackknife deviations and intervals against literal jackknives, textbook formulas and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import betainc, expit, logit
from scipy.stats import binom, binomtest, norm, t

from synthscale.statistics import jackknife
from synthscale.statistics.jackknife import (
    T_HALF_WIDTH,
    interval,
    jackknife_blocks,
    ratio_deviations,
    replicate_deviations,
    standard_error,
)
from synthscale.tables.id_hashes import hash_ids
from synthscale.tables.schemas import BLOCKS
from tests.examples import examples

Floats = NDArray[np.float64]


def by_block(values: Floats, block: NDArray[np.int64]) -> Floats:
    """Return the sum of the values in each block: (BLOCKS,)."""
    return np.array([values[block == b].sum() for b in range(BLOCKS)])


def left_out(values: Floats, count: Floats, block: NDArray[np.int64]) -> Floats:
    """Return the ratio over the rows outside each block: (BLOCKS,)."""
    return np.array([values[block != b].sum() / count[block != b].sum() for b in range(BLOCKS)])


def rows(seed: int, n: int, equal: bool = True) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return values, counts and blocks: blocks of equal size, or random ones as hashes would give."""
    rng = np.random.default_rng(seed)
    block = rng.permutation(np.arange(n) % BLOCKS) if equal else rng.integers(0, BLOCKS, n)
    return rng.gamma(2.0, size=n), rng.integers(1, 4, n).astype(float), block


def test_a_block_depends_only_on_the_group_hash_and_blocks_are_of_similar_size() -> None:
    keys = hash_ids(f"{i}" for i in range(40_000))
    found = jackknife_blocks(keys)
    assert found.dtype == np.int8
    assert found.shape == keys.shape
    order = np.random.default_rng(0).permutation(len(keys))
    assert jackknife_blocks(keys[order]).tolist() == found[order].tolist()
    assert jackknife_blocks(keys[:7]).tolist() == found[:7].tolist()
    counts = np.bincount(found, minlength=BLOCKS)
    assert len(counts) == BLOCKS
    # Chi-squared with 19 degrees of freedom: 43.8 is its 99.9 % point.
    assert (np.square(counts - 2000) / 2000).sum() < 43.8


def test_deviations_of_a_ratio_agree_with_a_literal_delete_a_block_jackknife() -> None:
    # The linearisation is exact up to the square of a block's share of the rows.
    for seed in range(10):
        total, count, block = rows(seed, 4000)
        value = total.sum() / count.sum()
        replicates = left_out(total, count, block)
        expected = (BLOCKS - 1) / BLOCKS * np.square(replicates - replicates.mean()).sum()
        found = ratio_deviations(by_block(total, block), by_block(count, block))
        assert standard_error(found) == pytest.approx(math.sqrt(expected), rel=0.02)
        # A block's deviation has the sign of its effect on the ratio.
        away = value - replicates
        clear = np.abs(away) > np.abs(away).max() / 10
        assert (np.sign(found)[clear] == np.sign(away)[clear]).all()


def test_deviations_of_a_ratio_give_the_textbook_variance_over_blocks() -> None:
    # Cochran 1977, section 6.3: n/(n-1) times the residuals' squares over the squared total.
    total, count, block = rows(1, 3000, equal=False)
    y, x = by_block(total, block), by_block(count, block)
    ratio = y.sum() / x.sum()
    variance = BLOCKS * np.var(y - ratio * x, ddof=1) / x.sum() ** 2
    assert standard_error(ratio_deviations(y, x)) ** 2 == pytest.approx(variance)


def test_the_squared_standard_error_of_a_mean_is_unbiased() -> None:
    errors = []
    for seed in range(400):
        values = np.random.default_rng(seed).exponential(size=600)
        block = np.random.default_rng(seed + 1000).integers(0, BLOCKS, 600)
        errors.append(
            standard_error(ratio_deviations(by_block(values, block), by_block(np.ones(600), block))) ** 2
        )
    # The variance of the mean of 600 exponential numbers; the mean of 400 estimates with 19 degrees of freedom has
    # a relative error of 2 %.
    assert np.mean(errors) == pytest.approx(1 / 600, rel=0.06)


def test_ratio_deviations_of_stacked_slices_equal_those_of_each_slice() -> None:
    rng = np.random.default_rng(2)
    total, count = rng.random((3, 4, BLOCKS)), rng.random((3, 4, BLOCKS))
    found = ratio_deviations(total, count)
    for i in range(3):
        for j in range(4):
            np.testing.assert_allclose(found[i, j], ratio_deviations(total[i, j], count[i, j]))


def test_ratio_deviations_are_nan_where_nothing_was_counted() -> None:
    assert np.isnan(ratio_deviations(np.zeros(BLOCKS), np.zeros(BLOCKS))).all()


@given(st.integers(0, 10_000), st.booleans())
@examples(25)
def test_replicates_of_a_mean_give_the_deviations_of_its_ratio(seed: int, equal: bool) -> None:
    # For a mean the linearisation is exact, whatever the block sizes.
    values, _, block = rows(seed, 200, equal)
    ones = np.ones(len(values))
    found = replicate_deviations(values.mean(), left_out(values, ones, block), by_block(ones, block) / len(values))
    np.testing.assert_allclose(found, ratio_deviations(by_block(values, block), by_block(ones, block)), atol=1e-12)


def test_replicates_of_equal_blocks_give_the_jackknife_variance() -> None:
    # For any statistic; here the standard deviation.
    values, _, block = rows(3, 800)
    replicates = np.array([values[block != b].std() for b in range(BLOCKS)])
    found = replicate_deviations(values.std(), replicates, np.full(BLOCKS, 1 / BLOCKS))
    expected = (BLOCKS - 1) / BLOCKS * np.square(replicates - replicates.mean()).sum()
    assert standard_error(found) ** 2 == pytest.approx(expected)
    # The variance of a standard deviation from the fourth moment.
    centred = values - values.mean()
    expected = (np.mean(centred**4) - np.mean(centred**2) ** 2) / (4 * 800 * values.var())
    assert standard_error(found) == pytest.approx(math.sqrt(expected), rel=0.4)


def test_replicates_of_unequal_blocks_agree_with_busing_et_al() -> None:
    # Their pseudo-values. The two agree for blocks whose sizes differ as much as random assignment makes them.
    for seed in range(10):
        values, _, block = rows(seed, 2000, equal=False)
        share = np.bincount(block, minlength=BLOCKS) / 2000
        value = values.std()
        replicates = np.array([values[block != b].std() for b in range(BLOCKS)])
        pseudo = value / share - (1 / share - 1) * replicates
        centre = BLOCKS * value - ((1 - share) * replicates).sum()
        expected = np.mean(np.square(pseudo - centre) / (1 / share - 1))
        found = replicate_deviations(value, replicates, share)
        assert standard_error(found) == pytest.approx(math.sqrt(expected), rel=0.05)


def test_deviations_of_a_difference_are_differences_of_deviations() -> None:
    rng = np.random.default_rng(4)
    shared, block = rng.normal(size=2000), rng.integers(0, BLOCKS, 2000)
    one, two = (by_block(shared + 0.1 * rng.normal(size=2000), block) for _ in range(2))
    count = by_block(np.ones(2000), block)
    apart = ratio_deviations(one, count) - ratio_deviations(two, count)
    np.testing.assert_allclose(apart, ratio_deviations(one - two, count), atol=1e-15)
    # Shared variance cancels: the error is 0.1 sqrt(2 / 2000), where each alone has 1 / sqrt(2000).
    assert standard_error(apart) == pytest.approx(0.1 * math.sqrt(2 / 2000), rel=0.5)
    assert standard_error(ratio_deviations(one, count)) > 4 * standard_error(apart)


def test_the_half_width_in_standard_errors_is_students_t_quantile() -> None:
    assert t.cdf(T_HALF_WIDTH, BLOCKS - 1) - t.cdf(-T_HALF_WIDTH, BLOCKS - 1) == pytest.approx(0.95)


@given(st.integers(0, 4), st.integers(12, 500), st.booleans())
@settings(deadline=None)
def test_a_share_near_0_or_1_has_the_clopper_pearson_interval(few: int, n: int, complement: bool) -> None:
    found = n - few if complement else few
    expected = binomtest(found, n).proportion_ci(0.95, method="exact")
    # The standard error must not matter here, because blocks see little of it.
    for error in (0.0, 0.01, 0.3):
        ends = interval(found / n, error, n)
        assert ends is not None
        assert ends == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_at_the_clopper_pearson_ends_the_tail_probability_is_2_5_percent() -> None:
    # From the binomial tails directly.
    ends = interval(3 / 80, 0.01, 80)
    assert ends is not None
    assert binom.sf(2, 80, ends[0]) == pytest.approx(0.025)
    assert binom.cdf(3, 80, ends[1]) == pytest.approx(0.025)


@pytest.mark.parametrize(("successes", "rows"), [(1 / 3, 32), (2.5, 7.25), (31 + 2 / 3, 32), (400.1, 1e5)])
def test_the_binomial_interval_takes_numbers_that_are_not_integers(successes: float, rows: float) -> None:
    low, high = jackknife.binomial_interval(successes / rows, rows)
    # The binomial tails as incomplete beta functions, which are defined between the integers as well.
    assert betainc(successes, rows - successes + 1, low) == pytest.approx(0.025)
    assert betainc(successes + 1, rows - successes, high) == pytest.approx(0.975)
    assert jackknife.binomial_interval(0.0, rows) == pytest.approx((0.0, 1 - 0.025 ** (1 / rows)))
    assert jackknife.binomial_interval(1.0, rows) == pytest.approx((0.025 ** (1 / rows), 1.0))


@given(st.floats(0.02, 0.98), st.floats(1e-4, 0.2))
@settings(deadline=None)
def test_elsewhere_the_interval_of_a_share_is_symmetric_in_the_log_odds(value: float, error: float) -> None:
    ends = interval(value, error, 1000)
    assert ends is not None
    assert 0 <= ends[0] <= value <= ends[1] <= 1
    if ends[1] < 1 - 1e-9 and ends[0] > 1e-9:
        below, above = logit(value) - logit(ends[0]), logit(ends[1]) - logit(value)
        assert below == pytest.approx(above, rel=1e-5)
        assert below == pytest.approx(T_HALF_WIDTH * error / (value * (1 - value)), rel=1e-5)
    if error < 1e-2 * min(value, 1 - value):
        # With a small error it equals the normal interval.
        assert ends[1] - ends[0] == pytest.approx(2 * T_HALF_WIDTH * error, rel=0.01)


@given(st.floats(0.001, 0.999), st.floats(1e-5, 0.3))
@settings(deadline=None)
def test_the_interval_of_a_mean_quality_contains_it_and_is_mirrored_at_0_5(value: float, error: float) -> None:
    ends = interval(value, error, 1000, other_clusters=1000)
    assert ends is not None
    assert 0 <= ends[0] < value < ends[1] <= 1
    mirrored = interval(1 - value, error, 1000, other_clusters=1000)
    assert mirrored == pytest.approx((1 - ends[1], 1 - ends[0]), abs=1e-9)
    if error < 1e-3 * min(value, 1 - value):
        # With a small error it equals the normal interval, unless the error is as large as the distance to 0.5.
        assert ends[1] - ends[0] == pytest.approx(
            2 * T_HALF_WIDTH * error, rel=0.05 if abs(value - 0.5) > 0.1 else 0.7
        )


def test_the_interval_of_a_mean_quality_covers_where_errors_near_chance_are_too_small() -> None:
    # The distance from 0.5 is the square of a normal number, so estimates near 0.5 come with errors that are too
    # small.
    rng = np.random.default_rng(0)
    drawn = 0.3 + 0.06 * rng.standard_normal(4000)
    value, error = 0.5 - drawn**2, 2 * drawn.clip(1e-3) * 0.06
    expected, held = value.mean(), {True: 0, False: 0}
    for is_share in held:
        for v, e in zip(value, error, strict=True):
            low, high = interval(v, e, 1e9, other_clusters=None if is_share else 1e9) or (0, 0)
            held[is_share] += low <= expected <= high
    # Student's t gives 95 % with an estimated error; with the known error used here it gives 96.4 %.
    assert held[False] / 4000 == pytest.approx(0.964, abs=0.01)
    assert held[True] < held[False] - 40


def test_a_mean_quality_near_0_does_not_get_the_binomial_interval() -> None:
    # Quality scores with a mean of 0.01 may hardly vary.
    ends = interval(0.01, 0.0001, 100, other_clusters=100)
    assert ends == pytest.approx((0.01 - T_HALF_WIDTH * 1e-4, 0.01 + T_HALF_WIDTH * 1e-4), abs=1e-5)
    assert interval(0.0, 0.0, 100, other_clusters=100) is None
    assert interval(1.0, 0.0, 100, other_clusters=100) is None


@pytest.mark.parametrize(
    ("value", "error", "independent"),
    [
        (0.5, 0.1, 1.0),
        (0.0, 0.0, 1.0),
        (0.5, 0.1, 0.0),
        (math.nan, 0.1, 50.0),
        (0.5, math.nan, 50.0),
        (0.5, math.inf, 50.0),
    ],
)
@pytest.mark.parametrize("is_share", [True, False])
def test_too_few_rows_or_an_unknown_error_give_no_interval(
    value: float, error: float, independent: float, is_share: bool
) -> None:
    assert interval(value, error, independent, other_clusters=None if is_share else 50.0) is None


def test_a_value_that_rounding_puts_outside_0_and_1_is_clipped() -> None:
    for value, plain in ((1 + 1e-16, 1.0), (1 + 1e-12, 1.0), (-1e-12, 0.0)):
        assert interval(value, 0.0, 40) == interval(plain, 0.0, 40)


@given(st.floats(0, 1), st.floats(0, 0.5), st.floats(1.5, 1e6))
@settings(deadline=None)
def test_the_interval_of_a_share_contains_it_and_stays_within_0_and_1(
    value: float, error: float, independent: float
) -> None:
    ends = interval(value, error, independent)
    assert ends is not None
    assert 0 <= ends[0] <= value + 1e-9
    assert value - 1e-9 <= ends[1] <= 1


def test_the_variance_over_fold_assignments_is_added() -> None:
    rng = np.random.default_rng(0)
    deviations, values = rng.normal(size=BLOCKS), rng.normal(size=5)
    found = jackknife.add_variance(deviations, values)
    assert np.square(found).sum() == pytest.approx(np.square(deviations).sum() + values.var(ddof=1))
    np.testing.assert_array_equal(jackknife.add_variance(deviations, values[:1]), deviations)
    np.testing.assert_array_equal(jackknife.add_variance(np.zeros(BLOCKS), values), np.zeros(BLOCKS))


def test_equal_scores_have_an_interval_as_wide_as_the_difference_that_may_have_been_missed() -> None:
    # Two normal distributions as far apart as the AUC's upper end allows: 1 - mean probability by simulation.
    n = m = 200
    missed = T_HALF_WIDTH * math.sqrt(2 * (n + m + 1) / (12 * n * m))
    shift = math.sqrt(2) * norm.ppf(0.5 + missed)
    x = shift + np.random.default_rng(0).normal(size=2_000_000)
    expected = float(expit(-(shift * x - shift**2 / 2)).mean())
    ends = interval(0.5, 0.0, n, other_clusters=m)
    assert ends is not None
    assert ends[0] == pytest.approx(expected, abs=3e-4)
    assert ends[0] < 0.49
    assert ends[1] == pytest.approx(1 - ends[0])
    wider = interval(0.5, 0.0, 50, other_clusters=50)
    assert wider is not None
    assert wider[0] < ends[0]
    assert interval(0.5, 0.0, 3, other_clusters=3) == (0.0, 1.0)
    assert interval(0.5, 0.0, 50, other_clusters=1) is None
