import functools
import math
import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score

from synthscale.metrics.classifier import ClassifierSums, auc, classifier_figures, sum_logits
from synthscale.metrics.core import Indicators, Sums, core_metrics, coverage_reference, metric, sum_up
from tests.reference import brute

FIT = {"folds": 5, "strength": 0.1, "log_loss_by_strength": [[0.1, 0.5]], "converged": True}
NO_REFERENCES: dict[str, float | None] = {"precision": None, "coverage": None}


def answers(seed: int, n: int, m: int, shift: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(size=n), rng.normal(size=m) + shift]), np.arange(n + m) < n


def balanced(is_real: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(is_real, 0.5 / is_real.sum(), 0.5 / (~is_real).sum())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "m", "shift"), [(200, 202, 0.5), (1000, 50, 3.0), (30, 700, -1.0), (300, 300, 0.0)])
def test_classifier_figures_are_those_of_scikit_learn(seed: int, n: int, m: int, shift: float) -> None:
    logit, is_real = answers(seed, n, m, shift)
    weight, p = balanced(is_real), expit(logit)
    figures = classifier_figures(sum_logits(logit, is_real), "kernel", FIT)
    assert figures["auc"]["value"] == pytest.approx(roc_auc_score(~is_real, logit), abs=1e-3)
    assert figures["log_loss"] == pytest.approx(log_loss(~is_real, p, sample_weight=weight))
    assert figures["brier"] == pytest.approx(brier_score_loss(~is_real, p, sample_weight=weight))
    assert figures["accuracy"] == pytest.approx(accuracy_score(~is_real, p >= 0.5, sample_weight=weight))


def expected_calibration_error(p: NDArray[np.float64], y: NDArray[np.bool_], weight: NDArray[np.float64]) -> float:
    """Guo et al. 2017 with 15 equal bins, row by row."""
    bins: dict[int, list[tuple[float, bool, float]]] = {}
    for row in zip(p.tolist(), y.tolist(), weight.tolist(), strict=True):
        bins.setdefault(min(int(row[0] * 15), 14), []).append(row)
    total = 0.0
    for rows in bins.values():
        mass = sum(w for _, _, w in rows)
        confidence = sum(w * p for p, _, w in rows) / mass
        share = sum(w for _, y, w in rows if y) / mass
        total += mass * abs(share - confidence)
    return total


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
@pytest.mark.parametrize(("n", "m"), [(400, 400), (900, 60)])
def test_calibration_error_is_that_of_its_definition(scale: float, n: int, m: int) -> None:
    logit, is_real = answers(7, n, m)
    figures = classifier_figures(sum_logits(scale * logit, is_real), "kernel", FIT)
    p, weight = expit(scale * logit), balanced(is_real)
    assert figures["ece"] == pytest.approx(expected_calibration_error(p, ~is_real, weight), abs=1e-12)
    assert sum(line["weight"] for line in figures["calibration"]) == pytest.approx(1)
    for line in figures["calibration"]:
        inside = np.minimum((p * 15).astype(int), 14) == line["bin"]
        assert line["weight"] == pytest.approx(weight[inside].sum())
        assert line["synthetic"] == pytest.approx(weight[inside & ~is_real].sum() / weight[inside].sum())
        assert line["probability"] == pytest.approx(np.average(p[inside], weights=weight[inside]))


def test_over_confidence_shows_in_the_calibration_error() -> None:
    rng = np.random.default_rng(0)
    is_real, logit = np.arange(4000) < 2000, np.empty(4000)
    # For N(0, 1) against N(1, 1) the true log-odds are x - 1/2.
    logit[:] = rng.normal(size=4000) + ~is_real - 0.5
    honest = classifier_figures(sum_logits(logit, is_real), "kernel", FIT)
    boastful = classifier_figures(sum_logits(4 * logit, is_real), "kernel", FIT)
    assert honest["ece"] < 0.04
    assert boastful["ece"] > 0.15
    assert boastful["log_loss"] > honest["log_loss"]


@given(st.lists(st.tuples(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0]), st.booleans()), min_size=2, max_size=40))
@settings(deadline=None)
def test_ties_count_one_half_in_the_auc(rows: list[tuple[float, bool]]) -> None:
    real = [logit for logit, is_real in rows if is_real]
    synthetic = [logit for logit, is_real in rows if not is_real]
    if not real or not synthetic:
        return
    wins = sum((s > r) + 0.5 * (s == r) for s in synthetic for r in real)
    sums = sum_logits(np.array(real + synthetic), np.arange(len(rows)) < len(real))
    assert auc(sums) == pytest.approx(wins / (len(real) * len(synthetic)))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_the_auc_does_not_depend_on_the_scale_of_the_logits(scale: float) -> None:
    logit, is_real = answers(8, 500, 500)
    assert auc(sum_logits(scale * logit, is_real)) == pytest.approx(roc_auc_score(~is_real, logit), abs=1e-3)


def test_equal_answers_have_an_auc_of_one_half_and_separate_ones_of_one() -> None:
    is_real = np.arange(10) < 4
    assert auc(sum_logits(np.zeros(10), is_real)) == 0.5
    assert auc(sum_logits(np.where(is_real, -1.0, 1.0), is_real)) == 1.0
    assert auc(sum_logits(np.where(is_real, 1.0, -1.0), is_real)) == 0.0
    assert auc(sum_logits(np.where(is_real, -0.0, 0.0), is_real)) == 0.5


def test_rows_without_an_answer_are_left_out() -> None:
    logit, is_real = answers(9, 40, 30)
    more = np.concatenate([logit, [np.nan, np.nan]])
    found = classifier_figures(sum_logits(more, np.append(is_real, [True, False])), "kernel", FIT)
    assert found == classifier_figures(sum_logits(logit, is_real), "kernel", FIT)


@pytest.mark.parametrize("cuts", [(100,), (0, 17, 350)])
def test_classifier_sums_merge_over_any_split(cuts: tuple[int, ...]) -> None:
    logit, is_real = answers(10, 200, 200)
    order = np.random.default_rng(0).permutation(400)
    parts = [sum_logits(logit[part], is_real[part]) for part in np.split(order, cuts)]
    merged = functools.reduce(operator.add, parts, ClassifierSums())
    whole = sum_logits(logit, is_real)
    assert merged.logits == whole.logits
    assert auc(merged) == auc(whole)
    for name in ("count", "log_loss", "brier", "correct", "bin_count", "bin_probability"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-12)


def test_without_a_classifier_every_figure_is_null_with_a_reason() -> None:
    figures = classifier_figures(ClassifierSums(), "kernel", {"folds": 0})
    assert figures["reason"]
    assert figures["auc"]["value"] is None
    assert figures["auc"]["reason"]
    assert [figures[name] for name in ("strength", "accuracy", "log_loss", "brier", "ece")] == [None] * 5


def indicators(seed: int, n: int) -> Indicators:
    rng = np.random.default_rng(seed)
    q, group = rng.random(n), rng.integers(0, 3, n)
    q[rng.random(n) < 0.05] = np.nan
    flags = rng.random((3, n)) < 0.4
    return Indicators(flags[0], q, q**2, group == 1, group == 2, flags[1], flags[2])


@pytest.mark.parametrize("cuts", [(10,), (0, 33, 60)])
def test_core_sums_merge_over_any_split(cuts: tuple[int, ...]) -> None:
    rows = indicators(0, 100)
    masks = [np.isin(np.arange(100), part) for part in np.split(np.random.default_rng(1).permutation(100), cuts)]
    merged = functools.reduce(operator.add, [sum_up(rows, mask) for mask in masks], Sums())
    assert vars(merged) == pytest.approx(vars(sum_up(rows)), rel=1e-12)


def test_the_tutorials_arithmetic() -> None:
    # 200 real, 202 synthetic; 18 synthetic in synthetic-only groups and 5 in groups with real.
    n = 402
    is_real = np.arange(n) < 200
    repeats, mixed = np.zeros(n, bool), np.zeros(n, bool)
    repeats[200:218] = True
    mixed[218:223] = True
    # Real rows in groups count for neither.
    mixed[:5], repeats[10:20] = True, True
    q = np.where(is_real, 0.861, 0.864)
    none = np.zeros(n, bool)
    found = core_metrics(sum_up(Indicators(is_real, q, q, repeats, mixed, none, none)), NO_REFERENCES)
    assert found["diversity"]["value"] == pytest.approx(0.9108910891, abs=1e-10)
    assert found["freshness"]["value"] == pytest.approx(0.9752475248, abs=1e-10)
    assert found["fidelity"]["value"] == pytest.approx(0.136)
    assert found["representativeness"]["value"] == pytest.approx(0.139)


def test_precision_and_coverage_are_shares_of_their_own_class() -> None:
    is_real = np.arange(10) < 4
    inside, covered = np.zeros(10, bool), np.zeros(10, bool)
    inside[[0, 1, 5, 6, 7]] = True
    covered[[0, 1, 2]] = True
    q = np.full(10, 0.5)
    none = np.zeros(10, bool)
    sums = sum_up(Indicators(is_real, q, q, none, none, inside, covered))
    found = core_metrics(sums, {"precision": 0.5, "coverage": 0.9})
    assert found["precision"]["value"] == 3 / 6
    assert found["coverage"]["value"] == 3 / 4
    assert found["precision"]["reference"] == 0.5
    assert found["coverage"]["reference"] == 0.9


@pytest.mark.parametrize(
    ("missing", "null"),
    [
        ("real", {"representativeness", "coverage"}),
        ("synthetic", {"fidelity", "diversity", "freshness", "precision"}),
    ],
)
def test_a_slice_without_a_class_has_null_metrics_with_that_reason(missing: str, null: set[str]) -> None:
    n = 5
    is_real = np.full(n, missing == "synthetic")
    q, none = np.full(n, 0.4), np.zeros(n, bool)
    found = core_metrics(sum_up(Indicators(is_real, q, q, none, none, none, none)), NO_REFERENCES)
    for name, value in found.items():
        assert (value["value"] is None) == (name in null), name
        if name in null:
            assert missing in value["reason"]


def test_without_a_classifier_only_its_two_metrics_are_null() -> None:
    is_real, none = np.arange(6) < 3, np.zeros(6, bool)
    q = np.full(6, np.nan)
    found = core_metrics(sum_up(Indicators(is_real, q, q, none, none, none, none)), NO_REFERENCES)
    assert {name for name, value in found.items() if value["value"] is None} == {"fidelity", "representativeness"}
    assert "classifier" in found["fidelity"]["reason"]


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_metric_that_is_no_number_is_null_with_a_reason(value: float | None) -> None:
    found = metric(value, reference=0.5)
    assert found["value"] is None
    assert found["reason"]


@pytest.mark.parametrize(("n", "m", "expected"), [(500, 500, 0.9692), (2000, 500, 0.6728)])
def test_the_coverage_reference_is_the_checked_one(n: int, m: int, expected: float) -> None:
    assert coverage_reference(n, m, 5) == pytest.approx(expected, abs=5e-5)


def test_the_coverage_reference_is_what_a_simulation_gives() -> None:
    rng = np.random.default_rng(11)
    found = [
        brute.precision_and_coverage(rng.normal(size=(120, 4)), rng.normal(size=(60, 4)))[1] for _ in range(40)
    ]
    assert coverage_reference(120, 60, 5) == pytest.approx(np.mean(found), abs=4 * np.std(found) / 40**0.5)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_there_is_no_coverage_reference_without_a_fifth_neighbour(n: int) -> None:
    assert coverage_reference(n, 100, 5) is None
