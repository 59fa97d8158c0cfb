import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from synthscale.classify import batched_lbfgs as descent
from synthscale.classify.fit_context import FitContext, FitState, ReduceSum
from synthscale.classify.fold_views import FeatureBlock, FoldView
from synthscale.classify.logistic import LogisticFit, fit_logistic_heads
from synthscale.tables.id_hashes import Hashes, hash_ids
from synthscale.tables.schemas import REAL
from tests.classify.trainings import on_workers

FOLDS = 4
Floats = NDArray[np.float64]
balanced_or_not = pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "unweighted"])


@dataclass(frozen=True)
class Rows:
    """Features, class and fold in each repeat of the rows of a real set and one generator."""

    x: Floats
    synthetic: NDArray[np.bool_]
    fold: NDArray[np.int8]
    key: Hashes

    @classmethod
    def of(cls, x: Floats, synthetic: NDArray[np.bool_], *repeats: NDArray[np.integer]) -> "Rows":
        fold = np.stack(repeats, 1).astype(np.int8)
        return cls(x, synthetic, fold, hash_ids(f"{i}" for i in range(len(x))))

    def take(self, rows: NDArray[np.integer]) -> "Rows":
        return Rows(self.x[rows], self.synthetic[rows], self.fold[rows], self.key[rows])

    def blocks(self) -> list[FeatureBlock]:
        found = []
        for name, own in ((REAL, ~self.synthetic), ("fake", self.synthetic)):
            if own.any():
                features, fold = torch.from_numpy(self.x[own]), torch.from_numpy(self.fold[own])
                found.append(FeatureBlock(name, features, fold, self.key[own]))
        return found

    @property
    def views(self) -> list[FoldView]:
        return [FoldView("fake", i, int(fold.max()) + 1) for i, fold in enumerate(self.fold.T)]

    def fit(
        self,
        strengths: tuple[float, ...],
        balanced: bool = True,
        workers: FitContext | None = None,
        views: int = 0,
    ) -> LogisticFit:
        return fit_logistic_heads(
            self.views[: views or None], strengths, self.blocks, balanced=balanced, workers=workers or FitContext()
        )["fake"]

    def probabilities(self, fit: LogisticFit, repeat: int = 0) -> Floats:
        return expit(fit.heads[repeat].out_of_fold_logits(torch.from_numpy(self.x), self.fold[:, repeat]))


def rows(seed: int, n: int, m: int, d: int = 6, shift: float = 0.4, repeats: int = 1) -> Rows:
    """N real and m synthetic rows."""
    rng = np.random.default_rng(seed)
    x = np.vstack([rng.normal(size=(n, d)), rng.normal(size=(m, d)) + shift])
    # An offset and unequal scales: a real kernel head's features are neither centred nor of one size.
    x = x * np.geomspace(0.1, 3, d) + 2
    fold = np.concatenate([np.arange(n) % FOLDS, np.arange(m) % FOLDS])
    others = [np.random.default_rng(seed + repeat).permutation(fold) for repeat in range(1, repeats)]
    return Rows.of(x, np.arange(n + m) >= n, fold, *others)


def by_scikit_learn(data: Rows, strength: float, balanced: bool, repeat: int = 0) -> Floats:
    """Out-of-fold balanced probabilities.

    scikit-learn minimises C sum_i w_i loss_i + |w|^2 / 2; ours divides the weights by their sum and has the
    strength before the penalty, so C = 1 / (strength x sum of w).
    """
    p = np.empty(len(data.x))
    for f in np.unique(data.fold[:, repeat]):
        inside, training = data.fold[:, repeat] == f, data.fold[:, repeat] != f
        c = 1 / (strength * training.sum())
        model = LogisticRegression(C=c, class_weight="balanced" if balanced else None, tol=1e-10, max_iter=100_000)
        model.fit(data.x[training], data.synthetic[training])
        logit = model.decision_function(data.x[inside])
        if not balanced:
            logit -= math.log(data.synthetic[training].sum() / (~data.synthetic[training]).sum())
        p[inside] = expit(logit)
    return p


def assert_close(found: Floats, expected: Floats) -> None:
    difference = np.abs(found - expected)
    assert difference.max() <= 1e-3
    assert difference.mean() <= 1e-4


@balanced_or_not
@pytest.mark.parametrize("strength", [1e-5, 1e-3, 1e-1, 10.0])
@pytest.mark.parametrize(("n", "m"), [(120, 120), (300, 30), (30, 300)])
def test_heads_agree_with_scikit_learn(balanced: bool, strength: float, n: int, m: int) -> None:
    data = rows(0, n, m)
    fit = data.fit((strength,), balanced)
    assert fit.converged
    assert_close(data.probabilities(fit), by_scikit_learn(data, strength, balanced))


@balanced_or_not
def test_more_features_than_rows_agree_with_scikit_learn(balanced: bool) -> None:
    data = rows(1, 40, 40, d=150, shift=0.1)
    fit = data.fit((1e-2,), balanced)
    assert fit.converged
    assert_close(data.probabilities(fit), by_scikit_learn(data, 1e-2, balanced))


def scaled_loss(data: Rows, strength: float, balanced: bool, repeat: int = 0) -> float:
    """Class-balanced log-loss of scikit-learn's logits, each fold's scaled by a regression on the other folds'.

    Slope and offset are held to 1 and 0 by a ridge of one over the rows of the smaller class.
    """
    p = by_scikit_learn(data, strength, balanced, repeat)
    x, y, fold = logit(p), data.synthetic, data.fold[:, repeat]
    result = np.empty(len(x))
    for f in np.unique(fold):
        inside = fold == f
        weight = np.where(y, 0.5 / (y & ~inside).sum(), 0.5 / (~y & ~inside).sum())[~inside]
        ridge = 1 / min((y & ~inside).sum(), (~y & ~inside).sum())

        def loss(at, x=x[~inside], y=y[~inside], weight=weight, ridge=ridge):
            margin = np.where(y, -1, 1) * (at[0] * x + at[1])
            return weight @ np.logaddexp(0, margin) + ridge * ((at[0] - 1) ** 2 + at[1] ** 2)

        found = minimize(loss, [1.0, 0.0], tol=1e-12).x
        result[inside] = found[0] * x[inside] + found[1] if found[0] > 0 else 0.0
    weight = np.where(y, 1 / y.sum(), 1 / (~y).sum())
    return float(log_loss(y, expit(result), sample_weight=weight))


@balanced_or_not
def test_the_strength_with_the_least_balanced_log_loss_is_chosen(balanced: bool) -> None:
    data = rows(2, 200, 60, shift=0.2)
    strengths = (1e-4, 1e-2, 1.0)
    fit = data.fit(strengths, balanced)
    for strength in strengths:
        assert fit.log_loss[strength] == pytest.approx(scaled_loss(data, strength, balanced), abs=3e-3)
    assert fit.strength == min(fit.log_loss, key=fit.log_loss.__getitem__)
    alone = data.fit((fit.strength,), balanced)
    np.testing.assert_allclose(data.probabilities(fit), data.probabilities(alone), atol=1e-6)


@balanced_or_not
def test_repeats_share_the_strength_with_the_least_mean_log_loss(balanced: bool) -> None:
    data = rows(12, 90, 60, shift=0.15, repeats=3)
    strengths = (1e-4, 1e-2, 3e-2, 1e-1)
    fit = data.fit(strengths, balanced)
    assert len(fit.heads) == 3
    assert fit.converged
    losses = {}
    for strength in strengths:
        p = [by_scikit_learn(data, strength, balanced, repeat) for repeat in range(3)]
        losses[strength] = np.mean([scaled_loss(data, strength, balanced, repeat) for repeat in range(3)])
        assert fit.log_loss[strength] == pytest.approx(losses[strength], abs=3e-3)
        if strength == fit.strength:
            for repeat, own in enumerate(p):
                assert_close(data.probabilities(fit, repeat), own)
    assert fit.strength == min(losses, key=losses.__getitem__)


def test_repeats_with_different_numbers_of_folds_are_fitted_together() -> None:
    data = rows(13, 50, 50)
    data = Rows.of(data.x, data.synthetic, data.fold[:, 0], np.arange(100) % 2, np.arange(100) // 4 % 7)
    fit = data.fit((1e-2,))
    assert [len(heads.intercepts) for heads in fit.heads] == [4, 2, 7]
    for repeat in range(3):
        assert_close(data.probabilities(fit, repeat), by_scikit_learn(data, 1e-2, True, repeat))


def test_each_generator_has_its_own_strength_and_does_not_affect_others() -> None:
    # One generator is separated easily, the other is noise.
    one, other = rows(14, 150, 60, shift=1.5), rows(15, 150, 220, shift=0.0)
    real = one.take(np.arange(150))
    sets = {"one": one.take(np.arange(150, 210)), "other": other.take(np.arange(150, 370))}
    blocks = [
        FeatureBlock(REAL, torch.from_numpy(real.x), torch.from_numpy(real.fold.repeat(2, axis=1)), real.key)
    ]
    for at, (name, part) in enumerate(sets.items()):
        fold = np.full((len(part.x), 2), -1, np.int8)
        fold[:, at] = part.fold[:, 0]
        blocks.append(FeatureBlock(name, torch.from_numpy(part.x), torch.from_numpy(fold), part.key))
    strengths = (1e-4, 1e-2, 1.0, math.inf)
    views = [FoldView("one", 0, FOLDS), FoldView("other", 0, FOLDS)]
    both = fit_logistic_heads(views, strengths, lambda: blocks, balanced=True, workers=FitContext())
    assert both["one"].strength < 1
    assert both["other"].strength >= 1
    for name, part in sets.items():
        x = np.vstack([real.x, part.x])
        fold = np.concatenate([real.fold, part.fold])[:, 0]
        alone = Rows.of(x, np.arange(len(x)) >= 150, fold)
        fit = alone.fit(strengths)
        assert fit.strength == both[name].strength
        np.testing.assert_allclose(alone.probabilities(both[name]), alone.probabilities(fit), atol=1e-6)


@balanced_or_not
@pytest.mark.parametrize("strengths", [(math.inf,), (1e-3, math.inf)])
def test_the_intercept_only_model_predicts_one_half(balanced: bool, strengths: tuple[float, ...]) -> None:
    rng = np.random.default_rng(3)
    # Noise in many dimensions: any other model is worse.
    data = Rows.of(rng.normal(size=(120, 60)), np.arange(120) >= 90, np.arange(120) % FOLDS)
    fit = data.fit(strengths, balanced)
    np.testing.assert_allclose(data.probabilities(fit), 0.5, atol=1e-12)
    assert fit.strength == math.inf
    assert fit.log_loss[math.inf] == pytest.approx(math.log(2))
    assert fit.heads[0].weights.shape == (FOLDS, 60)
    assert fit.converged


def test_noise_gets_the_intercept_only_model_or_a_nearly_constant_one() -> None:
    rng = np.random.default_rng(4)
    data = Rows.of(rng.normal(size=(200, 50)), np.arange(200) % 2 == 0, np.arange(200) // 2 % FOLDS)
    fit = data.fit((1e-4, 1e-2, 1.0, math.inf))
    assert fit.strength >= 1
    assert np.abs(data.probabilities(fit) - 0.5).max() < 0.2


def test_ties_go_to_the_largest_strength() -> None:
    # All features are zero, so every strength gives the same model.
    data = Rows.of(np.zeros((40, 3)), np.arange(40) % 2 == 0, np.arange(40) // 2 % FOLDS)
    assert data.fit((1e-4, 1e-2, 1.0)).strength == 1.0
    assert data.fit((1e-4, math.inf, 1.0)).strength == math.inf


@balanced_or_not
@pytest.mark.parametrize("strength", [1e-6, 1e-3])
def test_separable_data_converges_to_finite_heads(balanced: bool, strength: float) -> None:
    data = rows(5, 100, 100, shift=30.0)
    fit = data.fit((strength,), balanced)
    assert fit.converged
    assert torch.isfinite(fit.heads[0].weights).all()
    assert torch.isfinite(fit.heads[0].intercepts).all()
    p = data.probabilities(fit)
    assert (p[data.synthetic] > 0.9).all()
    assert (p[~data.synthetic] < 0.1).all()
    assert_close(p, by_scikit_learn(data, strength, balanced))


@balanced_or_not
def test_constant_and_repeated_features_converge(balanced: bool) -> None:
    data = rows(6, 80, 80)
    x = np.hstack([data.x, data.x[:, :2], np.ones((160, 1)), np.zeros((160, 1))])
    data = Rows.of(x, data.synthetic, data.fold[:, 0])
    fit = data.fit((1e-3,), balanced)
    assert fit.converged
    assert_close(data.probabilities(fit), by_scikit_learn(data, 1e-3, balanced))


@pytest.mark.parametrize("strength", [1e-6, 1e-10])
def test_hundreds_of_features_of_low_rank_converge(strength: float) -> None:
    # Grey or smooth pictures as pixels; the Hessian is singular but for a penalty below float32's rounding.
    rng = np.random.default_rng(16)
    synthetic = np.arange(400) % 2 == 0
    latent = rng.normal(size=(400, 3)) + 0.2 * synthetic[:, None]
    data = Rows.of(latent @ rng.normal(size=(3, 300)) / 300**0.5, synthetic, np.arange(400) // 2 % FOLDS)
    fit = data.fit((strength,))
    assert fit.converged
    assert_close(data.probabilities(fit), by_scikit_learn(data, strength, True))


def test_a_row_does_not_enter_the_head_of_its_own_fold() -> None:
    data = rows(7, 60, 60)
    own = data.fold[:, 0] == 2
    changed = data.x.copy()
    changed[own] = 3 * np.random.default_rng(0).normal(size=changed[own].shape)
    plain, other = data.fit((1e-1,)), Rows.of(changed, data.synthetic, data.fold[:, 0]).fit((1e-1,))
    torch.testing.assert_close(other.heads[0].weights[2], plain.heads[0].weights[2], rtol=0, atol=1e-6)
    assert not torch.allclose(other.heads[0].weights[1], plain.heads[0].weights[1], rtol=0, atol=1e-3)


@balanced_or_not
@pytest.mark.parametrize("scale", [3, 10, 100])
def test_a_fold_unlike_the_others_still_converges(balanced: bool, scale: float) -> None:
    # Groups are never split, so a large group of unusual rows is in one fold, and left out by that fold's head.
    data = rows(7, 60, 60)
    own = data.fold[:, 0] == 2
    data.x[own] = scale * np.random.default_rng(0).normal(size=data.x[own].shape)
    fit = data.fit((1e-6, 1e-3), balanced)
    assert fit.converged
    for strength in (1e-6, 1e-3):
        alone = data.fit((strength,), balanced)
        assert alone.converged
        assert_close(data.probabilities(alone), by_scikit_learn(data, strength, balanced))


def test_a_fold_without_one_class_is_fitted_and_predicted() -> None:
    data = rows(17, 60, 60)
    fold = np.where(data.synthetic, np.arange(120) % 3, np.arange(120) % FOLDS)
    data = Rows.of(data.x, data.synthetic, fold)
    fit = data.fit((1e-3,))
    assert fit.converged
    assert_close(data.probabilities(fit), by_scikit_learn(data, 1e-3, True))


@pytest.mark.parametrize("seed", [1, 9, 12])
def test_heads_converge_at_the_limit_of_float64(seed: int) -> None:
    # The last steps change the loss by less than its rounding and must not count as failures.
    rng = np.random.default_rng(seed)
    synthetic = np.arange(3000) % 2 == 0
    z = rng.normal(size=(3000, 32)) * np.where(synthetic, 0.7, 1)[:, None]
    waves = np.cos(z @ rng.normal(size=(32, 250)) / 8 + rng.uniform(0, 2 * np.pi, 250)) * (2 / 250) ** 0.5
    data = Rows.of(np.hstack([z / 32**0.5, waves]), synthetic, np.arange(3000) // 2 % FOLDS)
    fit = data.fit((1e-6, 1e-7))
    assert fit.converged
    assert fit.passes < 100


def many(n: int, m: int, seed: int = 30) -> Rows:
    """Sets that are large enough for a fit to start on a sample."""
    rng = np.random.default_rng(seed)
    assert max(n, m) > 2 * descent._MIN_SAMPLE_ROWS
    synthetic = np.arange(n + m) >= n
    x = rng.normal(size=(n + m, 4)) * [0.2, 1, 1, 2] + 0.15 * synthetic[:, None] + [0, 1, 0, -1]
    return Rows.of(x, synthetic, rng.integers(0, FOLDS, n + m), rng.integers(0, 3, n + m))


@balanced_or_not
@pytest.mark.parametrize(("n", "m"), [(10_000, 9_000), (30_000, 3_000), (40, 12_000)])
def test_a_fit_that_starts_on_a_sample_agrees_with_scikit_learn(balanced: bool, n: int, m: int) -> None:
    data = many(n, m)
    strengths = (1e-4, 1e-1)
    fit = data.fit(strengths, balanced)
    assert fit.converged
    for repeat in range(2):
        assert_close(data.probabilities(fit, repeat), by_scikit_learn(data, fit.strength, balanced, repeat))


def test_the_sample_saves_passes_and_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    data = many(10_000, 9_000)
    fit = data.fit((1e-6, 1e-4, 1e-2, 1.0))
    monkeypatch.setattr(descent, "_MIN_SAMPLE_ROWS", 10**9)
    whole = data.fit((1e-6, 1e-4, 1e-2, 1.0))
    assert fit.passes <= whole.passes
    assert fit.strength == whole.strength
    np.testing.assert_allclose(data.probabilities(fit), data.probabilities(whole), atol=1e-7)


def is_drawn(keys: Hashes) -> NDArray[np.bool_]:
    """Which rows are in a sample of one in two."""
    block = FeatureBlock("fake", torch.arange(len(keys))[:, None], torch.zeros((len(keys), 1)), keys)
    return np.isin(np.arange(len(keys)), block.sampled(2).features[:, 0].numpy())


@pytest.mark.parametrize("kind", ["one-fold", "one-row-repeated", "nobody"])
def test_an_unrepresentative_sample_only_costs_passes(kind: str) -> None:
    # The sample is drawn by hash; here the hashes are chosen so that it is as unrepresentative as possible.
    data = many(9_000, 9_000)
    keys = hash_ids(f"{i}" for i in range(60_000))
    drawn = is_drawn(keys)
    if kind == "one-fold":
        wanted = data.fold[:, 0] == 0
    elif kind == "one-row-repeated":
        wanted = np.arange(18_000) % 2 == 0
        data.x[wanted] = data.x[0]
    else:
        wanted = np.zeros(18_000, np.bool_)
    key = np.zeros(18_000, np.uint64)
    key[wanted], key[~wanted] = keys[drawn][: wanted.sum()], keys[~drawn][: (~wanted).sum()]
    data = Rows(data.x, data.synthetic, data.fold, key)
    fit = data.fit((1e-4, 1e-2))
    assert fit.converged
    assert_close(data.probabilities(fit), by_scikit_learn(data, fit.strength, True))


@balanced_or_not
@pytest.mark.parametrize("size", [8_998, 8_900])
def test_a_collapsed_generator_in_nearly_one_group_agrees_with_scikit_learn(balanced: bool, size: int) -> None:
    # The head of the large group's fold has only the few other synthetic rows; a sample may lack all of them.
    data = many(9_000, 9_000)
    missed = np.flatnonzero(data.synthetic & ~is_drawn(data.key))[: 9_000 - size]
    fold = np.where(data.synthetic, 0, np.arange(18_000) % 3)
    fold[missed] = 1 + np.arange(len(missed)) % 2
    data = Rows.of(data.x, data.synthetic, fold)
    for strength in (1e-3, 1e-1):
        fit = data.fit((strength,), balanced)
        assert fit.converged
        assert_close(data.probabilities(fit), by_scikit_learn(data, strength, balanced))


Give = Callable[[], dict[str, torch.Tensor]]


@pytest.mark.parametrize("size", [(90, 60), (9_000, 8_500)], ids=["few", "sampled"])
@balanced_or_not
def test_a_fit_resumes_from_any_checkpoint(balanced: bool, size: tuple[int, int]) -> None:
    data = many(*size) if size[0] > 1000 else rows(18, *size, repeats=2)
    states: list[dict[str, torch.Tensor]] = []

    def keep(give: Give) -> None:
        states.append({key: value.clone() for key, value in give().items()})

    strengths = (1e-5, 1e-3, 1e-1)
    fit = data.fit(strengths, balanced, FitContext(resume=FitState({}, keep)))
    assert len(states) > 2
    for at in sorted({0, 1, len(states) // 2, len(states) - 1}):
        # The checkpoint goes through a file.
        state = {key: torch.from_numpy(value.numpy().copy()) for key, value in states[at].items()}
        again = data.fit(strengths, balanced, FitContext(resume=FitState(state)))
        assert again.converged
        assert again.strength == fit.strength
        for repeat in range(2):
            np.testing.assert_allclose(
                data.probabilities(again, repeat), data.probabilities(fit, repeat), atol=1e-6
            )
    last = data.fit(strengths, balanced, FitContext(resume=FitState(states[-1])))
    assert last.passes < fit.passes


@pytest.mark.parametrize(
    "state",
    [
        {"points": torch.zeros((7, 3), dtype=torch.float64)},
        {"points": torch.full((2, 8), torch.nan, dtype=torch.float64)},
        {"something": torch.ones(3)},
        {},
    ],
)
def test_a_state_of_another_fit_is_ignored(state: dict[str, torch.Tensor]) -> None:
    data = rows(19, 60, 60)
    fit, again = data.fit((1e-3, 1e-1)), data.fit((1e-3, 1e-1), workers=FitContext(resume=FitState(state)))
    np.testing.assert_allclose(data.probabilities(again), data.probabilities(fit), atol=1e-12)


@balanced_or_not
@pytest.mark.parametrize("cuts", [(70,), (10, 200), (0, 150)], ids=["two", "three", "one-empty"])
def test_any_split_over_workers_gives_the_same_probabilities(balanced: bool, cuts: tuple[int, ...]) -> None:
    data = rows(8, 150, 90, repeats=2)
    strengths = (1e-5, 1e-3, 1e-1, math.inf)
    whole = data.fit(strengths, balanced)
    parts = [data.take(part) for part in np.split(np.random.default_rng(0).permutation(240), cuts)]

    def work(rank: int, reduce_sum: ReduceSum) -> LogisticFit:
        workers = FitContext(reduce_sum, is_distributed=True)
        return fit_logistic_heads(data.views, strengths, parts[rank].blocks, balanced=balanced, workers=workers)[
            "fake"
        ]

    fits = on_workers(len(parts), work)
    for fit in fits:
        assert fit.strength == whole.strength
        for repeat in range(2):
            np.testing.assert_allclose(
                data.probabilities(fit, repeat), data.probabilities(whole, repeat), atol=1e-6
            )
            assert torch.equal(fit.heads[repeat].weights, fits[0].heads[repeat].weights)


def test_workers_agree_on_a_sampled_start() -> None:
    data = many(10_000, 9_000)
    whole = data.fit((1e-4, 1e-2))
    parts = [data.take(part) for part in np.split(np.arange(19_000), [3_000, 10_000])]

    def work(rank: int, reduce_sum: ReduceSum) -> LogisticFit:
        workers = FitContext(reduce_sum, is_distributed=True)
        return fit_logistic_heads(data.views, (1e-4, 1e-2), parts[rank].blocks, balanced=True, workers=workers)[
            "fake"
        ]

    for fit in on_workers(3, work):
        assert fit.converged
        np.testing.assert_allclose(data.probabilities(fit), data.probabilities(whole), atol=1e-6)


def test_the_summary_is_plain_json() -> None:
    summary = rows(9, 40, 40).fit((1e-3, math.inf)).summary()
    assert summary == json.loads(json.dumps(summary, allow_nan=False))
    assert {strength for strength, _ in summary["log_loss_by_strength"]} == {1e-3, "inf"}
    assert summary["converged"] is True
    assert summary["passes"] > 0
    nothing = Rows.of(np.zeros((40, 1)), np.arange(40) % 2 == 0, np.arange(40) // 2 % FOLDS).fit((1.0, math.inf))
    assert nothing.summary()["strength"] == "inf"


def test_heads_solved_in_turns_for_memory_reach_the_same_optima(monkeypatch: pytest.MonkeyPatch) -> None:
    # One Hessian at a time.
    data = rows(3, 120, 80)
    strengths = (1e-5, 1e-2)
    together = data.fit(strengths)
    monkeypatch.setattr(descent, "_FACTOR_BYTES", 1)
    apart = data.fit(strengths)
    assert apart.converged
    assert apart.passes > together.passes
    np.testing.assert_allclose(data.probabilities(apart), data.probabilities(together), atol=1e-6)
