import json
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from synthscale.classifier import (
    FoldPlan,
    TrainingRows,
    bandwidth_rows,
    fit_generators,
    log_prior,
    plan_folds,
)
from synthscale.config import ClassifierConfig
from synthscale.features import FeatureMap
from synthscale.logistic import Fit

Groups = tuple[NDArray[np.int64], NDArray[np.int64]]
NO_GROUPS: Groups = (np.empty(0, np.int64), np.empty(0, np.int64))
LINEAR = ClassifierConfig(head="linear")


@dataclass
class Result:
    """One generator's out-of-fold answers."""

    plan: FoldPlan
    features: torch.Tensor
    fit: Fit
    logit: NDArray[np.float64]

    def fidelity(self, prior: float | NDArray[np.float64] = 0.0) -> float:
        """1 - mean q over synthetic rows, the logits moved by a prior."""
        return 1 - float(expit(self.logit + prior)[~self.plan.is_real].mean())

    def auc(self) -> float:
        return float(roc_auc_score(~self.plan.is_real, self.logit))


def classify(
    real: NDArray[np.float64],
    synthetic: NDArray[np.float64],
    settings: ClassifierConfig = LINEAR,
    groups: Groups = NO_GROUPS,
) -> Result:
    x = torch.from_numpy(np.vstack([real, synthetic]).astype(np.float32))
    n = len(x)
    rows, is_real = np.arange(n), np.arange(n) < len(real)
    ids = [f"id-{i}" for i in range(n)]
    plan = plan_folds(rows, ids, is_real, groups, settings)
    training = TrainingRows(rows, x, {"fake": plan.fold}, is_real, np.zeros(n, np.bool_))
    feature_map, fits = fit_generators(training, {"fake": plan.folds}, bandwidth_rows(plan, ids), settings)
    features = feature_map(x)
    return Result(plan, features, fits["fake"], fits["fake"].heads.out_of_fold_logits(features, plan.fold))


def normal(seed: int, n: int, d: int = 16, mean: float = 0.0, variance: float = 1.0) -> NDArray[np.float64]:
    return mean + variance**0.5 * np.random.default_rng(seed).normal(size=(n, d))


@pytest.mark.parametrize("head", ["linear", "kernel"])
@pytest.mark.parametrize("collapsed", [False, True], ids=["plain", "collapsed"])
def test_heads_on_the_mapped_features_are_those_of_scikit_learn(head: str, collapsed: bool) -> None:
    real, synthetic = normal(0, 250), normal(1, 200, mean=0.3, variance=0.6)
    groups = NO_GROUPS
    if collapsed:
        # Half of the synthetic rows are one image, in one fold.
        synthetic[:100] = synthetic[0] + 1e-3 * synthetic[:100]
        groups = (np.arange(250, 350), np.full(100, 250))
    settings = ClassifierConfig(head=head, strengths=(1e-3,))  # type: ignore[arg-type]
    result = classify(real, synthetic, settings, groups)
    assert result.fit.converged
    x, y, fold = result.features.numpy(), ~result.plan.is_real, result.plan.fold
    for f in range(result.plan.folds):
        training = fold != f
        model = LogisticRegression(
            C=1 / (1e-3 * training.sum()), class_weight="balanced", tol=1e-9, max_iter=50_000
        )
        model.fit(x[training], y[training])
        difference = np.abs(expit(result.logit[~training]) - model.predict_proba(x[~training])[:, 1])
        assert difference.max() <= 1e-3
        assert difference.mean() <= 1e-4


@pytest.mark.parametrize("head", ["linear", "kernel"])
def test_equal_distributions_cannot_be_told_apart(head: str) -> None:
    settings = ClassifierConfig(head=head)  # type: ignore[arg-type]
    result = classify(normal(2, 2000), normal(3, 2000), settings)
    assert result.fidelity() == pytest.approx(0.5, abs=0.02)
    assert result.auc() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("head", ["linear", "kernel"])
@pytest.mark.parametrize(("n", "m"), [(2000, 200), (200, 2000)])
def test_unequal_sizes_do_not_move_fidelity_from_one_half(head: str, n: int, m: int) -> None:
    settings = ClassifierConfig(head=head)  # type: ignore[arg-type]
    assert classify(normal(4, n), normal(5, m), settings).fidelity() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("n", "m"), [(2000, 2000), (2000, 200), (200, 2000)])
@pytest.mark.parametrize("weight", ["balanced", "none"])
def test_a_known_shift_of_the_mean_gives_its_closed_form(n: int, m: int, weight: str) -> None:
    # N(0, I_16) against N(0.25, I_16): the Bayes classifier's fidelity and representativeness are 0.397. One draw
    # of 200 rows alone has a standard error of 0.012, hence the mean over several.
    settings = ClassifierConfig(head="linear", class_weight=weight)  # type: ignore[arg-type]
    results = [classify(normal(2 * s, n), normal(2 * s + 1, m, mean=0.25), settings) for s in range(100, 106)]
    assert np.mean([result.fidelity() for result in results]) == pytest.approx(0.397, abs=0.02)
    representativeness = [1 - expit(-result.logit)[result.plan.is_real].mean() for result in results]
    assert np.mean(representativeness) == pytest.approx(0.397, abs=0.02)


def test_only_the_kernel_head_sees_a_difference_of_spread() -> None:
    real, narrow = normal(8, 2000, 32), normal(9, 2000, 32, variance=0.5)
    kernel = classify(real, narrow, ClassifierConfig())
    assert kernel.auc() > 0.94
    assert kernel.fidelity() < 0.25
    assert kernel.fit.converged
    linear = classify(real, narrow)
    assert linear.auc() == pytest.approx(0.5, abs=0.04)
    assert linear.fidelity() == pytest.approx(0.5, abs=0.02)


def test_weights_in_the_loss_and_odds_scaled_afterwards_agree() -> None:
    real, synthetic = normal(10, 2000), normal(11, 500, mean=0.2)
    balanced = classify(real, synthetic)
    scaled = classify(real, synthetic, ClassifierConfig(head="linear", class_weight="none"))
    assert np.abs(expit(balanced.logit) - expit(scaled.logit)).mean() < 0.02
    assert balanced.fidelity() == pytest.approx(scaled.fidelity(), abs=0.01)


@pytest.mark.parametrize("weight", ["balanced", "none"])
@pytest.mark.parametrize("m", [222, 2000, 6000])
def test_with_the_prior_back_in_the_odds_fidelity_is_one_minus_the_synthetic_share(weight: str, m: int) -> None:
    settings = ClassifierConfig(head="linear", class_weight=weight)  # type: ignore[arg-type]
    result = classify(normal(12, 2000), normal(13, m), settings)
    assert result.fidelity() == pytest.approx(0.5, abs=0.05)
    assert result.fidelity(result.plan.log_prior) == pytest.approx(2000 / (2000 + m), abs=0.02)


def repeats(seed: int, source: NDArray[np.float64], times: int) -> NDArray[np.float64]:
    return np.repeat(source, times, axis=0) + 0.01 * np.random.default_rng(seed).normal(
        size=(times * len(source), source.shape[1])
    )


def test_repeated_images_do_not_leak_through_the_folds() -> None:
    real, synthetic = normal(14, 1000), repeats(0, normal(15, 250), 4)
    grouped = (np.arange(1000, 2000), 1000 + np.arange(1000) // 4 * 4)
    kernel = ClassifierConfig()
    assert classify(real, synthetic, kernel, grouped).auc() < 0.54
    # The test can tell: dealt row by row, the copies are recognised.
    assert classify(real, synthetic, kernel).auc() > 0.56


def test_jittered_copies_of_real_images_look_no_better_than_real() -> None:
    real = normal(16, 800)
    copies = repeats(1, real, 1)
    grouped = (np.arange(1600), np.tile(np.arange(800), 2))
    assert classify(real, copies, ClassifierConfig(), grouped).fidelity() < 0.52


def test_every_row_of_a_group_is_in_one_fold() -> None:
    rows, is_real = np.arange(10, 110), np.arange(100) % 2 == 0
    member = np.arange(10, 70)
    plan = plan_folds(rows, [f"{i}" for i in range(100)], is_real, (member, member // 6), LINEAR)
    for group in np.unique(member // 6):
        assert len(set(plan.fold[np.isin(rows, member[member // 6 == group])].tolist())) == 1
    assert plan.folds == 5


def test_the_deal_depends_on_ids_and_not_on_row_numbers() -> None:
    rng = np.random.default_rng(0)
    ids, is_real = [f"file-{i}" for i in range(60)], np.arange(60) < 30
    group = np.arange(60) // 3
    move = rng.permutation(60)

    def deal(order: NDArray[np.int64]) -> dict[str, int]:
        # A group is named by its smallest row, so its name changes with the order too.
        own = group[order]
        named = np.array([np.flatnonzero(own == g).min() for g in own])
        plan = plan_folds(np.arange(60), [ids[i] for i in order], is_real[order], (np.arange(60), named), LINEAR)
        return dict(zip([ids[i] for i in order], plan.fold.tolist(), strict=True))

    assert deal(np.arange(60)) == deal(move)


def test_a_class_in_one_group_has_no_classifier() -> None:
    plan = plan_folds(np.arange(4), list("abcd"), np.arange(4) < 2, (np.arange(2), np.zeros(2, np.int64)), LINEAR)
    assert plan.folds == 0
    assert plan.training_counts == []
    assert plan.log_prior.tolist() == [0, 0, 0, 0]


def test_the_prior_is_that_of_the_rows_outside_the_fold() -> None:
    found = log_prior([[10, 5], [4, 8]], np.array([0, 1, 1]))
    np.testing.assert_allclose(found, [np.log(0.5), np.log(2), np.log(2)])
    plan = plan_folds(np.arange(30), [f"{i}" for i in range(30)], np.arange(30) < 20, NO_GROUPS, LINEAR)
    outside = plan.fold != 3
    assert plan.training_counts[3] == [(outside & plan.is_real).sum(), (outside & ~plan.is_real).sum()]


def two_generators() -> tuple[NDArray[np.int64], torch.Tensor, NDArray[np.bool_], dict[str, FoldPlan], list[str]]:
    """300 real rows and two generators, their plans, and the ids."""
    x = torch.from_numpy(np.vstack([normal(17, 300), normal(18, 200, mean=0.2), normal(19, 400, variance=3)]))
    rows, is_real = np.arange(900), np.arange(900) < 300
    ids = [f"{i}" for i in range(900)]
    plans = {}
    for name, start, stop in (("a", 300, 500), ("b", 500, 900)):
        own = np.concatenate([np.arange(300), np.arange(start, stop)])
        plans[name] = plan_folds(own, [ids[i] for i in own], is_real[own], NO_GROUPS, ClassifierConfig())
    return rows, x.float(), is_real, plans, ids


Fitted = tuple[FeatureMap, dict[str, Fit]]


def logits(fitted: Fitted, x: torch.Tensor, plans: dict[str, FoldPlan]) -> dict[str, NDArray[np.float64]]:
    feature_map, fits = fitted
    return {
        name: fit.heads.out_of_fold_logits(feature_map(x[plans[name].row]), plans[name].fold)
        for name, fit in fits.items()
    }


def fold_columns(plans: dict[str, FoldPlan], n: int) -> dict[str, NDArray[np.int8]]:
    columns = {}
    for name, plan in plans.items():
        columns[name] = np.full(n, -1, np.int8)
        columns[name][plan.row] = plan.fold
    return columns


def test_a_generators_heads_do_not_change_beside_another() -> None:
    rows, x, is_real, plans, ids = two_generators()
    settings, none = ClassifierConfig(), np.zeros(900, np.bool_)
    sample = bandwidth_rows(plans["a"], [ids[i] for i in plans["a"].row])
    assert sample.tolist() == bandwidth_rows(plans["b"], [ids[i] for i in plans["b"].row]).tolist()
    columns, k = fold_columns(plans, 900), {name: plan.folds for name, plan in plans.items()}
    both = fit_generators(TrainingRows(rows, x, columns, is_real, none), k, sample, settings)
    keep = plans["a"].row
    alone = fit_generators(
        TrainingRows(keep, x[keep], {"a": plans["a"].fold}, is_real[keep], none[keep]),
        {"a": k["a"]},
        sample,
        settings,
    )
    mine = {"a": plans["a"]}
    np.testing.assert_allclose(
        expit(logits(both, x, plans)["a"]), expit(logits(alone, x, mine)["a"]), atol=1e-5, rtol=0
    )
    assert both[1]["a"].strength == alone[1]["a"].strength


@pytest.mark.parametrize("cuts", [(400,), (100, 320)], ids=["two", "three"])
def test_workers_with_a_share_of_the_rows_each_find_the_same_heads(cuts: tuple[int, ...]) -> None:
    # The cuts leave workers without a row of one generator, and one without a real row.
    rows, x, is_real, plans, ids = two_generators()
    is_copy = np.zeros(900, np.bool_)
    is_copy[5:20] = True
    sample = bandwidth_rows(plans["a"].with_copies(is_copy[plans["a"].row]), [ids[i] for i in plans["a"].row])
    columns, k = fold_columns(plans, 900), {name: plan.folds for name, plan in plans.items()}
    settings = ClassifierConfig(strengths=(1e-4, 1e-2, float("inf")))
    whole = fit_generators(TrainingRows(rows, x, columns, is_real, is_copy), k, sample, settings)
    parts = np.split(rows, cuts)
    barrier, shelf = threading.Barrier(len(parts), timeout=60), [torch.empty(0)] * len(parts)
    found: list[Any] = [None] * len(parts)

    def worker(rank: int) -> None:
        def reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
            shelf[rank] = tensor
            barrier.wait()
            total = torch.stack(shelf).sum(0)
            barrier.wait()
            return total

        p = parts[rank]
        own = TrainingRows(p, x[p], {name: c[p] for name, c in columns.items()}, is_real[p], is_copy[p])
        try:
            found[rank] = fit_generators(own, k, sample, settings, reduce_sum)
        finally:
            if found[rank] is None:
                barrier.abort()

    threads = [threading.Thread(target=worker, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = logits(whole, x, plans)
    for fitted in found:
        for name, logit in logits(fitted, x, plans).items():
            np.testing.assert_allclose(expit(logit), expit(expected[name]), atol=1e-5, rtol=0)
            assert fitted[1][name].strength == whole[1][name].strength


def test_standardisation_and_bandwidth_come_from_the_distinct_real_rows() -> None:
    rows, x, is_real, plans, ids = two_generators()
    is_copy = np.zeros(900, np.bool_)
    is_copy[100:300] = True
    x[100:300] = x[0]
    view = plans["a"].with_copies(is_copy[plans["a"].row])
    sample = bandwidth_rows(view, [ids[i] for i in view.row])
    assert sample.tolist() == list(range(100))
    settings = ClassifierConfig(strengths=(1.0,))
    training = TrainingRows(rows, x, fold_columns(plans, 900), is_real, is_copy)
    feature_map, _ = fit_generators(training, {"a": view.folds}, sample, settings)
    np.testing.assert_allclose(feature_map.mean.numpy(), x[:100].double().mean(0).numpy(), atol=1e-6)
    np.testing.assert_allclose(feature_map.scale.numpy(), x[:100].double().std(0, correction=0).numpy(), rtol=1e-6)


def test_the_summary_is_plain_json() -> None:
    summary = classify(normal(20, 100), normal(21, 100)).fit.summary()
    assert summary["strength"] == "inf" or summary["strength"] > 0
    assert "inf" in [strength for strength, _ in summary["log_loss_by_strength"]]
    json.dumps(summary, allow_nan=False)
