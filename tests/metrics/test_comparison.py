"""Differences between generators: formulas, published examples, interval coverage, and rankings."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthscale.metric_names import CORE_METRICS, FAMILIES
from synthscale.metrics.comparison import MetricValue, compare, comparison_blocks, metric_value, ranking
from synthscale.metrics.core import CoreSums, MetricContext, share, within
from synthscale.statistics.estimates import Estimate
from synthscale.statistics.jackknife import T_HALF_WIDTH
from synthscale.tables.schemas import BLOCKS

HIGHER = {
    *CORE_METRICS,
    *("density", "recall", "vendi_score", "authenticity", "privacy_ratio", "utility", "accuracy_synthetic"),
    *("complete_share", "label_coverage", "log_loss"),
}
LOWER = {
    *("auc", "accuracy", "file_facts_auc", "frechet_distance", "frechet_distance_infinity", "kid"),
    *("exact_match_share", "privacy_tail"),
    *(f"{name}_ks" for name in ("brightness", "contrast", "sharpness", "width", "height", "aspect")),
}


def fig(value, low=np.nan, high=np.nan, deviations=None) -> MetricValue:
    return MetricValue(value, low, high, deviations)


def of(estimate: Estimate) -> MetricValue:
    ends = [np.nan if end is None else end for end in (estimate.low, estimate.high)]
    return fig(estimate.value, *ends, estimate.deviations)


def symmetric(value, deviations) -> MetricValue:
    away = T_HALF_WIDTH * np.sqrt(np.square(deviations).sum())
    return fig(value, value - away, value + away, deviations)


def difference(a: MetricValue, b: MetricValue, metric="fidelity"):
    (found,) = compare(("a", {metric: a}), ("b", {metric: b}))
    return found


NUMBERS = st.lists(st.floats(-1, 1).map(lambda x: round(x, 6)), min_size=BLOCKS, max_size=BLOCKS)


@given(one=NUMBERS, two=NUMBERS)
def test_symmetric_intervals_give_the_paired_interval(one, two):
    # A paired jackknife gives this directly: deviations of a difference are differences of deviations.
    a, b = np.array(one), np.array(two)
    found = difference(symmetric(0.4, a), symmetric(0.1, b))
    away = T_HALF_WIDTH * np.sqrt(np.square(a - b).sum())
    assert found.difference == pytest.approx(0.3)
    assert found.low == pytest.approx(0.3 - away, abs=1e-6)
    assert found.high == pytest.approx(0.3 + away, abs=1e-6)


def test_the_literal_formula_with_skewed_intervals():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, BLOCKS))
    r = np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b))
    found = difference(fig(0.9, 0.7, 0.95, a), fig(0.6, 0.55, 0.8, b))
    # Zou 2007, equation for dependent estimates.
    low = 0.3 - np.sqrt((0.9 - 0.7) ** 2 + (0.8 - 0.6) ** 2 - 2 * r * (0.9 - 0.7) * (0.8 - 0.6))
    high = 0.3 + np.sqrt((0.95 - 0.9) ** 2 + (0.6 - 0.55) ** 2 - 2 * r * (0.95 - 0.9) * (0.6 - 0.55))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)


def wilson(successes, n, z=1.959963984540054):
    p = successes / n
    half = z * np.sqrt(p * (1 - p) / n + z * z / 4 / n / n) / (1 + z * z / n)
    middle = (p + z * z / 2 / n) / (1 + z * z / n)
    return fig(p, middle - half, middle + half)


@pytest.mark.parametrize(
    ("one", "two", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)
def test_newcombes_table_of_independent_proportions(one, two, low, high):
    """Newcombe 1998, Statistics in Medicine 17:873, table II, method 10: MOVER of Wilson's intervals."""
    found = difference(wilson(*one), wilson(*two))
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


def fisher(r, n, deviations=None):
    away = 1.959963984540054 / np.sqrt(n - 3)
    return fig(r, np.tanh(np.arctanh(r) - away), np.tanh(np.arctanh(r) + away), deviations)


def test_zous_example_of_overlapping_correlations():
    """Zou 2007: r12 = .396 and r13 = .179 of 66 people, whose correlation is .0526: (-.093, .517)."""
    one, two = np.zeros(BLOCKS), np.zeros(BLOCKS)
    one[3], two[3], two[8] = 2.0, 0.0526, np.sqrt(1 - 0.0526**2)
    found = difference(fisher(0.396, 66, one), fisher(0.179, 66, two))
    assert (found.low, found.high) == pytest.approx((-0.093, 0.517), abs=6e-4)


# Coverage.


def sums_of(block, **columns) -> CoreSums:
    sums = CoreSums()
    for name, values in columns.items():
        sums.by_block(name)[:] = np.bincount(block, values, BLOCKS)
    return sums


def covered(block, indicator) -> Estimate:
    ones = np.ones(len(block))
    return within(
        sums_of(block, real=ones, covered=indicator, clusters_real=ones), "covered", "coverage", MetricContext({})
    )


def fresh(block, copied) -> Estimate:
    ones = np.ones(len(block))
    sums = sums_of(block, synthetic=ones, copies=copied, clusters_synthetic=ones)
    return share(sums, "copies", "synthetic", is_complement=True, reference=1.0)


@pytest.mark.parametrize(("high", "low"), [(0.7, 0.6), (0.5, 0.5), (0.96, 0.9)])
def test_shared_real_rows_are_paired(high, low):
    """Both generators cover mostly the same real rows: the interval contains the difference and is narrow."""
    rng = np.random.default_rng(1)
    hits, paired, unpaired, trials = 0, [], [], 1500
    for _ in range(trials):
        block, easy = rng.integers(0, BLOCKS, 400), rng.random(400)
        again = np.where(rng.random(400) < 0.2, rng.random(400), easy)
        a, b = of(covered(block, easy < high)), of(covered(block, again < low))
        found = difference(a, b, "coverage")
        blind = difference(fig(a.value, a.low, a.high), fig(b.value, b.low, b.high), "coverage")
        hits += found.low <= high - low <= found.high
        paired.append(found.high - found.low)
        unpaired.append(blind.high - blind.low)
    assert 0.93 <= hits / trials <= 0.985
    assert np.mean(paired) < 0.75 * np.mean(unpaired)


@pytest.mark.parametrize(("one", "two"), [(0.1, 0.1), (0.1, 0.25), (0.01, 0.01), (0.0, 0.02)])
def test_generators_that_share_nothing(one, two):
    """Chance correlations of 20 blocks must not make intervals of independent shares too narrow."""
    rng = np.random.default_rng(2)
    hits, trials = 0, 1500
    for _ in range(trials):
        estimates = [fresh(rng.integers(0, BLOCKS, n), rng.random(n) < p) for n, p in ((400, one), (300, two))]
        found = difference(of(estimates[0]), of(estimates[1]), "freshness")
        hits += found.low <= two - one <= found.high
    assert hits / trials >= 0.925


def test_the_difference_of_two_shares_of_1_is_0_with_an_interval_around_it():
    rng = np.random.default_rng(3)
    a, b = (of(fresh(rng.integers(0, BLOCKS, 200), np.zeros(200))) for _ in range(2))
    found = difference(a, b, "freshness")
    assert found.difference == 0
    assert found.better is None
    assert found.low < -0.005
    assert found.high > 0.005


# Which generator is better.


@pytest.mark.parametrize("metric", sorted(HIGHER))
def test_higher_is_better(metric):
    assert difference(fig(0.8, 0.7, 0.9), fig(0.3, 0.2, 0.4), metric).better == "a"
    assert difference(fig(0.3, 0.2, 0.4), fig(0.8, 0.7, 0.9), metric).better == "b"


@pytest.mark.parametrize("metric", sorted(LOWER))
def test_lower_is_better(metric):
    assert difference(fig(0.8, 0.7, 0.9), fig(0.3, 0.2, 0.4), metric).better == "b"
    assert difference(fig(0.3, 0.2, 0.4), fig(0.8, 0.7, 0.9), metric).better == "a"


def test_every_metric_has_a_direction_here_or_is_not_compared():
    names = {*CORE_METRICS, *(name for family in FAMILIES.values() for name in family)}
    # accuracy_real describes the real set alone.
    assert names - HIGHER - LOWER - set(FAMILIES["stability"]) == {"accuracy_real"}


@pytest.mark.parametrize("metric", ["p_value", *FAMILIES["stability"]])
def test_spreads_and_p_values_are_not_compared(metric):
    assert compare(("a", {metric: fig(0.8, 0.7, 0.9)}), ("b", {metric: fig(0.1, 0.0, 0.2)})) == []
    assert comparison_blocks({"a": {metric: fig(0.8)}, "b": {metric: fig(0.1)}}, {}, "control") == {
        "comparisons": [],
        "ranking": {},
    }


@pytest.mark.parametrize("metric", ["fidelity", "auc"])
def test_no_generator_is_better_where_the_interval_contains_zero(metric):
    found = difference(fig(0.5, 0.3, 0.7), fig(0.45, 0.3, 0.6), metric)
    assert found.low < 0 < found.high
    assert found.better is None


@pytest.mark.parametrize("metric", ["coverage", "kid"])
def test_swapping_the_generators_negates_the_difference(metric):
    rng = np.random.default_rng(4)
    a, b = fig(0.9, 0.85, 0.93, rng.normal(size=BLOCKS)), fig(0.6, 0.5, 0.75, rng.normal(size=BLOCKS))
    there, back = difference(a, b, metric), difference(b, a, metric)
    assert (back.difference, back.low, back.high) == pytest.approx(
        (-there.difference, -there.high, -there.low), abs=1e-12
    )
    assert {there.better, back.better} == {"a", "b"}


@given(
    values=st.lists(st.floats(0, 1), min_size=6, max_size=6),
    one=NUMBERS,
    two=NUMBERS,
)
def test_the_difference_lies_in_its_interval(values, one, two):
    (low, value, high), (low_b, value_b, high_b) = sorted(values[:3]), sorted(values[3:])
    found = difference(fig(value, low, high, np.array(one)), fig(value_b, low_b, high_b, np.array(two)))
    assert found.low <= found.difference <= found.high
    assert found.better in (None, "a", "b")


def test_only_metrics_that_both_have_are_compared():
    found = compare(("a", {"fidelity": fig(0.5), "kid": fig(1.0)}), ("b", {"kid": fig(3.0), "coverage": fig(0.1)}))
    assert [(d.metric, d.difference) for d in found] == [("kid", -2.0)]


# Nulls.


@pytest.mark.parametrize("ends", [(np.nan, np.nan), (0.1, np.nan), (np.nan, 0.9)])
def test_without_an_interval_on_either_side_there_is_none(ends):
    for a, b in ((fig(0.5, *ends), fig(0.2, 0.1, 0.3)), (fig(0.5, 0.4, 0.6), fig(0.2, *ends))):
        found = difference(a, b)
        assert found.difference == pytest.approx(0.3)
        assert (found.low, found.high, found.better) == (None, None, None)
        assert json.loads(json.dumps(found.json(), allow_nan=False)) == {
            "metric": "fidelity",
            "one": "a",
            "two": "b",
            "difference": pytest.approx(0.3),
            "low": None,
            "high": None,
            "better": None,
        }


def line(**values):
    return {"value": 0.5, "low": 0.4, "high": 0.6, "deviations": [0.01] * BLOCKS, "synthetic": 100, **values}


def test_lines_of_the_table_become_figures():
    found = metric_value(line())
    assert (found.value, found.low, found.high) == (0.5, 0.4, 0.6)
    assert found.deviations.tolist() == [0.01] * BLOCKS


def test_lines_without_a_value_are_no_figures():
    assert metric_value(line(value=None, low=None, high=None, deviations=None)) is None


@pytest.mark.parametrize("deviations", [None, [None] * BLOCKS, [0.01] * (BLOCKS - 1) + [None]])
def test_unknown_deviations_are_unpaired(deviations):
    found = metric_value(line(deviations=deviations, low=None))
    assert found.deviations is None
    assert np.isnan(found.low)
    blind = difference(metric_value(line(deviations=deviations)), metric_value(line(value=0.45)))
    assert blind.high - blind.low == pytest.approx(np.hypot(0.1, 0.15) + np.hypot(0.1, 0.05))


def test_a_value_of_zero_is_a_value():
    assert metric_value(line(value=0.0, low=0.0, high=0.0)).value == 0


def test_figures_that_do_not_vary_are_unpaired():
    a, b = fig(1.0, 0.98, 1.0, np.zeros(BLOCKS)), fig(0.9, 0.85, 0.94, np.full(BLOCKS, 0.01))
    found = difference(a, b, "freshness")
    assert (found.low, found.high) == pytest.approx((0.1 - np.hypot(0.02, 0.04), 0.1 + 0.05))
    assert found.better == "a"


# Rankings.


def runs(**values):
    """Return coverage values, each with an interval of +-0.1."""
    return {name: {"coverage": fig(value, value - 0.1, value + 0.1)} for name, value in values.items()}


def places(figures, metric="coverage", control="control"):
    found = comparison_blocks(figures, {}, control)["ranking"].get(metric, [])
    return [(rank["generator"], rank["rank"], rank["best"], rank["worst"]) for rank in found]


def test_ranks_are_certain_where_all_generators_differ():
    assert places(runs(b=0.5, a=0.9, c=0.1)) == [("a", 1, 1, 1), ("b", 2, 2, 2), ("c", 3, 3, 3)]


def test_generators_without_a_significant_difference_share_a_range_of_ranks():
    # The interval of the difference excludes 0 beyond 0.1414.
    assert places(runs(a=0.9, b=0.8, c=0.5)) == [("a", 1, 1, 2), ("b", 2, 1, 2), ("c", 3, 3, 3)]
    assert places(runs(a=0.9, b=0.8, c=0.7)) == [("a", 1, 1, 2), ("b", 2, 1, 3), ("c", 3, 2, 3)]


def test_without_intervals_every_rank_is_possible():
    figures = {name: {"coverage": fig(value)} for name, value in (("a", 0.1), ("b", 0.9), ("c", 0.5))}
    assert places(figures) == [("b", 1, 1, 3), ("c", 2, 1, 3), ("a", 3, 1, 3)]


def test_the_lowest_value_ranks_first_where_lower_is_better():
    figures = {name: {"kid": own["coverage"]} for name, own in runs(a=0.9, b=0.1, c=0.5).items()}
    assert places(figures, "kid") == [("b", 1, 1, 1), ("c", 2, 2, 2), ("a", 3, 3, 3)]


def test_the_control_is_compared_and_not_ranked():
    figures = runs(a=0.6, control=0.9, b=0.3)
    found = comparison_blocks(figures, {}, "control")
    assert places(figures) == [("a", 1, 1, 1), ("b", 2, 2, 2)]
    assert [(d["one"], d["two"]) for d in found["comparisons"]] == [("a", "control"), ("a", "b"), ("control", "b")]
    assert [d["better"] for d in found["comparisons"]] == ["control", "a", "control"]


def test_a_generator_without_the_metric_has_no_rank():
    figures = {**runs(a=0.9, b=0.1), "c": {"fidelity": fig(0.5)}}
    assert places(figures) == [("a", 1, 1, 1), ("b", 2, 2, 2)]
    assert [own[0] for own in places(figures, "fidelity")] == ["c"]


@pytest.mark.parametrize("figures", [{}, runs(a=0.5), runs(a=0.5, control=0.9)])
def test_one_generator_is_not_ranked(figures):
    assert comparison_blocks(figures, {}, "control")["ranking"] == {}


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6), st.booleans()
)
def test_a_rank_lies_between_its_best_and_worst(triples, lower):
    metric = "auc" if lower else "coverage"
    figures = {}
    for i, triple in enumerate(triples):
        low, value, high = sorted(triple)
        figures[str(i)] = {metric: fig(value, low, high)}
    differences = [
        d
        for i in range(len(triples))
        for j in range(i)
        for d in compare(*((str(k), figures[str(k)]) for k in (i, j)))
    ]
    ranks = ranking(metric, figures, differences)
    assert [rank.rank for rank in ranks] == list(range(1, len(triples) + 1))
    assert all(1 <= rank.best <= rank.rank <= rank.worst <= len(triples) for rank in ranks)
    ordered = [rank.value for rank in ranks]
    assert ordered == sorted(ordered, reverse=not lower)


def test_the_blocks_can_be_written_as_json():
    rng = np.random.default_rng(5)
    figures = {
        name: {"coverage": fig(np.float64(0.5), 0.4, 0.6, rng.normal(size=BLOCKS)), "kid": fig(1.0)}
        for name in ("a", "b")
    }
    text = json.dumps(comparison_blocks(figures, {}, "control"), allow_nan=False)
    assert set(json.loads(text)) == {"comparisons", "ranking"}
