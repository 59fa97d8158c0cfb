import math
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from synthscale.logistic import Fit, Rows, fit_folds

FOLDS = 4


def problem(
    seed: int, n: int, m: int, d: int = 6, shift: float = 0.4
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int8]]:
    """Features, class and fold of n real and m synthetic rows."""
    rng = np.random.default_rng(seed)
    x = np.vstack([rng.normal(size=(n, d)), rng.normal(size=(m, d)) + shift])
    # An offset and unequal scales: a real kernel head's features are neither centred nor of one size.
    x = x * np.geomspace(0.1, 3, d) + 2
    fold = np.concatenate([np.arange(n) % FOLDS, np.arange(m) % FOLDS]).astype(np.int8)
    return x, np.arange(n + m) >= n, fold


def rows_of(x: NDArray[np.float64], synthetic: NDArray[np.bool_], fold: NDArray[np.int8]) -> Rows:
    return Rows(torch.from_numpy(x), torch.from_numpy(synthetic), torch.from_numpy(fold))


def probabilities(fit: Fit, x: NDArray[np.float64], fold: NDArray[np.int8]) -> NDArray[np.float64]:
    return expit(fit.heads.out_of_fold_logits(torch.from_numpy(x), fold))


def by_scikit_learn(
    x: NDArray[np.float64], synthetic: NDArray[np.bool_], fold: NDArray[np.int8], strength: float, balanced: bool
) -> NDArray[np.float64]:
    """Out-of-fold balanced probabilities.

    scikit-learn minimises C sum_i w_i loss_i + |w|^2 / 2; ours divides the weights by their sum and has the
    strength before the penalty, so C = 1 / (strength x sum of w).
    """
    p = np.empty(len(x))
    for f in np.unique(fold):
        inside, training = fold == f, fold != f
        c = 1 / (strength * training.sum())
        model = LogisticRegression(C=c, class_weight="balanced" if balanced else None, tol=1e-10, max_iter=100_000)
        model.fit(x[training], synthetic[training])
        logit = model.decision_function(x[inside])
        if not balanced:
            logit -= math.log(synthetic[training].sum() / (~synthetic[training]).sum())
        p[inside] = expit(logit)
    return p


@pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "unweighted"])
@pytest.mark.parametrize("strength", [1e-5, 1e-3, 1e-1, 10.0])
@pytest.mark.parametrize(("n", "m"), [(120, 120), (300, 40)])
def test_heads_are_those_of_scikit_learn(balanced: bool, strength: float, n: int, m: int) -> None:
    x, synthetic, fold = problem(0, n, m)
    fit = fit_folds(rows_of(x, synthetic, fold), FOLDS, (strength,), balanced)
    difference = np.abs(probabilities(fit, x, fold) - by_scikit_learn(x, synthetic, fold, strength, balanced))
    assert fit.converged
    assert difference.max() <= 1e-3
    assert difference.mean() <= 1e-4


def test_more_features_than_rows_agree_with_scikit_learn() -> None:
    x, synthetic, fold = problem(1, 40, 40, d=150, shift=0.1)
    fit = fit_folds(rows_of(x, synthetic, fold), FOLDS, (1e-2,), True)
    difference = np.abs(probabilities(fit, x, fold) - by_scikit_learn(x, synthetic, fold, 1e-2, True))
    assert difference.max() <= 1e-3
    assert difference.mean() <= 1e-4


@pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "unweighted"])
def test_the_strength_with_the_least_balanced_log_loss_is_chosen(balanced: bool) -> None:
    x, synthetic, fold = problem(2, 200, 60, shift=0.2)
    strengths = (1e-4, 1e-2, 1.0)
    fit = fit_folds(rows_of(x, synthetic, fold), FOLDS, strengths, balanced)
    weight = np.where(synthetic, 1 / synthetic.sum(), 1 / (~synthetic).sum())
    for strength in strengths:
        p = by_scikit_learn(x, synthetic, fold, strength, balanced)
        assert fit.log_loss[strength] == pytest.approx(log_loss(synthetic, p, sample_weight=weight), abs=1e-5)
    assert fit.strength == min(fit.log_loss, key=fit.log_loss.get)  # type: ignore[arg-type]
    alone = fit_folds(rows_of(x, synthetic, fold), FOLDS, (fit.strength,), balanced)
    np.testing.assert_allclose(probabilities(fit, x, fold), probabilities(alone, x, fold), atol=1e-5)


@pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "unweighted"])
def test_the_intercept_only_model_says_one_half(balanced: bool) -> None:
    x, synthetic, fold = problem(3, 90, 30)
    fit = fit_folds(rows_of(x, synthetic, fold), FOLDS, (math.inf,), balanced)
    np.testing.assert_allclose(probabilities(fit, x, fold), 0.5, atol=1e-12)
    assert fit.log_loss[math.inf] == pytest.approx(math.log(2))


def test_noise_is_given_the_intercept_only_model_or_nearly() -> None:
    rng = np.random.default_rng(4)
    x, synthetic = rng.normal(size=(200, 50)), np.arange(200) % 2 == 0
    fold = (np.arange(200) // 2 % FOLDS).astype(np.int8)
    fit = fit_folds(rows_of(x, synthetic, fold), FOLDS, (1e-4, 1e-2, 1.0, math.inf), True)
    assert fit.strength >= 1
    assert np.abs(probabilities(fit, x, fold) - 0.5).max() < 0.2


@pytest.mark.parametrize("strength", [1e-6, 1e-3])
def test_separable_data_converges_to_finite_heads(strength: float) -> None:
    x, synthetic, fold = problem(5, 100, 100, shift=30.0)
    fit = fit_folds(rows_of(x, synthetic, fold), FOLDS, (strength,), True)
    assert fit.converged
    assert torch.isfinite(fit.heads.weights).all()
    assert torch.isfinite(fit.heads.intercepts).all()
    p = probabilities(fit, x, fold)
    assert (p[synthetic] > 0.9).all()
    assert (p[~synthetic] < 0.1).all()
    difference = np.abs(p - by_scikit_learn(x, synthetic, fold, strength, True))
    assert difference.max() <= 1e-3


def test_constant_and_repeated_features_do_no_harm() -> None:
    x, synthetic, fold = problem(6, 80, 80)
    x = np.hstack([x, x[:, :2], np.ones((160, 1)), np.zeros((160, 1))])
    fit = fit_folds(rows_of(x, synthetic, fold), FOLDS, (1e-3,), True)
    difference = np.abs(probabilities(fit, x, fold) - by_scikit_learn(x, synthetic, fold, 1e-3, True))
    assert fit.converged
    assert difference.max() <= 1e-3


def test_a_row_does_not_enter_the_head_of_its_own_fold() -> None:
    x, synthetic, fold = problem(7, 60, 60)
    changed = x.copy()
    changed[fold == 2] = 3 * np.random.default_rng(0).normal(size=changed[fold == 2].shape)
    plain = fit_folds(rows_of(x, synthetic, fold), FOLDS, (1e-1,), True)
    other = fit_folds(rows_of(changed, synthetic, fold), FOLDS, (1e-1,), True)
    torch.testing.assert_close(other.heads.weights[2], plain.heads.weights[2], rtol=0, atol=1e-5)
    assert not torch.allclose(other.heads.weights[1], plain.heads.weights[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("scale", [3, 10])
def test_a_fold_unlike_the_others_still_converges(scale: float) -> None:
    # Groups are never split, so a large group of odd rows lies in one fold, and that fold's head never sees it.
    x, synthetic, fold = problem(7, 60, 60)
    x[fold == 2] = scale * np.random.default_rng(0).normal(size=x[fold == 2].shape)
    fit = fit_folds(rows_of(x, synthetic, fold), FOLDS, (1e-3,), True)
    assert fit.converged
    assert np.abs(probabilities(fit, x, fold) - by_scikit_learn(x, synthetic, fold, 1e-3, True)).max() <= 1e-3


ReduceSum = Callable[[torch.Tensor], torch.Tensor]


def on_workers(parts: list[Rows], work: Callable[[Rows, ReduceSum], Fit]) -> list[Fit]:
    """Run ``work`` on every part in a thread of its own, with sums over all parts as torch.distributed has."""
    barrier = threading.Barrier(len(parts), timeout=30)
    shelf: list[torch.Tensor] = [torch.empty(0)] * len(parts)
    results: list[Fit | None] = [None] * len(parts)

    def worker(rank: int) -> None:
        def reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
            shelf[rank] = tensor
            barrier.wait()
            total = torch.stack(shelf).sum(0)
            barrier.wait()
            return total

        try:
            results[rank] = work(parts[rank], reduce_sum)
        finally:
            if results[rank] is None:
                barrier.abort()

    threads = [threading.Thread(target=worker, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result is not None for result in results)
    return [result for result in results if result is not None]


@pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "unweighted"])
@pytest.mark.parametrize("cuts", [(70,), (10, 200), (0, 150)], ids=["two", "three", "one-empty"])
def test_any_split_over_workers_gives_the_same_probabilities(balanced: bool, cuts: tuple[int, ...]) -> None:
    x, synthetic, fold = problem(8, 150, 90)
    order = np.random.default_rng(0).permutation(240)
    strengths = (1e-5, 1e-3, 1e-1, math.inf)
    whole = fit_folds(rows_of(x, synthetic, fold), FOLDS, strengths, balanced)
    parts = [rows_of(x[part], synthetic[part], fold[part]) for part in np.split(order, cuts)]
    fits = on_workers(parts, lambda rows, reduce: fit_folds(rows, FOLDS, strengths, balanced, reduce))
    for fit in fits:
        assert fit.strength == whole.strength
        np.testing.assert_allclose(probabilities(fit, x, fold), probabilities(whole, x, fold), atol=1e-5)
        assert torch.equal(fit.heads.weights, fits[0].heads.weights)
