"""AUC from mergeable histograms, its bootstrap error and interval, and the two-sample test."""

import functools
import math
import operator
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest, kstest, mannwhitneyu, norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from synthscale.statistics.auc import (
    BOOTSTRAP_HALF_WIDTH,
    RankSums,
    auc,
    auc_error,
    auc_metric,
    sum_ranks,
    two_sample_test,
)
from synthscale.statistics.bootstrap import poisson_weights
from tests.examples import examples

DATA_SETS = 120


class Rows(NamedTuple):
    """Values, classes, and hashes of near-duplicate groups: (n,) each."""

    value: NDArray[np.float64]
    is_real: NDArray[np.bool_]
    key: NDArray[np.uint64]

    def take(self, chosen: NDArray[np.int64]) -> "Rows":
        return Rows(*(part[chosen] for part in self))

    def sums(self) -> RankSums:
        return sum_ranks(self.value, self.is_real, poisson_weights(self.key))

    @property
    def auc(self) -> float:
        return float(roc_auc_score(~self.is_real, self.value))


def gaussians(seed: int, n: int, m: int, shift: float, copies: int = 1) -> Rows:
    """n rows of N(0, 1) against m of N(shift, 1), each row ``copies`` times in a group of its own."""
    rng = np.random.default_rng(seed)
    rows = Rows(
        np.concatenate([rng.normal(size=n), rng.normal(size=m) + shift]),
        np.arange(n + m) < n,
        rng.integers(0, 2**64, n + m, np.uint64),
    )
    return rows.take(np.repeat(np.arange(n + m), copies))


def rows_of(real: list[float], synthetic: list[float]) -> Rows:
    n = len(real) + len(synthetic)
    return Rows(np.array(real + synthetic), np.arange(n) < len(real), np.arange(n, dtype=np.uint64))


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e3, 1e30])
@pytest.mark.parametrize(("n", "m", "shift"), [(200, 202, 0.5), (1000, 50, 3.0), (30, 700, -1.0), (300, 300, 0.0)])
def test_the_auc_agrees_with_scikit_learn_at_any_scale_of_the_values(
    n: int, m: int, shift: float, scale: float
) -> None:
    rows = gaussians(0, n, m, shift)
    # Values within 0.05 % of one another are tied.
    assert auc(sum_ranks(scale * rows.value, rows.is_real)) == pytest.approx(rows.auc, abs=1e-3)


coarse = st.lists(
    st.tuples(st.sampled_from([-math.inf, -2.0, -0.5, -0.0, 0.0, 1e-9, 0.5, 2.0, math.inf]), st.booleans()),
    min_size=2,
    max_size=40,
).filter(lambda rows: len({is_real for _, is_real in rows}) == 2)


@given(coarse)
@settings(deadline=None)
def test_the_auc_is_the_share_of_ordered_pairs_with_ties_as_one_half(rows: list[tuple[float, bool]]) -> None:
    real = [value for value, is_real in rows if is_real]
    synthetic = [value for value, is_real in rows if not is_real]
    wins = sum((s > r) + 0.5 * (s == r) for s in synthetic for r in real)
    found = auc(sum_ranks(*rows_of(real, synthetic)[:2]))
    assert found == pytest.approx(wins / (len(real) * len(synthetic)), abs=1e-15)


@given(coarse, st.lists(st.integers(0, 40), max_size=4), st.integers(0, 1000))
@examples(12)
def test_sums_merge_over_any_split_and_order(rows: list[tuple[float, bool]], cuts: list[int], seed: int) -> None:
    whole = rows_of([v for v, is_real in rows if is_real], [v for v, is_real in rows if not is_real])
    order = np.random.default_rng(seed).permutation(len(rows))
    parts = [whole.take(part).sums() for part in np.split(order, sorted(min(c, len(rows)) for c in cuts))]
    merged = functools.reduce(operator.add, parts, RankSums())
    expected = whole.sums()
    assert merged.counts == expected.counts
    assert auc(merged) == auc(expected)
    assert auc_metric(merged) == auc_metric(expected)
    assert two_sample_test(merged) == two_sample_test(expected)


def test_sums_over_many_shards_give_the_metric_of_a_single_one() -> None:
    rows = gaussians(1, 900, 700, 0.4)
    parts = [rows.take(part).sums() for part in np.array_split(np.random.default_rng(0).permutation(1600), 13)]
    merged = functools.reduce(operator.add, parts)
    assert auc_metric(merged) == auc_metric(rows.sums())


def test_addition_does_not_change_its_operands() -> None:
    one, two = gaussians(2, 20, 20, 0.4).sums(), gaussians(3, 20, 20, 0.4).sums()
    before = auc_metric(one), auc_metric(two)
    _ = one + two
    assert (auc_metric(one), auc_metric(two)) == before


def test_nan_values_are_left_out() -> None:
    rows = gaussians(4, 60, 50, 0.5)
    both = zip(rows, ([np.nan, np.nan], [True, False], np.array([7, 8], np.uint64)), strict=True)
    more = Rows(*(np.append(known, unknown) for known, unknown in both))
    assert more.sums().counts == (60, 50)
    assert auc_metric(more.sums()) == auc_metric(rows.sums())


@pytest.mark.parametrize(
    ("real", "synthetic", "expected"),
    [
        ([-1.0] * 4, [1.0] * 6, 1.0),
        ([1.0] * 4, [-1.0] * 6, 0.0),
        ([0.25] * 4, [0.25] * 6, 0.5),
        ([0.0] * 4, [-0.0] * 6, 0.5),
        ([1.0, 2.0, 3.0], [3.5, 1e9, math.inf], 1.0),
        ([-1.0, 1.0], [0.0, 0.0, 0.0], 0.5),
    ],
)
def test_ordered_and_tied_values_have_exact_areas(
    real: list[float], synthetic: list[float], expected: float
) -> None:
    assert auc(rows_of(real, synthetic).sums()) == expected


def delong(rows: Rows) -> float:
    """Return the standard error of DeLong et al. (1988), extended to rows in groups by Obuchowski (1997)."""
    real, synthetic = rows.value[rows.is_real], rows.value[~rows.is_real]
    wins = (synthetic[:, None] > real) + 0.5 * (synthetic[:, None] == real)
    # Each row's influence on the area; rows of one group vary together.
    influence = np.empty(len(rows.value))
    influence[rows.is_real] = (wins.mean(0) - wins.mean()) / len(real)
    influence[~rows.is_real] = (wins.mean(1) - wins.mean()) / len(synthetic)
    _, group = np.unique(rows.key, return_inverse=True)
    totals = np.bincount(group, influence)
    return float(np.sqrt(np.square(totals).sum() * len(totals) / (len(totals) - 1)))


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize(("n", "m", "shift"), [(150, 150, 0.5), (40, 400, 0.7), (300, 60, 1.5), (100, 100, 0.0)])
def test_the_standard_error_agrees_with_delong(n: int, m: int, shift: float, copies: int) -> None:
    ratios = []
    for seed in range(12):
        rows = gaussians(seed, n, m, shift, copies)
        ratios.append(auc_error(rows.sums()) / delong(rows))
    # 200 replicates give each error a deviation of 5 %; small classes add a little.
    assert np.mean(ratios) == pytest.approx(1, abs=0.06)
    assert np.abs(np.array(ratios) - 1).max() < 0.25


def spread_of_the_auc(n: int, m: int, shift: float) -> float:
    """Return the standard deviation of the AUC over 2,000 data sets, by counting pairs."""
    rng = np.random.default_rng(1)
    real, synthetic = rng.normal(size=(2000, n, 1)), rng.normal(size=(2000, 1, m)) + shift
    areas = [float((s > r).mean()) for r, s in zip(real, synthetic, strict=True)]
    return float(np.std(areas))


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize(("n", "m", "shift"), [(60, 60, 0.8), (40, 200, 0.0)])
def test_the_standard_error_is_that_over_data_sets(n: int, m: int, shift: float, copies: int) -> None:
    # Rows that occur four times add no information.
    errors = [auc_error(gaussians(seed, n, m, shift, copies).sums()) for seed in range(25)]
    assert np.mean(errors) == pytest.approx(spread_of_the_auc(n, m, shift), rel=0.08)


def test_rows_in_groups_of_four_have_twice_the_error_of_as_many_single_rows() -> None:
    ratios = []
    for seed in range(12):
        grouped = gaussians(seed, 60, 60, 0.8, copies=4)
        single = grouped._replace(key=np.arange(len(grouped.value), dtype=np.uint64))
        ratios.append(auc_error(grouped.sums()) / auc_error(single.sums()))
    assert np.mean(ratios) == pytest.approx(2, abs=0.1)


def test_the_error_accounts_for_groups_of_a_real_row_and_its_copy() -> None:
    # Every synthetic row is near a real one, so their values vary together and the area varies less.
    ratios, errors, areas = [], [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        common = rng.normal(size=100)
        value = np.concatenate([common + 0.3 * rng.normal(size=100), common + 0.3 * rng.normal(size=100)])
        key = np.tile(rng.integers(0, 2**64, 100, np.uint64), 2)
        rows = Rows(value, np.arange(200) < 100, key)
        areas.append(rows.auc)
        errors.append(auc_error(rows.sums()))
        ratios.append(errors[-1] / delong(rows))
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)
    # The standard deviation of 40 areas is itself known to 11 %.
    assert np.mean(errors) == pytest.approx(np.std(areas), rel=0.35)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "m", "shift", "copies"), [(80, 80, 0.7, 1), (40, 300, 1.2, 1), (20, 20, 0.0, 1), (50, 50, 0.7, 4)]
)
def test_the_interval_covers_the_true_area_in_at_least_95_percent_of_data_sets(
    n: int, m: int, shift: float, copies: int
) -> None:
    # More often than 95 %, because values of a fixed classifier vary less than out-of-fold ones.
    true = norm.cdf(shift / 2**0.5)
    hits, widths, errors = 0, [], []
    for seed in range(DATA_SETS):
        rows = gaussians(1000 + seed, n, m, shift, copies)
        found = auc_metric(rows.sums())
        assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
        hits += found["low"] <= true <= found["high"]
        widths.append(found["high"] - found["low"])
        errors.append(delong(rows))
    assert hits / DATA_SETS >= 0.93
    # But it is not much wider than needed.
    assert np.mean(widths) < 1.5 * 2 * 1.96 * np.mean(errors)


def out_of_fold(seed: int, n: int, d: int, shift: float) -> RankSums:
    """Return the sums over scikit-learn's out-of-fold logits: N(0, I) against N(shift, I), n rows each."""
    rng = np.random.default_rng(seed)
    is_real = np.arange(2 * n) < n
    x = rng.normal(size=(2 * n, d)) + shift * ~is_real[:, None]
    repeat = StratifiedKFold(5, shuffle=True, random_state=seed)
    logit = cross_val_predict(LogisticRegression(C=0.01), x, ~is_real, cv=repeat, method="decision_function")
    return Rows(logit, is_real, rng.integers(0, 2**64, 2 * n, np.uint64)).sums()


@pytest.mark.slow
@pytest.mark.parametrize(("d", "shift"), [(8, 0.3), (60, 0.0), (60, 0.1)])
def test_the_interval_of_out_of_fold_logits_covers_the_expected_area_in_about_95_percent(
    d: int, shift: float
) -> None:
    # Each pair of rows acts twice, as either is in the training part of the other: logits in many dimensions vary
    # more than those of a fixed classifier.
    found = [auc_metric(out_of_fold(seed, 60, d, shift)) for seed in range(100)]
    expected = np.mean([metric["value"] for metric in found])
    assert np.mean([metric["low"] <= expected <= metric["high"] for metric in found]) >= 0.90


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m", "shift"), [(40, 40, 3.0), (200, 200, 4.0)])
def test_the_interval_covers_the_true_area_near_one(n: int, m: int, shift: float) -> None:
    # Most generators are this easy to tell from photographs; a symmetric interval would end too high.
    true = norm.cdf(shift / 2**0.5)
    found = [auc_metric(gaussians(3000 + seed, n, m, shift).sums()) for seed in range(DATA_SETS)]
    assert np.mean([metric["low"] <= true <= metric["high"] for metric in found]) >= 0.9


def test_the_metric_has_the_keys_of_metrics_json() -> None:
    rows = gaussians(5, 60, 50, 0.5)
    found = auc_metric(rows.sums())
    assert set(found) == {"value", "low", "high", "reference"}
    assert found["reference"] == 0.5
    assert found["value"] == pytest.approx(rows.auc, abs=1e-3)


def test_without_weights_there_is_a_value_and_a_reason_why_there_is_no_interval() -> None:
    rows = gaussians(6, 60, 50, 0.5)
    for value in (rows.value, np.where(rows.is_real, -1.0, 1.0)):
        sums = sum_ranks(value, rows.is_real)
        found = auc_metric(sums)
        assert found["value"] == auc(sums)
        assert (found["low"], found["high"]) == (None, None)
        assert found["reason"]
        assert two_sample_test(sums)["value"] is None
        assert two_sample_test(sums)["reason"]


@pytest.mark.parametrize("known", [(0, 0), (3, 0), (0, 3)])
def test_with_an_empty_class_the_auc_is_null_with_a_reason(known: tuple[int, int]) -> None:
    sums = rows_of([1.0] * known[0], [2.0] * known[1]).sums() if sum(known) else RankSums()
    found = auc_metric(sums)
    assert (found["value"], found["low"], found["high"]) == (None, None, None)
    assert found["reason"]
    assert two_sample_test(sums)["value"] is None
    assert two_sample_test(sums)["reason"]


@pytest.mark.parametrize(("n", "m"), [(10, 10), (200, 12), (5, 400)])
@pytest.mark.parametrize("is_reversed", [False, True])
def test_with_every_pair_in_order_the_interval_is_the_exact_binomial_one(
    n: int, m: int, is_reversed: bool
) -> None:
    sums = rows_of([1.0 if is_reversed else -1.0] * n, [-1.0 if is_reversed else 1.0] * m).sums()
    found = auc_metric(sums)
    exact = binomtest(min(n, m), min(n, m)).proportion_ci(0.95, method="exact").low
    expected = (0.0, 0.0, 1 - exact) if is_reversed else (1.0, exact, 1.0)
    # The number of groups is only estimated, from 200 replicates.
    assert (found["value"], found["low"], found["high"]) == pytest.approx(expected, abs=0.1)


def test_rows_of_one_group_count_once_if_every_pair_is_in_order() -> None:
    # Ten images, ten times each, must not get the interval of a hundred.
    value, is_real = np.repeat([-1.0, 1.0], 100), np.repeat([True, False], 100)
    rows = Rows(value, is_real, np.repeat(np.arange(20, dtype=np.uint64), 10))
    exact = binomtest(10, 10).proportion_ci(0.95, method="exact").low
    sums = sum_ranks(value, is_real, poisson_weights(rows.key), np.full(200, 10))
    assert auc_metric(sums)["low"] == pytest.approx(exact)
    assert two_sample_test(sums)["value"] == pytest.approx(0.5**10)


def test_one_large_cluster_does_not_undo_that_every_pair_is_in_order() -> None:
    # One image 400 times among 100 others, on both sides.
    value, is_real = np.repeat([-1.0, 1.0], 500), np.repeat([True, False], 500)
    key = np.concatenate([np.r_[np.zeros(400), 1:101] + start for start in (0, 500)]).astype(np.uint64)
    sums = sum_ranks(value, is_real, poisson_weights(key), np.tile(np.r_[np.full(400, 400), np.ones(100)], 2))
    assert auc_metric(sums)["low"] == pytest.approx(binomtest(101, 101).proportion_ci(0.95, method="exact").low)
    assert two_sample_test(sums)["value"] == pytest.approx(0.5**101)


def test_clusters_add_up_over_shards_and_rows_without_a_value_do_not_count() -> None:
    value, is_real = np.array([0.1, 0.2, np.nan, 0.4, 0.5]), np.array([True, True, True, False, False])
    rows = np.array([2, 2, 1, 4, 1])
    whole = sum_ranks(value, is_real, None, rows)
    assert whole.clusters.tolist() == [1.0, 1.25]
    parts = [sum_ranks(value[part], is_real[part], None, rows[part]) for part in (slice(2), slice(2, None))]
    assert (parts[0] + parts[1]).clusters.tolist() == [1.0, 1.25]
    assert sum_ranks(value, is_real).clusters.tolist() == [2.0, 2.0]


@pytest.mark.slow
def test_out_of_fold_p_values_of_equal_distributions_are_about_uniform() -> None:
    values = [two_sample_test(out_of_fold(2000 + seed, 60, 60, 0.0))["value"] for seed in range(DATA_SETS)]
    assert kstest(values, "uniform").pvalue > 1e-3
    assert np.mean(np.array(values) < 0.05) <= 0.10


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m", "copies"), [(100, 100, 1), (150, 40, 1), (40, 40, 4)])
def test_p_values_of_equal_distributions_are_at_most_as_often_small_as_uniform_ones(
    n: int, m: int, copies: int
) -> None:
    values = np.array(
        [two_sample_test(gaussians(5000 + s, n, m, 0.0, copies).sums())["value"] for s in range(DATA_SETS)]
    )
    for level in (0.02, 0.05, 0.2, 0.4):
        assert np.mean(values < level) <= level + 3 * (level * (1 - level) / DATA_SETS) ** 0.5
    assert np.median(values) == pytest.approx(0.5, abs=0.13)


def test_p_values_are_tiny_if_classes_differ_and_near_one_if_the_order_is_reversed() -> None:
    assert two_sample_test(gaussians(7, 300, 300, 1.0).sums())["value"] < 1e-9
    assert two_sample_test(gaussians(7, 300, 300, -1.0).sums())["value"] > 1 - 1e-9
    assert two_sample_test(rows_of([0.0] * 50, [1.0] * 50).sums())["value"] < 1e-9
    assert two_sample_test(rows_of([1.0] * 50, [0.0] * 50).sums())["value"] == 1.0


def test_the_p_value_is_one_sided_and_normal_with_an_error_above_delongs() -> None:
    rows = gaussians(8, 200, 150, 0.2)
    excess = (rows.auc - 0.5) / delong(rows)
    assert 0.6 * norm.sf(excess) < two_sample_test(rows.sums())["value"] < 1.4 * norm.sf(excess / 1.5)


@pytest.mark.parametrize("answer", [0.0, -3.7, 0.1])
def test_constant_values_have_an_auc_of_one_half_and_a_p_value_of_one(answer: float) -> None:
    sums = rows_of([answer] * 37, [answer] * 41).sums()
    assert two_sample_test(sums)["value"] == 1.0
    found = auc_metric(sums)
    # All scores are tied in every replicate: the interval is that of the null distribution of the rank-sum test.
    rng = np.random.default_rng(0)
    drawn = np.array([mannwhitneyu(*np.split(rng.random(78), [37])).statistic / (37 * 41) for _ in range(2000)])
    assert found["value"] == 0.5
    assert found["high"] - 0.5 == pytest.approx(BOOTSTRAP_HALF_WIDTH * drawn.std(), rel=0.08)
    assert found["low"] == pytest.approx(1 - found["high"])


def test_two_rows_have_a_wide_interval_and_a_large_p_value() -> None:
    sums = rows_of([0.0], [1.0]).sums()
    found = auc_metric(sums)
    assert found["value"] == 1.0
    assert found["low"] < 0.05
    assert two_sample_test(sums)["value"] > 0.1


@pytest.mark.parametrize("seed", range(5))
def test_a_cluster_of_most_rows_does_not_hide_that_sets_are_told_apart(seed: int) -> None:
    single = gaussians(seed, 250, 61, 4.0)
    # One synthetic row, which lies beyond all real ones, is there 200 times.
    single.value[-1] = 9.0
    rows = single.take(np.concatenate([np.arange(310), np.repeat(310, 200)]))
    share = np.where(rows.key == single.key[-1], 200, 1)
    sums = sum_ranks(rows.value, rows.is_real, poisson_weights(rows.key), share)
    found = auc_metric(sums)
    assert found["value"] > 0.99
    assert found["low"] > 0.8
    assert two_sample_test(sums)["value"] < 1e-6
