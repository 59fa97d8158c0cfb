import functools
import json
import math
import operator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score

from synthscale.classify.evaluation import (
    NO_DIFFERENCE,
    ClassifierSums,
    classifier_metrics,
    metrics_over_repeats,
    sum_classifier_errors,
)
from synthscale.statistics.bootstrap import poisson_weights

FIT = {"folds": 5, "strength": 0.1, "log_loss_by_strength": [[0.1, 0.5]], "converged": True}


def answers(seed: int, n: int, m: int, shift: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(size=n), rng.normal(size=m) + shift]), np.arange(n + m) < n


def balanced(is_real: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(is_real, 0.5 / is_real.sum(), 0.5 / (~is_real).sum())


def own_weights(n: int, copies: int = 1) -> NDArray[np.uint8]:
    """Return bootstrap weights of n rows, where each run of ``copies`` consecutive rows is a cluster."""
    return poisson_weights(np.arange(n, dtype=np.uint64) // np.uint64(copies))


def figures_of(logit: NDArray[np.float64], is_real: NDArray[np.bool_], copies: int = 1) -> dict[str, Any]:
    rows = np.full(len(logit), copies)
    return classifier_metrics(
        sum_classifier_errors(logit, is_real, own_weights(len(logit), copies), rows), "kernel", FIT
    )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("n", "m", "shift"), [(200, 202, 0.5), (1000, 50, 3.0), (30, 700, -1.0), (300, 300, 0.0)])
def test_classifier_figures_are_those_of_scikit_learn(seed: int, n: int, m: int, shift: float) -> None:
    logit, is_real = answers(seed, n, m, shift)
    weight, p = balanced(is_real), expit(logit)
    figures = figures_of(logit, is_real)
    assert figures["auc"]["value"] == pytest.approx(roc_auc_score(~is_real, logit), abs=1e-3)
    assert figures["log_loss"]["value"] == pytest.approx(log_loss(~is_real, p, sample_weight=weight))
    assert figures["brier"] == pytest.approx(brier_score_loss(~is_real, p, sample_weight=weight))
    accuracy = accuracy_score(~is_real, p >= 0.5, sample_weight=weight)
    assert figures["accuracy"]["value"] == pytest.approx(accuracy)


def per_row(logit: NDArray[np.float64], is_real: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    """Return each row's contribution to the two metrics that are means."""
    right = (logit >= 0) != is_real
    loss = np.logaddexp(0, np.where(is_real, logit, -logit))
    return {"accuracy": right.astype(float), "log_loss": loss}


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize(("n", "m", "shift"), [(240, 200, 0.5), (1000, 80, 1.5), (60, 700, -1.0)])
def test_intervals_of_means_are_by_the_standard_errors_of_clusters(
    n: int, m: int, shift: float, copies: int
) -> None:
    # Clusters, not rows, are independent. The factor of up to 1.4 is for out-of-fold predictions, whose errors
    # exceed those of a fixed classifier.
    ratios: dict[str, list[float]] = {"accuracy": [], "log_loss": []}
    for seed in range(15):
        logit, is_real = answers(seed, n // copies, m // copies, shift)
        rows = per_row(logit, is_real)
        found = figures_of(np.repeat(logit, copies), np.repeat(is_real, copies), copies)
        for name, values in rows.items():
            one = found[name]
            error = math.hypot(*(values[own].std() / own.sum() ** 0.5 for own in (is_real, ~is_real))) / 2
            ratios[name].append((one["high"] - one["low"]) / (2 * 1.96 * error))
            assert "reason" not in one
    for values in ratios.values():
        assert 0.94 < np.mean(values) < 1.5


@pytest.mark.slow
def test_intervals_hold_the_expected_figures_in_at_least_95_of_100_data_sets() -> None:
    # Logits of a fixed classifier of N(0, 1) against N(1, 1): log-odds x - 1/2.
    logit, is_real = answers(99, 200_000, 200_000)
    true = {name: float(values.mean()) for name, values in per_row(logit - 0.5, is_real).items()}
    hits = dict.fromkeys(true, 0)
    for seed in range(150):
        logit, is_real = answers(seed, 90, 60)
        found = figures_of(logit - 0.5, is_real)
        for name, value in true.items():
            hits[name] += found[name]["low"] <= value <= found[name]["high"]
    assert all(count / 150 >= 0.92 for count in hits.values()), hits


def test_intervals_stay_in_the_range_of_their_figures() -> None:
    for scale, n in ((1.0, 3), (30.0, 3), (30.0, 40), (0.0, 10)):
        logit, is_real = answers(3, n, n)
        found = figures_of(scale * logit, is_real)
        for name, top in (("accuracy", 1.0), ("auc", 1.0), ("log_loss", math.inf)):
            one = found[name]
            if name == "log_loss" and scale == 0:
                # Every row has the same loss, log 2.
                assert (one["low"], one["high"], one["reason"]) == (None, None, NO_DIFFERENCE)
                continue
            assert 0 <= one["low"] <= one["value"] <= one["high"] <= top


@pytest.mark.parametrize("answer", [-1.0, 1.0], ids=["all right", "all wrong"])
def test_an_accuracy_of_all_or_nothing_does_not_claim_to_be_certain(answer: float) -> None:
    # As for any share near 0 or 1 the interval is the exact binomial one, of ten rows of each class.
    is_real = np.arange(20) < 10
    found = figures_of(np.where(is_real, answer, -answer), is_real)["accuracy"]
    end = found["low"] if answer < 0 else 1 - found["high"]
    assert end == pytest.approx(binomtest(10, 10).proportion_ci(0.95, method="exact").low)


@pytest.mark.parametrize("answer", [0.0, 1.3, -1.3])
def test_equal_logits_have_intervals_that_are_no_points_and_no_interval_of_the_log_loss(answer: float) -> None:
    is_real = np.arange(240) < 100
    found = figures_of(np.full(240, answer), is_real)
    assert found["auc"]["value"] == found["accuracy"]["value"] == 0.5
    for name in ("auc", "accuracy"):
        assert found[name]["low"] < 0.5 - 0.01
        assert found[name]["high"] > 0.5 + 0.01
    # That of the accuracy is as wide as that of random logits, which have no error of 0.
    guessing = [figures_of(*answers(seed, 100, 140, 0.0))["accuracy"] for seed in range(20)]
    width = np.mean([one["high"] - one["low"] for one in guessing])
    assert found["accuracy"]["high"] - found["accuracy"]["low"] == pytest.approx(width, rel=0.05)
    assert found["p_value"]["value"] == 1
    assert (found["log_loss"]["low"], found["log_loss"]["high"]) == (None, None)
    assert found["log_loss"]["reason"] == NO_DIFFERENCE


def test_without_weights_figures_have_no_interval_and_say_so() -> None:
    logit, is_real = answers(4, 60, 50)
    found = classifier_metrics(sum_classifier_errors(logit, is_real), "kernel", FIT)
    for name in ("auc", "accuracy", "log_loss"):
        assert found[name]["value"] > 0
        assert (found[name]["low"], found[name]["high"]) == (None, None)
        assert found[name]["reason"]
    assert found["p_value"]["value"] is None
    assert found["p_value"]["reason"]


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
    figures = figures_of(scale * logit, is_real)
    p, weight = expit(scale * logit), balanced(is_real)
    assert figures["ece"] == pytest.approx(expected_calibration_error(p, ~is_real, weight), abs=1e-12)
    assert sum(line["weight"] for line in figures["calibration"]) == pytest.approx(1)
    for line in figures["calibration"]:
        inside = np.minimum((p * 15).astype(int), 14) == line["bin"]
        assert line["weight"] == pytest.approx(weight[inside].sum())
        assert line["synthetic"] == pytest.approx(weight[inside & ~is_real].sum() / weight[inside].sum())
        assert line["probability"] == pytest.approx(np.average(p[inside], weights=weight[inside]))


def test_over_confidence_shows_in_the_calibration_error() -> None:
    # For N(0, 1) against N(1, 1) the true log-odds are x - 1/2.
    logit, is_real = answers(0, 2000, 2000)
    honest, boastful = figures_of(logit - 0.5, is_real), figures_of(4 * logit - 2, is_real)
    assert honest["ece"] < 0.04
    assert boastful["ece"] > 0.15
    assert boastful["log_loss"]["low"] > honest["log_loss"]["high"]
    assert boastful["auc"]["value"] == pytest.approx(honest["auc"]["value"], abs=1e-3)


def test_saturated_logits_give_finite_figures() -> None:
    is_real = np.arange(100) < 50
    for answer in (800.0, -800.0):
        found = figures_of(np.where(is_real, -answer, answer), is_real)
        assert found["log_loss"]["value"] == pytest.approx(0 if answer > 0 else 800)
        assert found["brier"] == pytest.approx(float(answer < 0))
        assert found["ece"] == pytest.approx(float(answer < 0))
        json.dumps(found, allow_nan=False)


def test_rows_with_nan_logits_are_left_out() -> None:
    logit, is_real = answers(9, 40, 30)
    more, kinds = np.append(logit, [np.nan, np.nan]), np.append(is_real, [True, False])
    assert figures_of(more, kinds) == figures_of(logit, is_real)


@pytest.mark.parametrize("cuts", [(100,), (0, 17, 350)])
def test_classifier_sums_merge_over_any_split(cuts: tuple[int, ...]) -> None:
    logit, is_real = answers(10, 200, 200)
    order, drawn = np.random.default_rng(0).permutation(400), own_weights(400, 2)
    parts = [sum_classifier_errors(logit[part], is_real[part], drawn[part]) for part in np.split(order, cuts)]
    merged = functools.reduce(operator.add, parts, ClassifierSums())
    whole = sum_classifier_errors(logit, is_real, drawn)
    found, expected = (classifier_metrics(sums, "kernel", FIT) for sums in (merged, whole))
    # The AUC counts rows and is exact; the other metrics are sums of floats.
    assert (found["auc"], found["p_value"]) == (expected["auc"], expected["p_value"])
    for name in ("accuracy", "log_loss"):
        assert found[name] == pytest.approx(expected[name], rel=1e-12)
    assert (found["brier"], found["ece"]) == pytest.approx((expected["brier"], expected["ece"]), abs=1e-12)
    for one, two in zip(found["calibration"], expected["calibration"], strict=True):
        assert one == pytest.approx(two)


def test_the_figures_are_plain_json_and_say_how_they_were_made() -> None:
    fit = FIT | {"epoch": None, "repeats": None, "calibrated": {"used": False}, "passes": 17}
    logit, is_real = answers(11, 50, 50)
    found = json.loads(
        json.dumps(classifier_metrics(sum_classifier_errors(logit, is_real), "linear", fit), allow_nan=False)
    )
    assert found["head"] == "linear"
    assert (found["folds"], found["strength"], found["converged"]) == (5, 0.1, True)
    assert found["calibrated"] == {"used": False}
    # Keys that do not apply to this kind of head are absent.
    assert not {"epoch", "repeats", "log_loss_by_epoch"} & set(found)


@pytest.mark.parametrize("fit", [{"folds": 0}, {}])
def test_without_a_classifier_every_figure_is_null_with_a_reason(fit: dict[str, Any]) -> None:
    figures = classifier_metrics(ClassifierSums(), "kernel", fit)
    assert figures["reason"]
    for name in ("auc", "accuracy", "log_loss", "p_value"):
        assert figures[name]["value"] is None
        assert figures[name]["reason"]
    assert [figures[name] for name in ("strength", "brier", "ece")] == [None] * 3


def test_the_spread_over_repeats_is_the_deviation_of_the_figures_of_each_repeat() -> None:
    repeats = [answers(seed, 80, 60, 0.7) for seed in range(4)]
    found = metrics_over_repeats([sum_classifier_errors(logit, is_real) for logit, is_real in repeats])
    assert found is not None
    assert found.pop("count") == 4
    expected = {
        "fidelity": [1 - expit(logit[~is_real]).mean() for logit, is_real in repeats],
        "representativeness": [1 - expit(-logit[is_real]).mean() for logit, is_real in repeats],
        "auc": [roc_auc_score(~is_real, logit) for logit, is_real in repeats],
        "log_loss": [log_loss(~y, expit(z), sample_weight=balanced(y)) for z, y in repeats],
    }
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name]["mean"] == pytest.approx(np.mean(values), abs=1e-3)
        assert found[name]["deviation"] == pytest.approx(np.std(values, ddof=1), abs=1e-3)


def test_one_repeat_has_no_spread_and_equal_repeats_a_spread_of_zero() -> None:
    sums = sum_classifier_errors(*answers(12, 30, 30))
    assert metrics_over_repeats([sums]) is None
    assert metrics_over_repeats([]) is None
    found = metrics_over_repeats([sums, sums])
    assert found is not None
    assert [found[name]["deviation"] for name in ("fidelity", "representativeness", "auc", "log_loss")] == [0] * 4
