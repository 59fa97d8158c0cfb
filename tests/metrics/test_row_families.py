"""Metric families computed from per-row values: equal to brute force, scipy and prdc, however sums are merged."""

import functools
import json
import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import kolmogorov

from synthscale import parse_config, score_features
from synthscale.metric_names import CORE_METRICS, FAMILIES
from synthscale.metrics.core import CoreSums, Indicators, MetricContext, sum_slices
from synthscale.metrics.row_families import (
    FACTS,
    completeness_family,
    copying_family,
    facts_family,
    manifold_family,
    stability_family,
)
from synthscale.statistics.auc import RankSums, sum_ranks
from synthscale.tables.schemas import BLOCKS
from tests.examples import examples
from tests.reference import brute

K = 5
TOLERANCE = 1e-3
"""Relative tolerance of quantiles, which come from a histogram with 11 bits of mantissa."""


def families(real, synthetic, *names, labels=None, **more):
    config = parse_config({"metrics": {"families": list(names), **more}})
    kinds = ["real"] * len(real) + ["synthetic"] * len(synthetic)
    found = score_features(np.vstack([real, synthetic]), kinds, labels=labels, config=config)
    return found.metrics["synthetic"]["families"]


def drawn(seed, n, d=6, scale=1.0, shift=0.0):
    return (shift + scale * np.random.default_rng(seed).normal(size=(n, d))).astype(np.float32)


# Manifold.


def radii(x):
    """Return the distance of each row to its k-th nearest other row."""
    return brute.k_smallest(brute.among(x, "euclidean"), K)[:, -1]


def density_and_recall(real, synthetic):
    """Density (Naeem et al.) and recall (Kynkaanniemi et al.), with `<=` and radii over distinct rows."""
    real, synthetic = brute.scaled(real, real), brute.scaled(synthetic, real)
    one, two = brute.distinct(real), brute.distinct(synthetic)
    inside = brute.halved_squares(one, synthetic) <= radii(one)[:, None]
    recalled = brute.halved_squares(two, real) <= radii(two)[:, None]
    return inside.sum() / K / len(synthetic), recalled.any(axis=0).mean()


@pytest.mark.parametrize(
    ("real", "synthetic"),
    [
        (drawn(0, 120), drawn(1, 90)),
        (drawn(2, 60, shift=2), drawn(3, 150, scale=0.3, shift=2)),
        (drawn(4, 40), drawn(5, 8)),
        (np.repeat(drawn(6, 30), 3, axis=0), drawn(7, 40)),
        (drawn(8, 40), np.repeat(drawn(9, 20), 4, axis=0)),
        (drawn(10, 40), drawn(10, 40)),
    ],
    ids=["equal", "narrow", "few", "repeated real", "repeated synthetic", "copies"],
)
def test_density_and_recall_equal_brute_force(real, synthetic):
    found = families(real, synthetic, "manifold")["manifold"]
    density, recall = density_and_recall(real, synthetic)
    assert found["density"]["value"] == pytest.approx(density, abs=1e-12)
    assert found["recall"]["value"] == pytest.approx(recall, abs=1e-12)
    assert found["density"]["reference"] == 1


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_precision_recall_density_and_coverage_equal_prdc(shift):
    prdc = pytest.importorskip("prdc")
    real, synthetic = drawn(20, 150, shift=1), drawn(21, 110, shift=1 + shift)
    # Without ties `<` and `<=` agree.
    scaled = [brute.scaled(x, real) for x in (real, synthetic)]
    expected = prdc.compute_prdc(*scaled, nearest_k=K)
    config = parse_config({"metrics": {"families": ["manifold"]}})
    kinds = ["real"] * 150 + ["synthetic"] * 110
    block = score_features(np.vstack([real, synthetic]), kinds, config=config).metrics["synthetic"]
    found = {**block["metrics"], **block["families"]["manifold"]}
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-12), name


def test_copies_of_repeated_real_rows_are_within_radii_of_zero():
    # prdc gives 0 here, because it compares radii of 0 with `<`.
    real = np.repeat(drawn(22, 25), 8, axis=0)
    found = families(real, real[::8], "manifold")["manifold"]
    assert found["recall"]["value"] == 1
    assert found["density"]["value"] >= 0.8


@pytest.mark.slow
def test_density_is_one_for_equal_distributions():
    values = [
        families(drawn(100 + i, 200, 3), drawn(200 + i, 300, 3), "manifold")["manifold"]["density"]
        for i in range(8)
    ]
    assert np.mean([own["value"] for own in values]) == pytest.approx(1, abs=0.05)
    assert all(own["low"] < own["value"] < own["high"] for own in values)
    assert all(own["low"] >= 0 for own in values)


def test_density_of_one_row_has_no_interval_of_width_zero():
    found = families(drawn(0, 20), drawn(1, 1), "manifold")["manifold"]["density"]
    # An interval of width 0 would wrongly claim certainty for a single row.
    assert found["low"] is None or found["low"] < found["high"]


def test_density_has_no_interval_where_no_row_is_within_a_radius():
    found = families(drawn(0, 60), drawn(1, 60, shift=50), "manifold")["manifold"]["density"]
    assert (found["value"], found["low"], found["high"]) == (0, None, None)
    assert found["reason"]


def test_there_are_no_radii_of_one_synthetic_row():
    found = families(drawn(0, 20), drawn(1, 1), "manifold")["manifold"]["recall"]
    assert found["value"] is None
    assert found["reason"]


def test_there_is_no_manifold_of_one_real_row():
    found = families(drawn(0, 1), drawn(1, 20), "manifold")["manifold"]
    for own in found.values():
        assert own["value"] is None
        assert own["reason"] == "fewer than two distinct real rows"


def test_density_uses_the_larger_of_jackknife_and_subsample_variance():
    sums = CoreSums()
    sums.by_block("real_radii")[:], sums.by_block("synthetic")[:] = 50.0, 10.0
    sums.by_block("real")[:], sums.by_block("recalled")[:] = 10.0, 5.0
    sums.by_block("clusters_real")[:] = sums.by_block("clusters_synthetic")[:] = 10.0
    plain = manifold_family(sums, MetricContext({}), K, 200)["density"]
    spread = manifold_family(sums, MetricContext({}, math.inf, None, {"density": np.full(BLOCKS, 1.0)}), K, 200)[
        "density"
    ]
    assert plain.value == spread.value == 1
    # Blocks that are all the same say nothing about the spread.
    assert (plain.low, plain.high) == (None, None)
    # The spread is relative to the density of one row; for 200 rows it is sqrt(20) / sqrt(200).
    assert spread.high - spread.value == pytest.approx(2.093 * math.sqrt(20 / 200), rel=1e-3)


# Copying.


def nearest_distances(real, synthetic):
    real, synthetic = brute.scaled(real, real), brute.scaled(synthetic, real)
    to_real = brute.halved_squares(synthetic, real)
    return brute.among(real, "euclidean").min(axis=1), to_real.min(axis=1), to_real.argmin(axis=1)


def test_copying_metrics_equal_brute_force():
    real, synthetic = drawn(30, 90), drawn(31, 120)
    synthetic[:10], synthetic[10:30] = real[:10], real[10:30] + 0.01 * drawn(32, 20)
    found = families(real, synthetic, "copying")["copying"]
    among, nearest, which = nearest_distances(real, synthetic)
    assert found["exact_match_share"]["value"] == pytest.approx(10 / 120)
    assert found["authenticity"]["value"] == pytest.approx((nearest > among[which]).mean())
    # `nearest/` stores float32.
    ratio = np.quantile(nearest, 0.5, method="inverted_cdf") / np.quantile(among, 0.5, method="inverted_cdf")
    assert found["privacy_ratio"]["value"] == pytest.approx(ratio, rel=TOLERANCE)
    tail = np.quantile(among, 0.05, method="inverted_cdf")
    bounds = [(nearest < tail * (1 + sign * TOLERANCE)).mean() for sign in (-1, 1)]
    assert bounds[0] <= found["privacy_tail"]["value"] <= bounds[1]
    assert found["privacy_tail"]["reference"] == 0.05
    assert found["privacy_ratio"]["reference"] == 1
    assert (
        found["privacy_ratio"]["reason"] == "no interval: this metric is computed from quantiles or a distribution"
    )


def test_exact_copies_have_no_authenticity_and_a_privacy_ratio_of_zero():
    real = drawn(33, 60)
    found = families(real, real[::-1], "copying")["copying"]
    assert found["exact_match_share"]["value"] == 1
    assert found["authenticity"]["value"] == 0
    assert found["privacy_ratio"]["value"] == 0
    assert found["privacy_tail"]["value"] == 1


def test_jittered_copies_are_not_authentic_and_no_exact_match():
    real = drawn(34, 60)
    found = families(real, real + 1e-3 * drawn(35, 60), "copying")["copying"]
    assert found["exact_match_share"]["value"] == 0
    assert found["authenticity"]["value"] == 0
    assert found["privacy_ratio"]["value"] < 0.01
    assert found["privacy_tail"]["value"] == 1


def test_copies_of_repeated_real_rows_are_not_authentic():
    # Each real image occurs twice, so a copy is as far from it (0) as its twin is (0).
    real = np.repeat(drawn(36, 40), 2, axis=0)
    found = families(real, real[::2], "copying")["copying"]
    assert found["exact_match_share"]["value"] == 1
    assert found["authenticity"]["value"] == 0


def test_authenticity_of_independent_rows_grows_with_the_dimensions():
    # Authenticity has no fixed null value: it depends on the dimensions.
    shares = [
        families(drawn(40, 200, d), drawn(41, 200, d), "copying")["copying"]["authenticity"] for d in (3, 64)
    ]
    assert shares[0]["value"] < shares[1]["value"]


@pytest.mark.slow
def test_equal_distributions_have_a_privacy_tail_of_0_05():
    found = families(drawn(42, 1500, 4), drawn(43, 1500, 4), "copying")["copying"]
    assert found["privacy_tail"]["value"] == pytest.approx(0.05, abs=0.02)
    assert found["privacy_ratio"]["value"] == pytest.approx(1, abs=0.08)


def test_privacy_needs_distances_among_real_rows():
    (found,) = families(drawn(44, 1), drawn(45, 9), "copying").values()
    for name in ("privacy_ratio", "privacy_tail"):
        assert found[name]["value"] is None
        assert "fewer than two real rows" in found[name]["reason"]


def test_copies_among_the_real_rows_leave_the_ratio_as_it_is():
    # Distances among real rows are to the nearest real row that is not a copy.
    real, synthetic = drawn(46, 10), drawn(47, 30)
    plain, copied = (families(x, synthetic, "copying")["copying"] for x in (real, np.repeat(real, 5, axis=0)))
    assert copied["privacy_ratio"]["value"] == pytest.approx(plain["privacy_ratio"]["value"], rel=2e-3)
    assert copied["authenticity"]["value"] == plain["authenticity"]["value"]


DISTANCES = st.lists(st.floats(0, 2, width=32), min_size=1, max_size=60)


@given(real=DISTANCES, synthetic=DISTANCES)
def test_quantiles_are_those_of_the_values(real, synthetic):
    ranks = ranked(real, synthetic)
    sums = CoreSums()
    sums.by_block("synthetic")[0] = sums.by_block("clusters_synthetic")[0] = len(synthetic)
    found = copying_family(sums, ranks)
    medians = [np.quantile(values, 0.5, method="inverted_cdf") for values in (real, synthetic)]
    if medians[0] > 1e-30:
        assert found["privacy_ratio"].value == pytest.approx(medians[1] / medians[0], rel=TOLERANCE, abs=1e-30)
    tail = np.quantile(real, 0.05, method="inverted_cdf")
    values = np.array(synthetic)
    low, high = ((values < tail * (1 + sign * TOLERANCE) + sign * 1e-30).mean() for sign in (-1, 1))
    assert low <= found["privacy_tail"].value <= high


# Facts.


def ranked(real, synthetic) -> RankSums:
    values = np.concatenate([np.asarray(real, np.float64), np.asarray(synthetic, np.float64)])
    return sum_ranks(values, np.arange(len(values)) < len(real))


@pytest.mark.parametrize("shift", [0.0, 0.2, 1.0])
def test_ks_statistics_and_p_values_equal_scipy(shift):
    rng = np.random.default_rng(int(10 * shift))
    real, synthetic = rng.normal(0.5, 0.1, 700), rng.normal(0.5 + shift / 10, 0.1, 500)
    found, p_values = facts_family({"brightness": ranked(real, synthetic)})
    expected = stats.ks_2samp(real, synthetic, method="asymp")
    # Values within 0.05 % count as equal, so at most a few rows change order.
    assert found["brightness_ks"].value == pytest.approx(expected.statistic, abs=4 / 500)
    assert found["brightness_ks"].reference == 0
    assert p_values["brightness_ks"] == pytest.approx(
        kolmogorov(found["brightness_ks"].value * math.sqrt(700 * 500 / 1200)), rel=1e-6
    )
    assert p_values["brightness_ks"] == pytest.approx(expected.pvalue, rel=0.35, abs=1e-6)


@given(
    real=st.lists(st.integers(1, 12), min_size=1, max_size=40),
    synthetic=st.lists(st.integers(1, 12), min_size=1, max_size=40),
)
def test_sizes_in_pixels_are_compared_exactly(real, synthetic):
    found, p_values = facts_family({"width": ranked(real, synthetic)})
    grid = range(13)
    below = [np.array([np.mean([v <= at for v in values]) for at in grid]) for values in (real, synthetic)]
    assert found["width_ks"].value == pytest.approx(np.abs(below[0] - below[1]).max(), abs=1e-12)
    assert 0 <= p_values["width_ks"] <= 1


def test_equal_image_sizes_have_a_ks_statistic_of_zero():
    found, p_values = facts_family({"width": ranked([512.0] * 9, [512.0] * 4)})
    assert found["width_ks"].value == 0
    assert p_values["width_ks"] == 1


@pytest.mark.parametrize("pair", [(512, 513), (1024, 1025), (2000, 2001), (3999, 4000)])
def test_neighbouring_sizes_are_different(pair):
    found, _ = facts_family({"width": ranked([pair[0]] * 30, [pair[1]] * 30)})
    assert found["width_ks"].value == 1


def test_a_fact_of_no_picture_has_a_reason_and_no_p_value():
    found, p_values = facts_family({"contrast": ranked([np.nan] * 4, [np.nan] * 3), "width": ranked([1, 2], [2])})
    assert set(found) == {f"{name}_ks" for name in FACTS} == set(FAMILIES["facts"])
    assert set(p_values) == {"width_ks"}
    for name in set(found) - {"width_ks"}:
        assert found[name].value is None
        assert found[name].reason == "the input is vectors: there are no images to compare"


def test_vectors_have_no_facts():
    found = families(drawn(0, 12), drawn(1, 12), "facts")["facts"]
    assert set(found) == set(FAMILIES["facts"])
    for own in found.values():
        assert own["value"] is None
        assert "vectors" in own["reason"]
        assert "p_value" not in own


# Completeness.


def test_completeness_counts_rows_and_labels():
    found = completeness_family({"rows": 40, "complete": 30, "labelled": 100, "seen": 70})
    exact = stats.binomtest(30, 40).proportion_ci(0.95, method="exact")
    own = found["complete_share"]
    assert (own.value, own.low, own.high) == pytest.approx((0.75, exact.low, exact.high), abs=1e-9)
    exact = stats.binomtest(70, 100).proportion_ci(0.95, method="exact")
    own = found["label_coverage"]
    assert (own.value, own.low, own.high) == pytest.approx((0.7, exact.low, exact.high), abs=1e-9)


def test_label_coverage_without_labels_has_a_reason():
    found = completeness_family({"rows": 3, "complete": 0, "labelled": 0, "seen": 0})
    assert found["complete_share"].value == 0
    assert found["label_coverage"].value is None
    assert found["label_coverage"].reason == "no labels in the real set"


def test_null_labels_are_counted():
    real, synthetic = drawn(0, 20), drawn(1, 10)
    labels = ["cat", None] * 10 + ["cat"] * 4 + [None] * 6
    found = families(real, synthetic, "completeness", labels=labels)["completeness"]
    assert found["complete_share"]["value"] == pytest.approx(0.4)
    assert found["complete_share"]["nulls"] == {"label": 6}
    assert found["complete_share"]["failed"] == 0
    assert found["label_coverage"]["value"] == 1


def test_without_labels_nothing_is_missing():
    found = families(drawn(0, 20), drawn(1, 10), "completeness")["completeness"]
    assert found["complete_share"]["value"] == 1
    assert found["label_coverage"]["value"] is None


def test_labels_beyond_the_thousand_slices_count_as_well():
    # 1,200 labels with one real row each and synthetic rows of half of them; only 1,000 labels become slices.
    n = 1200
    labels = [f"{i:04d}" for i in range(n)] + [f"{2 * i:04d}" for i in range(n // 2)]
    found = families(drawn(0, n, 3), drawn(1, n // 2, 3), "completeness", labels=labels)["completeness"]
    assert found["label_coverage"]["value"] == pytest.approx(0.5)


# Stability.


def rows_of(seed, n=600) -> tuple[Indicators, np.ndarray]:
    rng = np.random.default_rng(seed)
    flags = rng.random((5, n)) < np.array([0.5, 0.2, 0.1, 0.8, 0.6])[:, None]
    rows = Indicators(
        is_real=flags[0],
        q=rng.random(n),
        q_unadjusted=rng.random(n),
        in_synthetic_group=flags[1],
        in_mixed_group=flags[2],
        inside=flags[3],
        covered=flags[4],
        block=rng.integers(0, BLOCKS, n).astype(np.int8),
        near_real=np.zeros(n, np.bool_),
        components=1 / rng.integers(1, 3, n),
        real_repeats=np.zeros(n),
        real_components=np.ones(n),
        cluster_rows=np.ones(n, np.int64),
    )
    return rows, rng.integers(0, 5, n)


def plain_metrics(rows: Indicators, part: np.ndarray) -> dict[str, float]:
    real, own = part & rows.is_real, part & ~rows.is_real
    return {
        "fidelity": 1 - rows.q[own].mean(),
        "representativeness": 1 - rows.q[real].mean(),
        "diversity": 1 - rows.in_synthetic_group[own].mean(),
        "unique_share": rows.components[own].mean(),
        "freshness": 1 - rows.in_mixed_group[own].mean(),
        "precision": rows.inside[own].mean(),
        "coverage": rows.covered[real].mean(),
    }


def test_stability_equals_the_deviation_over_folds_and_blocks():
    rows, fold = rows_of(0)
    n = len(fold)
    (overall,) = sum_slices(rows, np.zeros(n, np.int64), 1)
    found = stability_family(overall, sum_slices(rows, fold, 5), MetricContext({}))
    assert set(found) == set(FAMILIES["stability"])
    by_fold = [plain_metrics(rows, fold == i) for i in range(5)]
    by_block = [plain_metrics(rows, rows.block == i) for i in range(BLOCKS)]
    for name in CORE_METRICS:
        for word, parts in (("folds", by_fold), ("blocks", by_block)):
            own = found[f"{name}_over_{word}"]
            assert own.value == pytest.approx(np.std([part[name] for part in parts], ddof=1), rel=1e-9)
            assert own.reason == "no interval: this number is itself a spread"
    # The linearised standard error of a share, with blocks as the sampling units.
    whole = plain_metrics(rows, np.ones(n, bool))["diversity"]
    units = [
        ((~rows.in_synthetic_group[own]).astype(float) - whole).sum()
        for own in (~rows.is_real & (rows.block == i) for i in range(BLOCKS))
    ]
    error = math.sqrt(BLOCKS / (BLOCKS - 1) * np.square(units).sum()) / (~rows.is_real).sum()
    assert found["diversity_error"].value == pytest.approx(error, rel=1e-9)
    # For independent rows it is close to the binomial standard error.
    assert error == pytest.approx(math.sqrt(whole * (1 - whole) / (~rows.is_real).sum()), rel=0.5)


def test_the_standard_error_is_about_the_deviation_over_blocks_over_root_20():
    rows, fold = rows_of(1, 6000)
    (overall,) = sum_slices(rows, np.zeros(len(fold), np.int64), 1)
    found = stability_family(overall, sum_slices(rows, fold, 5), MetricContext({}))
    for name in ("diversity", "freshness", "precision", "coverage"):
        over = found[f"{name}_over_blocks"].value / math.sqrt(BLOCKS)
        assert found[f"{name}_error"].value == pytest.approx(over, rel=0.1)


def test_without_a_classifier_or_folds_spreads_have_reasons():
    found = families(drawn(0, 1), drawn(1, 4), "stability")["stability"]
    assert set(found) == set(FAMILIES["stability"])
    for name in ("fidelity", "representativeness"):
        assert found[f"{name}_error"]["value"] is None
        assert "no classifier" in found[f"{name}_error"]["reason"]
    for name in CORE_METRICS:
        own = found[f"{name}_over_folds"]
        assert own["value"] is None
        assert own["reason"] == "fewer than two folds have a value"


# Sums that merge.

FINE = (
    "real",
    "synthetic",
    "real_radii",
    "recalled",
    "authentic",
    "identical",
    "clusters_real",
    "clusters_synthetic",
)


@examples(12)
@given(seed=st.integers(0, 10_000), parts=st.integers(1, 5))
def test_any_split_gives_the_same_figures(seed, parts):
    rng = np.random.default_rng(seed)
    n = 80
    rows, fold = rows_of(seed, n)
    real = rows.is_real
    more = {name: rng.integers(0, 3, n) * (real == (name == "recalled")) for name in FINE[2:6]}
    rows = Indicators(**{**vars(rows), "more": more})
    values = rng.gamma(2, 0.1, n)
    part = rng.integers(0, parts, n)

    def figures(chosen):
        sums, ranks, folds = [], [], []
        for own in chosen:
            taken = Indicators(
                **{
                    name: value if value is None else value[own]
                    for name, value in vars(rows).items()
                    if name != "more"
                },
                more={name: value[own] for name, value in more.items()},
            )
            sums += sum_slices(taken, np.zeros(own.sum(), np.int64), 1)
            folds.append(sum_slices(taken, fold[own], 5))
            ranks.append(sum_ranks(values[own], real[own]))
        whole, ranked = (functools.reduce(operator.add, found) for found in (sums, ranks))
        by_fold = [functools.reduce(operator.add, found) for found in zip(*folds, strict=True)]
        found = {
            **manifold_family(whole, MetricContext({}), K, 40),
            **copying_family(whole, ranked),
            **facts_family({"contrast": ranked})[0],
            **stability_family(whole, by_fold, MetricContext({})),
        }
        return {name: own.to_json() for name, own in found.items()}

    one = figures([np.ones(n, bool)])
    two = figures([part == i for i in rng.permutation(parts)])
    assert one.keys() == two.keys()
    for name, own in one.items():
        assert own.keys() == two[name].keys()
        for key, value in own.items():
            other = two[name][key]
            assert other == (pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value)


# The document.


def checked(item, path=""):
    """Assert that every null value and every missing interval in a nested block has a reason."""
    if isinstance(item, dict) and {"value", "low", "high"} <= item.keys():
        if item["value"] is None or item["low"] is None:
            assert item.get("reason"), path
        if item["value"] is None:
            assert item["low"] is None, path
        if item["low"] is not None:
            assert item["low"] <= item["high"], path
    if isinstance(item, dict):
        for key, child in item.items():
            checked(child, f"{path}.{key}")
    if isinstance(item, list):
        for i, child in enumerate(item):
            checked(child, f"{path}[{i}]")


ONES = np.ones((9, 4), np.float32)
WIDE = np.hstack([drawn(50, 40, 3), np.full((40, 1), 7.0, np.float32)])

DEGENERATE = {
    "one and one": (drawn(0, 1), drawn(1, 1), ["a", "a"]),
    "one and three": (drawn(0, 1), drawn(1, 3), None),
    "three and one": (drawn(0, 3), drawn(1, 1), ["a", "b", "a", "a"]),
    "two and two": (drawn(0, 2), drawn(1, 2), ["a", "b", "a", "b"]),
    "three and three": (drawn(0, 3), drawn(1, 3), [None] * 6),
    "identical rows": (ONES, ONES[:5], ["a"] * 14),
    "identical synthetic rows": (drawn(0, 30, 4), ONES, None),
    "identical real rows": (ONES, drawn(0, 30, 4), ["a", "b", "c"] * 13),
    "one label": (drawn(0, 40), drawn(1, 40), ["a"] * 80),
    "labels of one set": (drawn(0, 40), drawn(1, 40), ["a", "b"] * 20 + [None] * 40),
    "labels apart": (drawn(0, 40), drawn(1, 40), ["a", "b"] * 20 + ["c", "d"] * 20),
    "a constant dimension": (WIDE[:20], WIDE[20:], ["a", "b"] * 20),
    "one dimension": (drawn(0, 25, 1), drawn(1, 25, 1), ["a", "b"] * 25),
    "copies": (drawn(0, 25), drawn(0, 25), ["a", "b", "c", "d", "e"] * 10),
    "huge": (1e15 * drawn(0, 25), 1e15 * drawn(1, 25), None),
    "tiny": (1e-15 * drawn(0, 25), 1e-15 * drawn(1, 25), None),
}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_sets_have_every_metric_and_no_nan(name):
    real, synthetic, labels = DEGENERATE[name]
    config = parse_config({"metrics": {"families": "all", "frechet_infinity": True}})
    kinds = ["real"] * len(real) + ["synthetic"] * len(synthetic)
    block = score_features(np.vstack([real, synthetic]), kinds, labels=labels, config=config).metrics["synthetic"]
    json.dumps(block, allow_nan=False)
    assert list(block["families"]) == list(FAMILIES)
    for family, metrics in FAMILIES.items():
        assert set(block["families"][family]) == set(metrics), family
    checked(block)


def test_metrics_that_are_not_requested_are_null_with_a_reason_and_not_absent():
    # FD-infinity is listed in its family even if metrics.frechet_infinity is not set.
    found = families(drawn(0, 40), drawn(1, 40), "frechet")["frechet"]
    assert set(found) == set(FAMILIES["frechet"])
    assert found["frechet_distance_infinity"]["value"] is None
    assert "frechet_infinity" in found["frechet_distance_infinity"]["reason"]


def test_only_requested_families_are_present_in_a_fixed_order():
    found = families(drawn(0, 20), drawn(1, 20), "facts", "kernel", "manifold")
    assert list(found) == ["manifold", "kernel", "facts"]
    assert families(drawn(0, 20), drawn(1, 20), "core") == {}
