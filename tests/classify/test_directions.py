import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from synthscale.classify.classifier import fit_classifier
from synthscale.classify.directions import find_directions
from synthscale.classify.features import FeatureMap, LinearHeads, fit_feature_map
from synthscale.classify.model import FittedClassifier, SeparatingDirections
from synthscale.classify.network import MlpHeads
from synthscale.config import ClassifierConfig
from synthscale.tables.schemas import DIRECTIONS, REAL
from tests.classify.trainings import Sets, Vectors, assign_sets, cut, fit_on_workers, normal

LINEAR = ClassifierConfig(head="linear")
KERNEL = ClassifierConfig(head="kernel")


def mapped(seed: int, d: int, fourier_features: int) -> FeatureMap:
    """Feature map of columns with different means and scales."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(200, d)) * np.geomspace(0.1, 10, d) + np.arange(d))
    return fit_feature_map(x.mean(0), x.std(0, correction=0), x[:100], fourier_features, seed)


def random_heads(seed: int, folds: int, width: int) -> LinearHeads:
    rng = np.random.default_rng(seed)
    return LinearHeads(torch.from_numpy(rng.normal(size=(folds, width))), torch.from_numpy(rng.normal(size=folds)))


def random_networks(seed: int, folds: int, width: int) -> MlpHeads:
    rng = np.random.default_rng(seed)
    shapes = ((folds, width, 6), (folds, 6), (folds, 6), (folds,))
    return MlpHeads(*(torch.from_numpy(rng.normal(size=shape)) for shape in shapes))


@pytest.mark.parametrize(
    ("fourier_features", "make"),
    [(0, random_heads), (33, random_heads), (0, random_networks)],
    ids=["linear", "kernel", "mlp"],
)
def test_embedding_gradients_are_finite_differences(fourier_features: int, make: Any) -> None:
    d, folds, step = 4, 3, 1e-5
    feature_map = mapped(0, d, fourier_features)
    heads = make(1, folds, feature_map.dimensions)
    vectors = feature_map.mean + feature_map.scale * torch.from_numpy(normal(2, 50, d))
    fold = (np.arange(50) % folds).astype(np.int8)
    found = feature_map.embedding_gradient(vectors, heads.gradients(feature_map(vectors), fold)).numpy()
    for j in range(d):
        # The step is in standard deviations of the real images.
        aside = torch.zeros(d, dtype=torch.float64)
        aside[j] = step * feature_map.scale[j]
        ends = [heads.out_of_fold_logits(feature_map(vectors + sign * aside), fold) for sign in (1, -1)]
        np.testing.assert_allclose(found[:, j], (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fourier_features", [0, 33])
def test_embedding_gradients_are_those_of_autograd(fourier_features: int) -> None:
    feature_map = mapped(3, 4, fourier_features)
    heads = random_heads(4, 1, feature_map.dimensions)
    vectors = (feature_map.mean + feature_map.scale * torch.from_numpy(normal(5, 30, 4))).requires_grad_()
    logits = feature_map(vectors) @ heads.weights[0] + heads.intercepts[0]
    (by_vector,) = torch.autograd.grad(logits.sum(), vectors)
    gradient = heads.gradients(feature_map(vectors.detach()), np.zeros(30, np.int8))
    found = feature_map.embedding_gradient(vectors.detach(), gradient)
    torch.testing.assert_close(found, by_vector * feature_map.scale, rtol=1e-9, atol=1e-12)


def found_in(sets: Sets, settings: ClassifierConfig) -> dict[str, SeparatingDirections]:
    training = sets.training()
    return find_directions(fit_classifier(training, settings)[0], training)


def rotated(seed: int, d: int) -> NDArray[np.float64]:
    """Orthonormal axes, none of them along a dimension: (d, d)."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0].T


def shifted(axis: NDArray[np.float64], n: int = 800, by: float = 1.0) -> dict[str, Vectors]:
    """The same distribution but for a shift along an axis in standard deviations; columns of different scales."""
    d = len(axis)
    units, offset = np.geomspace(0.01, 100, d), 7.0 * np.arange(d)
    return {REAL: normal(6, n, d) * units + offset, "fake": (normal(7, n, d) + by * axis) * units + offset}


@pytest.mark.parametrize("settings", [LINEAR, KERNEL], ids=["linear", "kernel"])
@pytest.mark.parametrize("by", [1.0, -1.0])
def test_a_shift_of_the_mean_is_the_first_direction_with_synthetic_rows_at_its_positive_end(
    settings: ClassifierConfig, by: float
) -> None:
    axis = rotated(0, 12)[0]
    sets = assign_sets(settings, **shifted(axis, by=by))
    training = sets.training()
    model, _ = fit_classifier(training, settings)
    found = find_directions(model, training)["fake"]
    # The axis itself, signed: from real towards synthetic.
    assert float(found.axes[0] @ torch.from_numpy(by * axis)) > 0.95
    assert found.share[0] > 0.8
    places = [
        found.coordinates(model.feature_map.standardise(torch.from_numpy(sets.vectors[name])))[:, 0].mean()
        for name in ("fake", REAL)
    ]
    assert places[0] - places[1] == pytest.approx(1, abs=0.15)


def narrowed(axis: NDArray[np.float64], n: int, deviation: float) -> dict[str, Vectors]:
    """Equal means; the synthetic rows deviate less from it along one axis."""
    x = normal(9, n, len(axis))
    return {REAL: normal(8, n, len(axis)), "fake": x - np.outer((1 - deviation) * (x @ axis), axis)}


def test_a_difference_of_spread_along_one_axis_is_found_by_the_kernel_head() -> None:
    axis = rotated(1, 8)[0]
    found = found_in(assign_sets(KERNEL, **narrowed(axis, 1500, 0.2)), KERNEL)["fake"]
    assert abs(float(found.axes[0] @ torch.from_numpy(axis))) > 0.95
    assert found.share[0] > 0.5


def test_two_differences_are_found_the_stronger_first() -> None:
    axes = rotated(2, 10)
    sets = {REAL: normal(10, 1500, 10), "fake": normal(11, 1500, 10) + 1.5 * axes[0]}
    # Equal means along the second axis, and less spread.
    sets["fake"] -= np.outer(0.9 * (sets["fake"] @ axes[1]), axes[1])
    found = found_in(assign_sets(KERNEL, **sets), KERNEL)["fake"]
    planes = (found.axes[:2] @ torch.from_numpy(axes[:2].T)).numpy()
    # The two axes and the two directions span the same plane.
    assert np.linalg.svd(planes, compute_uv=False).min() > 0.9


@pytest.mark.parametrize("settings", [LINEAR, KERNEL], ids=["linear", "kernel"])
@pytest.mark.parametrize("d", [1, 2, 3, 9])
def test_directions_are_orthonormal_and_their_shares_fall(settings: ClassifierConfig, d: int) -> None:
    found = found_in(assign_sets(settings, **shifted(rotated(3, d)[0], n=150)), settings)["fake"]
    kept = min(d, DIRECTIONS)
    assert found.axes.shape == (kept, d)
    torch.testing.assert_close(found.axes @ found.axes.T, torch.eye(kept).double(), rtol=0, atol=1e-9)
    share = found.share.tolist()
    assert share == sorted(share, reverse=True)
    assert 0 < sum(share) <= 1 + 1e-9
    assert min(share) >= 0
    if d <= DIRECTIONS:
        assert sum(share) == pytest.approx(1)


def test_a_linear_head_has_the_mean_of_its_folds_weights_as_its_direction() -> None:
    # By hand: gradients of a linear head are its weights, the same at every row.
    sets = assign_sets(LINEAR, **shifted(rotated(4, 5)[0], n=400))
    training = sets.training()
    model, _ = fit_classifier(training, LINEAR)
    # Logits are calibrated, so the weights are scaled by the slopes.
    slope = model.calibrations["fake"].slopes(np.arange(5)[:, None])
    weights = model.heads["fake"][0].weights.numpy() * slope  # type: ignore[attr-defined]
    plan = sets.plans["fake"]
    rows = [weights[plan.fold[plan.is_real == kind, 0]] for kind in (True, False)]
    outer = sum(w.T @ w / len(w) for w in rows)
    values, vectors = np.linalg.eigh(outer)
    found = find_directions(model, training)["fake"]
    assert abs(found.axes[0].numpy() @ vectors[:, -1]) == pytest.approx(1, abs=1e-9)
    assert float(found.share[0]) == pytest.approx(values[-1] / values.sum(), abs=1e-9)


def test_classes_have_equal_weight_at_any_sizes() -> None:
    # A network whose hidden unit is active at the synthetic rows and inactive at the real ones.
    sets = assign_sets(LINEAR, real=normal(12, 1000, 2), fake=normal(13, 50, 2) + np.array([8, 0]))
    training = sets.training()
    model, _ = fit_classifier(training, LINEAR)
    hidden = torch.zeros((5, 2, 2), dtype=torch.float64)
    # silu's slope is 1 far above 0 and 0 far below: the first unit sees synthetic rows, the second real ones.
    hidden[:, 0, 0], hidden[:, 1, 1] = 30, 30
    bias = torch.tensor([[-85.0, 200.0]]).double().expand(5, 2)
    awake = MlpHeads(hidden, bias, torch.ones((5, 2)).double(), torch.zeros(5).double())
    found = find_directions(replace(model, heads={"fake": (awake,)}), training)["fake"]
    # Half of the mean outer product: gradient (30, 30) at synthetic rows, (0, 30) at real ones.
    expected = np.linalg.eigvalsh(np.array([[1.0, 1.0], [1.0, 2.0]]))
    assert float(found.share[0]) == pytest.approx(expected[-1] / expected.sum(), abs=0.02)


def test_an_intercept_only_classifier_has_no_directions() -> None:
    nothing = ClassifierConfig(strengths=(float("inf"),))
    sets = assign_sets(nothing, **shifted(rotated(5, 6)[0], n=100))
    found = found_in(sets, nothing)["fake"]
    assert found.axes.shape == (0, 6)
    assert found.share.shape == (0,)
    assert found.coordinates(torch.from_numpy(sets.vectors[REAL])).shape == (100, 0)


def test_a_constant_network_has_no_directions() -> None:
    settings = ClassifierConfig(head="mlp")
    sets = assign_sets(settings, real=normal(14, 60, 40), fake=normal(15, 60, 40))
    training = sets.training()
    model, fits = fit_classifier(training, settings)
    assert fits["fake"].epoch == 0  # type: ignore[union-attr]
    assert len(find_directions(model, training)["fake"].axes) == 0


def test_a_classifier_calibrated_to_zero_logits_has_no_directions() -> None:
    # Over-fitted to equal sets: calibrated logits are 0 for every row, so no direction separates them.
    settings = ClassifierConfig(strengths=(1e-3,))
    sets = assign_sets(settings, real=normal(18, 500), fake=normal(19, 500))
    training = sets.training()
    model, _ = fit_classifier(training, settings)
    np.testing.assert_array_equal(sets.logits(model), 0)
    assert len(find_directions(model, training)["fake"].axes) == 0


def two_generators() -> Sets:
    axes = rotated(6, 8)
    real = normal(16, 300, 8)
    return assign_sets(
        KERNEL, real=real, fake=normal(17, 200, 8) + axes[0], other=normal(18, 250, 8) - 1.5 * axes[1]
    )


@functools.cache
def directions_of_two_generators() -> dict[str, SeparatingDirections]:
    return found_in(two_generators(), KERNEL)


def assert_alike(found: SeparatingDirections, expected: SeparatingDirections) -> None:
    torch.testing.assert_close(found.axes, expected.axes, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.share, expected.share, rtol=0, atol=1e-6)


def test_each_generator_has_its_own_directions() -> None:
    found, axes = directions_of_two_generators(), rotated(6, 8)
    assert float(found["fake"].axes[0] @ torch.from_numpy(axes[0])) > 0.9
    assert float(found["other"].axes[0] @ torch.from_numpy(-axes[1])) > 0.9


def test_a_generators_directions_do_not_depend_on_another_generator() -> None:
    both = two_generators()
    alone = assign_sets(KERNEL, real=both.vectors[REAL], fake=both.vectors["fake"])
    assert_alike(found_in(both, KERNEL)["fake"], found_in(alone, KERNEL)["fake"])


@pytest.mark.parametrize("workers", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_workers_with_shards_of_the_rows_find_the_same_axes(workers: int) -> None:
    # The last of three has no real row.
    sets = two_generators()
    expected = directions_of_two_generators()
    for found in fit_on_workers(sets.training(order=workers), KERNEL, workers, find_directions):
        for name, own in expected.items():
            assert_alike(found[name], own)


@pytest.mark.parametrize("is_cached", [True, False])
def test_directions_do_not_depend_on_the_order_of_rows_or_on_blocks(is_cached: bool) -> None:
    sets = two_generators()
    training = replace(cut(sets.training(order=5), 4), is_cached=is_cached)
    found = find_directions(fit_classifier(training, KERNEL)[0], training)
    for name, own in directions_of_two_generators().items():
        assert_alike(found[name], own)


def test_many_rows_are_sampled_and_the_sample_does_not_depend_on_workers() -> None:
    axis = rotated(7, 6)[0]
    strong = ClassifierConfig(head="linear", strengths=(1e-3,))
    sets = assign_sets(strong, **shifted(axis, n=13_000, by=0.5))
    training = sets.training()
    model, _ = fit_classifier(training, strong)
    whole = find_directions(model, training)["fake"]
    assert float(whole.axes[0] @ torch.from_numpy(axis)) > 0.95
    pieces = cut(sets.training(order=1), 7)
    assert_alike(find_directions(model, pieces)["fake"], whole)


def test_directions_average_the_repeats() -> None:
    settings = ClassifierConfig(head="linear", repeats=3)
    axis = rotated(8, 6)[0]
    sets = assign_sets(settings, **shifted(axis, n=300))
    found = found_in(sets, settings)["fake"]
    assert float(found.axes[0] @ torch.from_numpy(axis)) > 0.95


def test_coordinates_are_projections_on_the_axes() -> None:
    directions = SeparatingDirections(
        torch.tensor([[0.6, 0.8], [-0.8, 0.6]]).double(), torch.tensor([0.9, 0.1]).double()
    )
    assert directions.coordinates(torch.tensor([[1.0, 2.0]]).double()).tolist() == [pytest.approx([2.2, 0.4])]


def test_a_saved_model_has_the_same_directions() -> None:
    sets = two_generators()
    training = sets.training()
    model, _ = fit_classifier(training, KERNEL)
    model = replace(model, directions=find_directions(model, training))
    again = FittedClassifier.from_bytes(model.to_bytes())
    for name, own in model.directions.items():
        assert torch.equal(again.directions[name].axes, own.axes)
        assert torch.equal(again.directions[name].share, own.share)
