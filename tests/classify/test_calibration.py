import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from synthscale.classify.calibration import PlattScaling, fit_platt_scaling
from synthscale.classify.fit_context import ReduceSum
from tests.classify.trainings import on_workers
from tests.examples import examples

Distort = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class Answers(NamedTuple):
    """Out-of-fold logits (n, repeats), folds (n, repeats), and which rows are synthetic."""

    logit: NDArray[np.float64]
    fold: NDArray[np.int8]
    synthetic: NDArray[np.bool_]

    def take(self, chosen: NDArray[np.int64]) -> "Answers":
        return Answers(*(part[chosen] for part in self))

    def blocks(self, pieces: int = 1) -> Iterator[tuple[bool, NDArray[np.float64], NDArray[np.int8]]]:
        for kind in (False, True):
            for part in np.array_split(np.flatnonzero(self.synthetic == kind), pieces):
                yield kind, self.logit[part], self.fold[part]

    def fitted(self, reduce_sum: ReduceSum = lambda tensor: tensor) -> PlattScaling:
        return fit_platt_scaling(self.blocks(), self.fold.shape[1], int(self.fold.max()) + 1, reduce_sum)

    def loss(self, logit: NDArray[np.float64]) -> float:
        """Class-balanced log-loss over all repeats, by scikit-learn."""
        repeats = logit.shape[1]
        y = np.repeat(self.synthetic, repeats)
        weight = np.where(y, 0.5 / y.sum(), 0.5 / (~y).sum())
        return float(log_loss(y, expit(logit.ravel()), sample_weight=weight))

    def calibrated(self) -> NDArray[np.float64]:
        return self.fitted()(self.logit, self.fold)


def honest(seed: int, n: int, m: int, *, mean: float = 1.2, repeats: int = 1, folds: int = 5) -> Answers:
    """The true log-odds of N(0, 1) against N(mean, 1): a perfect classifier's logits in every repeat."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(size=n), mean + rng.normal(size=m)])
    fold = np.stack([np.concatenate([rng.permutation(n), rng.permutation(m)]) % folds for _ in range(repeats)], 1)
    return Answers(
        np.tile((mean * x - mean**2 / 2)[:, None], repeats), fold.astype(np.int8), np.arange(n + m) >= n
    )


def distorted(answers: Answers, by: Distort) -> Answers:
    return answers._replace(logit=by(answers.logit))


def by_scikit_learn(answers: Answers) -> tuple[Answers, NDArray[np.float64], NDArray[np.float64]]:
    """Scale each fold's logits by a regression on the other folds', then shift all; with slopes and offsets."""
    result, shape = np.empty_like(answers.logit), (answers.fold.shape[1], int(answers.fold.max()) + 1)
    slope, offset = np.empty(shape), np.empty(shape[0])
    for i in range(shape[0]):
        for f in range(shape[1]):
            inside = answers.fold[:, i] == f
            model = LogisticRegression(C=1e9, class_weight="balanced", tol=1e-10, max_iter=10_000)
            model.fit(answers.logit[~inside, i : i + 1], answers.synthetic[~inside])
            slope[i, f] = model.coef_[0, 0]
            result[inside, i] = slope[i, f] * answers.logit[inside, i]
        offset[i] = centring(result[:, i], answers.synthetic)
        result[:, i] += offset[i]
    return answers._replace(logit=result), slope, offset


def gap(logit: NDArray[np.float64], synthetic: NDArray[np.bool_]) -> float:
    """Fidelity - representativeness of logits (n,)."""
    p = expit(logit)
    return float(1 - p[synthetic].mean() - p[~synthetic].mean())


def centring(logit: NDArray[np.float64], synthetic: NDArray[np.bool_]) -> float:
    """The offset of logits (n,) of least balanced log-loss, where fidelity and representativeness are equal."""
    width = 1 + float(np.abs(logit).max())
    return float(brentq(lambda by: gap(logit + by, synthetic), -width, width, xtol=1e-12))


DISTORTIONS: dict[str, Distort] = {
    "three times": lambda x: 3 * x,
    "shifted up": lambda x: x + 1,
    "shifted down": lambda x: x - 1,
    "both": lambda x: 4 * x - 2,
    "halved": lambda x: x / 2,
}


@pytest.mark.parametrize("kind", DISTORTIONS)
@pytest.mark.parametrize(("n", "m", "repeats"), [(3000, 3000, 1), (6000, 1500, 1), (2000, 2000, 3)])
def test_distorted_logits_are_corrected_as_by_scikit_learn(kind: str, n: int, m: int, repeats: int) -> None:
    answers = distorted(honest(0, n, m, repeats=repeats), DISTORTIONS[kind])
    calibration = answers.fitted()
    expected, slope, offset = by_scikit_learn(answers)
    # An offset alone corrects shifted logits; slopes then decide little.
    assert calibration.is_used or kind.startswith("shifted")
    # The ridge pulls slopes towards 1, most of all with small logits and few rows.
    np.testing.assert_allclose(calibration.slope, slope, rtol=0.03)
    np.testing.assert_allclose(calibration.offset, offset, atol=0.03)
    found = replace(calibration, log_loss=(1.0, 0.0))(answers.logit, answers.fold)
    assert answers.loss(found) == pytest.approx(expected.loss(expected.logit), abs=5e-4)
    np.testing.assert_allclose(expit(found), expit(expected.logit), atol=0.01)
    # Nothing beats the true odds in expectation; the sample allows for a small difference.
    assert answers.loss(found) == pytest.approx(
        honest(0, n, m, repeats=repeats).loss(honest(0, n, m).logit.repeat(repeats, 1)), abs=0.01
    )


def map_estimate(answers: Answers, f: int) -> NDArray[np.float64]:
    """Slope and offset of most likely fit to the rows outside a fold; the slope is known before to 0.5 from 1.

    The rows of both classes weigh as many as the smaller class has.
    """
    outside = answers.fold[:, 0] != f
    x, y = answers.logit[outside, 0], answers.synthetic[outside]
    few = min(y.sum(), (~y).sum())
    weight = np.where(y, few / y.sum(), few / (~y).sum())

    def minus_log_likelihood(at: NDArray[np.float64]) -> float:
        prior = (at[0] - 1) ** 2 / (2 * 0.5**2)
        return float(weight @ np.logaddexp(0, np.where(y, -1, 1) * (at[0] * x + at[1])) + prior)

    result: NDArray[np.float64] = minimize(minus_log_likelihood, [1.0, 0.0], tol=1e-10).x
    return result


@pytest.mark.parametrize("kind", DISTORTIONS)
@pytest.mark.parametrize(("n", "m"), [(200, 200), (30, 12), (600, 40), (6, 5)])
def test_slopes_are_the_maximum_a_posteriori_estimate(kind: str, n: int, m: int) -> None:
    answers = distorted(honest(0, n, m), DISTORTIONS[kind])
    calibration = answers.fitted()
    for f in range(5):
        assert calibration.slope[0, f] == pytest.approx(max(map_estimate(answers, f)[0], 0), abs=4e-3)


@pytest.mark.parametrize("kind", DISTORTIONS)
@pytest.mark.parametrize(("n", "m"), [(64, 1600), (1600, 64), (256, 1600), (200, 200), (30, 12), (6, 5)])
def test_fidelity_equals_representativeness_whether_slopes_are_used_or_not(kind: str, n: int, m: int) -> None:
    # A ridge on the offset left 0.09 at 1,600 : 64; an offset fitted to the other folds leaves up to 0.01.
    answers = distorted(honest(0, n, m, repeats=2), DISTORTIONS[kind])
    found = answers.fitted()
    for own in (found, replace(found, log_loss=(0.6, 0.7), error=0.01)):
        logits = own(answers.logit, answers.fold)
        for i in range(2):
            # The sums are over a histogram with bins of 3 %.
            assert abs(gap(logits[:, i], answers.synthetic)) < 1e-4
    assert found.coefficients(is_scaled=False)[1][1] == pytest.approx(
        centring(answers.logit[:, 1], answers.synthetic), abs=2e-3
    )


@pytest.mark.parametrize("by", [1.0, -50.0, 1e4])
def test_logits_all_on_one_side_are_centred(by: float) -> None:
    # Here the loss has no curvature in float64 where Newton's method starts.
    answers = distorted(honest(0, 300, 30), lambda x: x + by)
    calibration = answers.fitted()
    np.testing.assert_allclose(calibration.shift, centring(answers.logit[:, 0], answers.synthetic), rtol=0.03)
    assert answers.loss(answers.calibrated()) < 0.7


def test_a_class_without_rows_leaves_the_logits_as_they_are() -> None:
    # A refit without a block may have none of a class that has few groups.
    answers = honest(0, 40, 0)
    calibration = answers.fitted()
    np.testing.assert_array_equal(calibration.slope, 1)
    np.testing.assert_array_equal(calibration.offset, 0)
    np.testing.assert_array_equal(calibration.shift, 0)


def test_reported_log_losses_are_those_of_the_logits() -> None:
    answers = distorted(honest(1, 400, 300, repeats=2), lambda x: 2 * x + 0.5)
    calibration = answers.fitted()
    shifted = np.stack(
        [z + centring(z, answers.synthetic) for z in answers.logit.T],
        1,
    )
    assert calibration.log_loss[0] == pytest.approx(answers.loss(shifted), abs=2e-4)
    assert calibration.log_loss[1] == pytest.approx(answers.loss(answers.calibrated()), abs=2e-4)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("n", "m"), [(2000, 2000), (4000, 2000)])
def test_calibrated_logits_hardly_change(seed: int, n: int, m: int) -> None:
    answers = honest(seed, n, m)
    found = answers.calibrated()
    # Slope and offset of 4,000 rows are known to 0.05 and 0.06.
    np.testing.assert_allclose(expit(found), expit(answers.logit), atol=0.06)
    assert np.abs(expit(found) - expit(answers.logit)).mean() < 0.02
    assert answers.loss(found) == pytest.approx(answers.loss(answers.logit), abs=2e-3)


def by_hand(answers: Answers, calibration: PlattScaling) -> tuple[float, float]:
    """Return the change of log-loss by scaling and its standard error, from single rows, for one repeat."""
    fold = answers.fold[:, 0]
    before = answers.logit[:, 0] + calibration.shift[0]
    after = calibration.slope[0, fold] * answers.logit[:, 0] + calibration.offset[0]
    sign = np.where(answers.synthetic, -1.0, 1.0)
    more = np.logaddexp(0, sign * after) - np.logaddexp(0, sign * before)
    classes = [more[answers.synthetic == kind] for kind in (False, True)]
    error = np.sqrt(sum(own.var() / len(own) for own in classes)) / 2
    return float(np.mean([own.mean() for own in classes])), float(error)


def test_scaling_is_used_unless_it_adds_more_than_a_standard_error_to_the_log_loss() -> None:
    used = []
    for seed in range(40):
        answers = honest(seed, 300, 200, mean=0.6)
        calibration = answers.fitted()
        rise, error = by_hand(answers, calibration)
        assert calibration.error == pytest.approx(error, rel=0.02, abs=1e-6)
        assert calibration.log_loss[1] - calibration.log_loss[0] == pytest.approx(rise, abs=2e-5)
        if abs(rise - error) > 1e-4:
            assert calibration.is_used == (rise <= error)
        used.append(calibration.is_used)
        expected = (
            calibration.slope[0, answers.fold] * answers.logit + calibration.offset
            if calibration.is_used
            else answers.logit + calibration.shift
        )
        np.testing.assert_array_equal(calibration(answers.logit, answers.fold), expected)
        np.testing.assert_array_equal(
            calibration.slopes(answers.fold),
            calibration.slope[0, answers.fold] if calibration.is_used else np.ones((500, 1)),
        )
    # Calibrated logits show both cases.
    assert 5 < sum(used) < 40


@pytest.mark.parametrize("rise", [-0.1, 0.0, 0.0099, 0.0101, 0.5])
def test_scaling_is_dropped_just_beyond_one_standard_error(rise: float) -> None:
    calibration = PlattScaling(np.array([[2.0]]), np.array([1.0]), np.array([0.5]), (0.6, 0.6 + rise), 0.01)
    fold = np.zeros((3, 1), np.int8)
    logit = np.array([[-1.0], [0.0], [2.0]])
    assert calibration.is_used == (rise < 0.01)
    expected = 2 * logit + 1 if rise < 0.01 else logit + 0.5
    np.testing.assert_array_equal(calibration(logit, fold), expected)


def test_log_loss_hardly_depends_on_which_neighbouring_strength_was_chosen() -> None:
    # A strength that is too large or too small gives logits that are too small or too large; scaled they agree.
    for seed in range(5):
        answers = honest(seed, 400, 400)
        means = [
            float(expit(distorted(answers, lambda x, s=size: s * x).calibrated())[answers.synthetic].mean())
            for size in (0.7, 1.0, 1.4)
        ]
        plain = [float(expit(size * answers.logit)[answers.synthetic].mean()) for size in (0.7, 1.4)]
        assert max(means) - min(means) < 0.2 * abs(plain[1] - plain[0])


def test_rows_with_fold_minus_one_have_no_effect() -> None:
    # Fold -1 marks rows of the jackknife block that a view leaves out.
    answers = distorted(honest(11, 400, 300, repeats=2), lambda x: 3 * x - 1)
    out = np.random.default_rng(0).random(answers.fold.shape) < 0.4
    masked = answers._replace(
        fold=np.where(out, -1, answers.fold).astype(np.int8), logit=np.where(out, 1e5, answers.logit)
    )
    found = fit_platt_scaling(masked.blocks(), 2, 5, lambda tensor: tensor)
    for repeat in range(2):
        kept = np.flatnonzero(~out[:, repeat])
        alone = (
            answers._replace(logit=answers.logit[:, [repeat]], fold=answers.fold[:, [repeat]]).take(kept).fitted()
        )
        np.testing.assert_allclose(found.slope[repeat], alone.slope[0], atol=1e-8)
        np.testing.assert_allclose(found.offset[repeat], alone.offset[0], atol=1e-8)


def test_logits_of_zero_stay_zero() -> None:
    answers = distorted(honest(2, 100, 100), np.zeros_like)
    np.testing.assert_array_equal(answers.calibrated(), answers.logit)


@pytest.mark.parametrize("scale", [0.3, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_noise_is_scaled_to_probabilities_near_one_half(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    answers = distorted(honest(seed, 500, 500), lambda x: scale * rng.normal(size=x.shape))
    assert (answers.fitted().slope >= 0).all()
    found = answers.calibrated()
    assert answers.loss(found) <= answers.loss(answers.logit)
    assert answers.loss(found) == pytest.approx(np.log(2), abs=0.02)


def test_the_slope_is_never_negative() -> None:
    # With equal sets, out-of-fold logits point slightly to the wrong class.
    answers = distorted(honest(3, 800, 500), np.negative)
    calibration = answers.fitted()
    assert calibration.is_used
    np.testing.assert_array_equal(calibration(answers.logit, answers.fold), np.zeros_like(answers.logit))


few = st.tuples(st.integers(3, 15), st.integers(3, 15), st.integers(0, 10_000), st.sampled_from([2, 3]))


@given(few, st.floats(-3, 3), st.floats(-2, 2))
@examples(30)
def test_with_few_rows_the_log_loss_becomes_no_worse_by_more_than_a_standard_error(
    sizes: tuple[int, int, int, int], scale: float, shift: float
) -> None:
    n, m, seed, folds = sizes
    answers = distorted(honest(seed, n, m, folds=folds), lambda x: scale * x + shift)
    calibration = answers.fitted()
    _, error = by_hand(answers, calibration)
    # The error is computed from a histogram with bins of 3 %.
    assert (
        answers.loss(answers.calibrated()) <= answers.loss(answers.logit + calibration.shift) + 1.02 * error + 1e-4
    )
    assert answers.loss(answers.logit + calibration.shift) <= answers.loss(answers.logit) + 1e-4


def test_rows_in_few_groups_do_not_make_the_log_loss_worse() -> None:
    for seed in range(20):
        single = honest(seed, 8, 8, folds=4)
        answers = single.take(np.repeat(np.arange(16), 25))
        assert answers.loss(answers.calibrated()) <= answers.loss(answers.logit) + 1e-9


def loss_on_new_rows(n: int, by: Distort) -> float:
    """Return the change of log-loss on new rows (nats) by a calibration on n + n rows, mean over data sets."""
    new, added = distorted(honest(999, 5000, 5000), by), []
    for seed in range(25):
        calibration = distorted(honest(seed, n, n), by).fitted()
        added.append(new.loss(calibration(new.logit, new.fold)) - new.loss(new.logit))
    return float(np.mean(added))


def test_on_new_rows_calibration_helps_distorted_logits_and_hardly_hurts_calibrated_ones() -> None:
    assert loss_on_new_rows(50, lambda x: 3 * x) < -0.15
    assert loss_on_new_rows(50, lambda x: x) < 0.01
    assert loss_on_new_rows(20, lambda x: x) < 0.03


@pytest.mark.parametrize("cuts", [(400,), (10, 300), (0, 450), (200, 600)])
def test_workers_with_shards_of_the_rows_find_the_same(cuts: tuple[int, ...]) -> None:
    # The last case has workers without a synthetic row.
    answers = distorted(honest(4, 400, 300, repeats=2), lambda x: 3 * x + 0.5)
    whole = answers.fitted()
    order = np.arange(700) if cuts == (200, 600) else np.random.default_rng(0).permutation(700)
    parts = [answers.take(part) for part in np.split(order, cuts)]

    def work(rank: int, reduce_sum: ReduceSum) -> PlattScaling:
        return fit_platt_scaling(parts[rank].blocks(pieces=3), 2, 5, reduce_sum)

    for found in on_workers(len(parts), work):
        np.testing.assert_allclose(found.slope, whole.slope, atol=1e-7)
        np.testing.assert_allclose(found.offset, whole.offset, atol=1e-7)
        assert found.log_loss == pytest.approx(whole.log_loss, abs=1e-10)
        assert found.is_used == whole.is_used


def test_a_fold_is_not_scaled_by_its_own_rows() -> None:
    answers = distorted(honest(5, 300, 300), lambda x: 2 * x)
    changed = answers._replace(logit=np.where(answers.fold == 2, -answers.logit, answers.logit))
    found, plain = changed.fitted(), answers.fitted()
    np.testing.assert_allclose(found.slope[0, 2], plain.slope[0, 2], atol=1e-9)
    assert np.abs(found.slope[0] - plain.slope[0])[[0, 1, 3, 4]].min() > 0.05


def test_every_repeat_has_its_own_offset_and_every_fold_its_own_slope() -> None:
    calibration = PlattScaling(
        np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([10.0, 20.0]), np.zeros(2), (0.5, 0.1), 0.01
    )
    fold = np.array([[0, 1], [1, 0]], np.int8)
    assert calibration(np.array([[1.0, 1.0], [-1.0, -1.0]]), fold).tolist() == [[11.0, 24.0], [8.0, 17.0]]


def test_repeats_with_different_numbers_of_folds_are_calibrated_together() -> None:
    five, three = (distorted(honest(6, 300, 300, folds=k), lambda x: 3 * x) for k in (5, 3))
    both = five._replace(logit=np.hstack([five.logit, three.logit]), fold=np.hstack([five.fold, three.fold]))
    calibration = both.fitted()
    np.testing.assert_allclose(calibration.slope[0], five.fitted().slope[0], atol=1e-7)
    np.testing.assert_allclose(calibration.slope[1, :3], three.fitted().slope[0], atol=1e-7)
    assert np.isfinite(calibration(both.logit, both.fold)).all()


@pytest.mark.parametrize("size", [0.01, 1.0, 40.0, 1e4])
def test_separable_logits_stay_finite_and_keep_their_sign(size: float) -> None:
    answers = honest(7, 60, 40)
    side = np.where(answers.synthetic, size, -size)[:, None] * (1 + 0.1 * np.arange(100)[:, None] / 100)
    answers = answers._replace(logit=side)
    calibration = answers.fitted()
    found = calibration(answers.logit, answers.fold)
    for numbers in (calibration.slope, calibration.offset, found, calibration.log_loss):
        assert np.isfinite(numbers).all()
    assert ((found[:, 0] > 0) == answers.synthetic).all()
    assert answers.loss(found) <= answers.loss(answers.logit) + 1e-9


def test_logits_beyond_the_last_bin_are_corrected_too() -> None:
    answers = distorted(honest(8, 1000, 1000), lambda x: 300 * x)
    assert answers.loss(answers.calibrated()) < answers.loss(answers.logit) - 1


def test_the_summary_is_plain_json_and_says_whether_it_is_used() -> None:
    for by, seed, used in ((lambda x: x, 4, False), (lambda x: x, 0, True), (lambda x: 3 * x, 9, True)):
        answers = distorted(honest(seed, 2000, 2000), by)
        calibration = answers.fitted()
        summary = json.loads(json.dumps(calibration.summary(), allow_nan=False))
        assert summary["used"] == used
        rise = summary["log_loss_after"] - summary["log_loss_before"]
        assert (rise <= calibration.error) == used
        three_times = seed == 9
        assert (rise < -1e-3) == three_times
        assert summary["slope"] == pytest.approx(1 / 3 if three_times else 1, rel=0.15)
        assert summary["offset"] == pytest.approx(0, abs=0.15)


def test_sums_take_one_all_reduce_in_float64() -> None:
    # Each all-reduce costs a round trip, and NCCL and Gloo add float64 tensors only.
    calls: list[torch.Tensor] = []

    def reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(tensor)
        return tensor

    honest(10, 50, 50).fitted(reduce_sum)
    assert [(tensor.dtype, tensor.is_contiguous()) for tensor in calls] == [(torch.float64, True)]
