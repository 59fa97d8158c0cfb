import dataclasses
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

from synthscale.metrics import utility as utility_module
from synthscale.metrics.utility import Utility, utility

FOLDS = 5


class World:
    """Distribution of overlapping classes of unequal sizes."""

    def __init__(self, seed: int, labels: int = 4, d: int = 12, apart: float = 0.6) -> None:
        self.rng = np.random.default_rng(seed)
        self.centres = apart * self.rng.normal(size=(labels, d))
        self.mixing = self.rng.normal(size=(d, d))
        self.names = np.array([f"class {chr(97 + i)}" for i in range(labels)], object)

    def draw(self, n: int) -> tuple[NDArray[np.float32], NDArray[np.object_]]:
        share = np.arange(1, len(self.names) + 1)
        code = self.rng.choice(len(self.names), n, p=share / share.sum())
        rows = (self.centres[code] + self.rng.normal(size=(n, len(self.mixing)))) @ self.mixing
        return rows.astype(np.float32), self.names[code]

    def folds(self, n: int) -> NDArray[np.int8]:
        return self.rng.integers(0, FOLDS, n).astype(np.int8)


def found(*args: object, **more: object) -> Utility:
    result = utility(*args, **more)  # type: ignore[arg-type]
    assert isinstance(result, Utility), result
    return result


def peer(
    x: NDArray[np.floating], labels: NDArray[np.object_], queries: NDArray[np.floating]
) -> NDArray[np.object_]:
    """Return the predictions of scikit-learn, with equal weight of each label; its loss is a sum, ours a mean."""
    counts = {label: (labels == label).sum() for label in labels}
    weight = np.array([1 / (len(counts) * counts[label]) for label in labels])
    scaler = StandardScaler().fit(x, sample_weight=weight)
    model = RidgeClassifier(alpha=x.shape[1] * (weight**2).sum())
    return model.fit(scaler.transform(x), labels, sample_weight=weight).predict(scaler.transform(queries))


@pytest.mark.parametrize(("labels", "d", "n", "m"), [(2, 5, 300, 200), (4, 12, 900, 700), (3, 120, 300, 90)])
def test_accuracies_are_those_of_scikit_learns_ridge_classifier(labels: int, d: int, n: int, m: int) -> None:
    world = World(labels, labels, d, apart=2 / d**0.5)
    x, y = (part.astype(np.float64) if i == 0 else part for i, part in enumerate(world.draw(n)))
    s, z = world.draw(m)
    s = s.astype(np.float64) * 1.2 + 1
    fold = world.folds(n)
    result = found(x, y, fold, s, z)
    out_of_fold = np.empty(n, object)
    for k in range(FOLDS):
        out_of_fold[fold == k] = peer(x[fold != k], y[fold != k], x[fold == k])
    assert result.real == pytest.approx(balanced_accuracy_score(y, out_of_fold), abs=1e-9)
    assert result.synthetic == pytest.approx(balanced_accuracy_score(y, peer(s, z, x)), abs=1e-9)
    assert 1 / labels + 0.05 < result.real < 0.99
    assert result.rows == n
    assert result.synthetic_rows == m
    assert result.labels == tuple(world.names)


def test_single_predictions_on_digits_equal_scikit_learn() -> None:
    digits = load_digits()
    x, s = digits.data[:900], digits.data[900:]
    y, z = digits.target[:900].astype(str).astype(object), digits.target[900:].astype(str).astype(object)
    fold = np.arange(900) % FOLDS
    # With scikit-learn's predictions as labels, the accuracy is the agreement.
    assert found(x, peer(s, z, x), fold, s, z).synthetic > 0.99
    result = found(x, y, fold, s, z)
    assert min(result.real, result.synthetic) > 0.85


def test_equal_distributions_give_a_ratio_near_one_within_its_error() -> None:
    ratios, errors, apart = [], [], []
    for seed in range(30):
        world = World(seed)
        x, y = world.draw(1500)
        s, z = world.draw(1200)
        result = found(x, y, world.folds(1500), s, z)
        ratios.append(result.ratio)
        errors.append(result.ratio_error)
        apart.append(result.difference / result.difference_error)
    assert np.mean(ratios) == pytest.approx(1, abs=0.01)
    assert np.abs(np.array(ratios) - 1).max() < 0.1
    assert 0.002 < np.mean(errors) < 0.03
    # The errors hold the fits fixed, so they are slightly too small.
    assert np.std(apart) < 2.5


def test_shuffled_synthetic_labels_give_chance() -> None:
    world = World(0, labels=5)
    x, y = world.draw(2000)
    s, z = world.draw(2000)
    values = []
    for seed in range(10):
        result = found(x, y, world.folds(2000), s, np.random.default_rng(seed).permutation(z))
        values.append(result.synthetic)
    assert result.chance == 0.2
    assert np.mean(values) == pytest.approx(0.2, abs=0.04)
    assert result.real > 0.4
    assert result.difference < -5 * result.difference_error


def test_noisier_labels_or_less_varied_images_have_lower_utility() -> None:
    world = World(1, labels=5, apart=0.5)
    x, y = world.draw(3000)
    s, z = world.draw(1500)
    fold = world.folds(3000)
    order = world.rng.permutation(1500)
    values = []
    for noise in (0.0, 0.4, 0.7, 0.9):
        wrong = z.copy()
        hit = order[: int(noise * 1500)]
        wrong[hit] = world.rng.choice(world.names, len(hit))
        values.append(found(x, y, fold, s, wrong).synthetic)
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1] + 0.05


def test_accuracy_grows_with_rows_even_near_the_number_of_dimensions() -> None:
    # With a fixed ridge of 1e-3 the accuracy has its minimum at 200 rows.
    d, world = 200, World(2, labels=5, d=200, apart=0.15)
    x, y = world.draw(1000)
    s, z = world.draw(1600)
    fold = world.folds(1000)
    values = [found(x, y, fold, s[:n], z[:n]).synthetic for n in (d // 2, d, 2 * d, 8 * d)]
    assert values == sorted(values)
    assert values[1] > 0.3


def test_the_order_of_rows_does_not_matter_and_a_second_run_is_the_same() -> None:
    world = World(3)
    x, y = world.draw(400)
    s, z = world.draw(300)
    fold = world.folds(400)
    once = found(x, y, fold, s, z)
    assert found(x, y, fold, s, z) == once
    for seed in range(3):
        rng = np.random.default_rng(seed)
        one, two = rng.permutation(400), rng.permutation(300)
        again = found(x[one], y[one], fold[one], s[two], z[two])
        assert dataclasses.astuple(again)[:7] == pytest.approx(dataclasses.astuple(once)[:7], rel=1e-12)
        assert dataclasses.astuple(again)[7:] == dataclasses.astuple(once)[7:]


def test_the_frequency_of_a_label_does_not_bias_the_predictions() -> None:
    # Repeated rows change only the ridge, slightly.
    world = World(4, labels=3, apart=0.4)
    x, y = world.draw(3000)
    s, z = world.draw(3000)
    fold = world.folds(3000)
    more = np.concatenate([np.arange(3000), np.repeat(np.flatnonzero(z == world.names[0]), 30)])
    plain, tilted = found(x, y, fold, s, z), found(x, y, fold, s[more], z[more])
    assert tilted.synthetic == pytest.approx(plain.synthetic, abs=0.01)
    unweighted = RidgeClassifier().fit(s[more], z[more]).predict(x)
    assert balanced_accuracy_score(y, unweighted) < plain.synthetic - 0.1


def test_units_and_offsets_of_dimensions_do_not_matter() -> None:
    world = World(5)
    x, y = world.draw(400)
    s, z = world.draw(400)
    fold = world.folds(400)
    units, offset = np.geomspace(1e-4, 1e5, 12), np.linspace(-50, 50, 12)
    changed = found(x * units + offset * units, y, fold, s * units + offset * units, z)
    plain = found(x.astype(np.float64), y, fold, s.astype(np.float64), z)
    assert dataclasses.astuple(changed)[:7] == pytest.approx(dataclasses.astuple(plain)[:7], rel=1e-9)


def test_narrow_rows_far_from_zero_are_widened() -> None:
    world = World(6)
    x, y = world.draw(400)
    s, z = world.draw(400)
    fold = world.folds(400)
    narrow = [(rows * 500 + 20_000).astype(np.float16) for rows in (x, s)]
    wide = [rows.astype(np.float64) for rows in narrow]
    assert np.isfinite(narrow[0]).all()
    assert found(narrow[0], y, fold, narrow[1], z) == found(wide[0], y, fold, wide[1], z)


@pytest.mark.parametrize("constant", [0.0, 0.1, 7777.7])
def test_a_dimension_that_is_constant_in_the_training_rows_is_ignored(constant: float) -> None:
    world = World(7)
    x, y = world.draw(400)
    s, z = world.draw(400)
    fold = world.folds(400)
    wild = 1e4 * world.rng.normal(size=(400, 1)) + constant
    plain = found(np.hstack([x, np.zeros_like(wild)]), y, fold, np.hstack([s, np.zeros_like(wild)]), z)
    mixed = found(np.hstack([x, wild]), y, fold, np.hstack([s, np.full_like(wild, constant)]), z)
    assert mixed.synthetic == plain.synthetic


def test_equal_rows_give_chance_accuracy_without_errors() -> None:
    world = World(8)
    x, y = world.draw(200)
    _, z = world.draw(200)
    result = found(x, y, world.folds(200), np.full_like(x, 3.3), z)
    assert result.synthetic == pytest.approx(result.chance)
    assert result.synthetic_error == 0
    nothing = found(np.full_like(x, 3.3), y, world.folds(200), x, y)
    assert nothing.real == pytest.approx(nothing.chance)


def test_labels_with_too_few_rows_in_one_set_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(9, labels=6)
    x, y = world.draw(1200)
    s, z = world.draw(1200)
    fold = world.folds(1200)
    a, b, c = world.names[:3]
    keep_s = (z != a) & (np.cumsum(z == b) * (z == b) <= 4)
    s, z = s[keep_s], z[keep_s]
    keep_x = np.cumsum(y == c) * (y == c) <= 4
    x, y, fold = x[keep_x], y[keep_x], fold[keep_x]
    result = found(x, y, fold, s, z)
    assert result.labels == tuple(world.names[3:])
    kept, kept_s = np.isin(y, world.names[3:]), np.isin(z, world.names[3:])
    # The result is the same as without those rows.
    assert result == found(x[kept], y[kept], fold[kept], s[kept_s], z[kept_s])
    assert result.rows == kept.sum()
    assert result.synthetic_rows == kept_s.sum()
    monkeypatch.setattr(utility_module, "LEAST_ROWS", 4)
    assert found(x, y, fold, s, z).labels == tuple(world.names[1:])


def test_rows_without_a_label_are_left_out() -> None:
    world = World(10)
    x, y = world.draw(400)
    s, z = world.draw(400)
    fold = world.folds(400)
    plain = found(x[100:], y[100:], fold[100:], s[50:], z[50:])
    y[:50], y[50:100], z[:50] = None, math.nan, None
    assert found(x, y, fold, s, z) == plain
    assert found(x, list(y), fold, s, list(z)) == plain


def test_a_label_whose_rows_all_lie_in_one_fold_is_left_out() -> None:
    world = World(11)
    x, y = world.draw(400)
    s, z = world.draw(400)
    fold = world.folds(400)
    fold[y == world.names[2]] = 1
    assert found(x, y, fold, s, z).labels == tuple(world.names[[0, 1, 3]])


def test_a_row_is_not_predicted_from_its_copy_in_the_same_fold() -> None:
    # Labels are random, but every row has a copy with the same label.
    rng = np.random.default_rng(12)
    x = np.repeat(rng.normal(size=(150, 100)), 2, axis=0)
    y = np.repeat(rng.choice(["a", "b"], 150), 2)
    s, z = rng.normal(size=(300, 100)), rng.choice(["a", "b"], 300)
    together, split = np.repeat(np.arange(150) % FOLDS, 2), np.arange(300) % FOLDS
    assert found(x, y, together, s, z).real == pytest.approx(0.5, abs=0.15)
    assert found(x, y, split, s, z).real > 0.75


@pytest.mark.parametrize("nothing", [None, [None] * 20, [math.nan] * 20, []])
def test_without_labels_there_is_a_reason(nothing: list[None] | None) -> None:
    x, labels, fold = np.random.default_rng(0).normal(size=(20, 3)), ["a", "b"] * 10, np.arange(20) % 5
    assert utility(x, nothing, fold, x, labels) == "no labels in the real set"
    assert utility(x, labels, fold, x, nothing) == "no labels in the synthetic set"


@pytest.mark.parametrize("other", [["b"] * 20, ["a"] * 20, ["a"] * 16 + ["b"] * 4, ["c", "d"] * 10])
def test_with_fewer_than_two_shared_labels_there_is_a_reason(other: list[str]) -> None:
    x, labels, fold = np.random.default_rng(0).normal(size=(20, 3)), ["a", "b"] * 10, np.arange(20) % 5
    for reason in (utility(x, labels, fold, x, other), utility(x, other, fold, x, labels)):
        assert isinstance(reason, str)
        assert "fewer than two labels with 5 rows" in reason
    assert isinstance(utility(x, labels, np.zeros(20, int), x, labels), str)


def test_labels_may_be_numbers() -> None:
    world = World(13)
    x, y = world.draw(300)
    s, z = world.draw(300)
    fold = world.folds(300)
    place = {name: i for i, name in enumerate(world.names)}
    numbers = [np.array([place[name] for name in labels]) for labels in (y, z)]
    result = found(x, numbers[0], fold, s, numbers[1])
    assert result.labels == ("0", "1", "2", "3")
    assert result.real == found(x, y, fold, s, z).real


def test_errors_are_the_spread_over_draws_of_real_rows_with_the_classifier_held() -> None:
    # One classifier trained on synthetic rows predicts many real sets.
    world = World(14, apart=0.5)
    s, z = world.draw(600)
    results = []
    for _ in range(150):
        x, y = world.draw(250)
        results.append(found(x, y, world.folds(250), s, z))
    spread = np.std([result.synthetic for result in results], ddof=1)
    assert np.mean([result.synthetic_error for result in results]) == pytest.approx(spread, rel=0.2)
    # Out of fold the fits vary too and paired errors cancel, so those standard errors are only approximate.
    for name in ("real", "difference", "ratio"):
        spread = np.std([getattr(result, name) for result in results], ddof=1)
        stated = np.mean([getattr(result, f"{name}_error") for result in results])
        assert 0.5 < stated / spread < 1.3


def test_errors_of_a_known_pattern_of_mistakes() -> None:
    # Two points in space: 8 of 10 rows of label a lie at one, 6 of 10 rows of label b at the other.
    x = np.array([0.0] * 8 + [1.0] * 2 + [1.0] * 6 + [0.0] * 4)[:, None]
    y = ["a"] * 10 + ["b"] * 10
    contrary = ["b"] * 10 + ["a"] * 10
    result = found(x, y, np.arange(20) % 5, x, contrary)
    error = math.sqrt(0.8 * 0.2 / 9 + 0.6 * 0.4 / 9) / 2
    assert (result.real, result.synthetic) == pytest.approx((0.7, 0.3))
    assert (result.real_error, result.synthetic_error) == pytest.approx((error, error))
    # One classifier is right where the other is wrong, so the difference varies twice as much.
    assert result.difference_error == pytest.approx(2 * error)
    # d(s / r) = ds / r - s dr / r^2 with ds = -dr.
    assert result.ratio_error == pytest.approx(error / 0.7 + 0.3 * error / 0.7**2)


def test_repeats_in_groups_leave_the_errors_as_they_are() -> None:
    # Every real row four times, in its own fold and group, with and without the groups.
    world = World(15)
    x, y = world.draw(200)
    s, z = world.draw(300)
    fold, four = world.folds(200), np.repeat(np.arange(200), 4)
    plain = found(x, y, fold, s, z)
    together = found(x[four], y[four], fold[four], s, z, real_cluster=four.astype(np.uint64))
    apart = found(x[four], y[four], fold[four], s, z)
    assert (together.rows, together.clusters, together.effective_rows) == (800, 200, 200)
    assert (apart.clusters, apart.effective_rows) == (800, 800)
    assert together.synthetic_error == pytest.approx(plain.synthetic_error, rel=0.02)
    assert apart.synthetic_error == pytest.approx(plain.synthetic_error / 2, rel=0.02)


def test_a_classifier_without_mistakes_has_a_standard_error_of_zero() -> None:
    x = np.repeat([[0.0, 1.0], [1.0, 0.0]], 10, axis=0) + 0.01 * np.random.default_rng(0).normal(size=(20, 2))
    result = found(x, ["a"] * 10 + ["b"] * 10, np.arange(20) % 5, x, ["b"] * 10 + ["a"] * 10)
    assert (result.real, result.synthetic, result.ratio) == (1, 0, 0)
    assert (result.real_error, result.synthetic_error, result.difference_error) == (0, 0, 0)


def test_there_is_no_ratio_where_the_accuracy_from_real_rows_is_zero() -> None:
    # The two folds have opposite labels.
    x = np.tile([[0.0, 1.0], [1.0, 0.0]], (10, 1)) + 0.01 * np.random.default_rng(0).normal(size=(20, 2))
    result = found(x, ["a", "b"] * 5 + ["b", "a"] * 5, np.arange(20) // 10, x, ["a", "b"] * 10)
    assert (result.real, result.synthetic) == (0, 0.5)
    assert math.isnan(result.ratio)
    assert math.isnan(result.ratio_error)
