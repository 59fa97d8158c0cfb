import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from synthscale.classify.calibration import PlattScaling
from synthscale.classify.features import FeatureMap, LinearHeads, fit_feature_map
from synthscale.classify.jackknife_refits import JackknifeRefits
from synthscale.classify.model import FittedClassifier, OutOfFoldModel, SeparatingDirections, out_of_fold_logits
from synthscale.classify.network import MlpHeads
from synthscale.tables.schemas import BLOCKS

DIMENSIONS = 5
ODD_NAMES = [
    "gan-2.v1",
    "weights",
    "intercepts",
    "map",
    "mean",
    "logistic",
    "mlp",
    "calibration",
    "directions",
    "0",
    "1",
    "file",
    "allow_pickle",
    "gan.npy",
    "gan.npz",
]


def draw(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.normal(size=shape))


def feature_map(fourier_features: int = 7) -> FeatureMap:
    real = draw(np.random.default_rng(0), 60, DIMENSIONS) * 3 + 1
    return fit_feature_map(real.mean(0), real.std(0, correction=0), real, fourier_features, 0)


def logistic(rng: np.random.Generator, folds: int, dimensions: int) -> LinearHeads:
    return LinearHeads(draw(rng, folds, dimensions), draw(rng, folds))


def networks(rng: np.random.Generator, folds: int, dimensions: int) -> MlpHeads:
    return MlpHeads(draw(rng, folds, dimensions, 3), draw(rng, folds, 3), draw(rng, folds, 3), draw(rng, folds))


def calibration(rng: np.random.Generator, repeats: int, folds: int, gain: float = 0.3) -> PlattScaling:
    return PlattScaling(
        rng.uniform(0.2, 2, (repeats, folds)), *rng.normal(size=(2, repeats)), (0.6, 0.6 - gain), 1e-4
    )


def again(model: FittedClassifier) -> FittedClassifier:
    return FittedClassifier.from_bytes(model.to_bytes())


def answers(model: FittedClassifier, name: str, repeats: int, folds: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(9)
    vectors, fold = draw(rng, 40, DIMENSIONS) * 2, rng.integers(0, folds, (40, repeats)).astype(np.int8)
    return model.logits(name, model.feature_map(vectors), fold)


Kind = Callable[[np.random.Generator, int, int], OutOfFoldModel]


@pytest.mark.parametrize("kind", [logistic, networks])
@pytest.mark.parametrize("fourier_features", [0, 7], ids=["linear", "kernel"])
def test_a_saved_model_gives_the_same_logits(kind: Kind, fourier_features: int) -> None:
    own_map, rng = feature_map(fourier_features), np.random.default_rng(1)
    # More than ten repeats, so that their numbers differ in length.
    sizes = {name: (1 + i % 3, 2 + i % 4) for i, name in enumerate(ODD_NAMES)} | {"many": (12, 3)}
    heads = {
        name: tuple(kind(rng, folds, own_map.dimensions) for _ in range(repeats))
        for name, (repeats, folds) in sizes.items()
    }
    found = again(FittedClassifier(own_map, heads))
    assert set(found.heads) == set(heads)
    assert found.calibrations == {}
    assert found.directions == {}
    for name, (repeats, folds) in sizes.items():
        assert all(type(head) is type(own) for head, own in zip(found.heads[name], heads[name], strict=True))
        np.testing.assert_array_equal(
            answers(found, name, repeats, folds), answers(FittedClassifier(own_map, heads), name, repeats, folds)
        )


def test_generators_with_a_common_name_ending_keep_separate_heads() -> None:
    own_map, rng = feature_map(), np.random.default_rng(2)
    names = ["gan", "gan.npy", "gan.npy.npy", "agan", "logistic.0.weights.gan", "GAN"]
    heads = {name: (logistic(rng, 2, own_map.dimensions),) for name in names}
    found = again(FittedClassifier(own_map, heads))
    for name in names:
        np.testing.assert_array_equal(found.heads[name][0].weights, heads[name][0].weights)  # type: ignore[attr-defined]


@pytest.mark.parametrize("gain", [0.3, 0.0, -0.3], ids=["helps", "does-not", "harms"])
def test_a_saved_model_is_calibrated_as_before(gain: float) -> None:
    own_map, rng = feature_map(), np.random.default_rng(3)
    heads = {name: tuple(logistic(rng, 4, own_map.dimensions) for _ in range(2)) for name in ODD_NAMES}
    calibrations = {name: calibration(rng, 2, 4, gain) for name in ODD_NAMES[1:]}
    model = FittedClassifier(own_map, heads, calibrations)
    found = again(model)
    assert set(found.calibrations) == set(calibrations)
    for name, own in calibrations.items():
        assert found.calibrations[name].is_used == own.is_used == (gain >= 0)
        assert found.calibrations[name].error == own.error
        assert found.calibrations[name].summary() == own.summary()
    for name in ODD_NAMES:
        np.testing.assert_array_equal(answers(found, name, 2, 4), answers(model, name, 2, 4))


def test_a_saved_model_has_its_directions() -> None:
    own_map, rng = feature_map(), np.random.default_rng(4)
    heads = {name: (logistic(rng, 2, own_map.dimensions),) for name in ODD_NAMES}
    # An intercept-only classifier has none.
    kept = {name: i % 4 for i, name in enumerate(ODD_NAMES[1:])}
    directions = {name: SeparatingDirections(draw(rng, a, DIMENSIONS), draw(rng, a)) for name, a in kept.items()}
    found = again(FittedClassifier(own_map, heads, {}, directions))
    assert set(found.directions) == set(directions)
    rows = draw(rng, 6, DIMENSIONS)
    for name, own in directions.items():
        np.testing.assert_array_equal(found.directions[name].axes, own.axes)
        np.testing.assert_array_equal(found.directions[name].share, own.share)
        assert found.directions[name].coordinates(rows).shape == (6, kept[name])


def refits(rng: np.random.Generator, folds: int, dimensions: int) -> JackknifeRefits:
    slope, offset = rng.uniform(0.2, 2, (BLOCKS, folds)), rng.normal(size=BLOCKS)
    without = np.arange(BLOCKS, dtype=np.int8)
    reassignment = np.zeros(BLOCKS, np.int8)
    return JackknifeRefits(
        logistic(rng, BLOCKS * folds, dimensions), slope, offset, without, reassignment, is_matched=False
    )


def without(model: FittedClassifier, name: str, folds: int) -> NDArray[np.float64] | None:
    rng = np.random.default_rng(19)
    vectors, fold = draw(rng, 40, DIMENSIONS).numpy() * 2, rng.integers(0, folds, 40).astype(np.int8)
    return model.predict_refits(name, vectors, fold, rng.integers(0, BLOCKS, 40).astype(np.int8)).without


def test_a_saved_model_has_its_refits() -> None:
    own_map, rng = feature_map(), np.random.default_rng(10)
    sizes = {name: 2 + i % 3 for i, name in enumerate(ODD_NAMES)}
    heads = {name: (logistic(rng, folds, own_map.dimensions),) for name, folds in sizes.items()}
    # A network has none.
    kept = {name: refits(rng, sizes[name], own_map.dimensions) for name in ODD_NAMES[1:]}
    model = FittedClassifier(own_map, heads, refits={name: [own] for name, own in kept.items()})
    found = again(model)
    assert {name for name, own in found.refits.items() if own} == set(kept)
    assert without(found, ODD_NAMES[0], 2) is None
    for name, own in kept.items():
        (kept_own,) = found.refits[name]
        assert not kept_own.is_matched
        for part in ("slope", "offset", "without"):
            np.testing.assert_array_equal(getattr(kept_own, part), getattr(own, part))
        # Weights are stored in float32.
        torch.testing.assert_close(kept_own.heads.weights, own.heads.weights, rtol=1e-7, atol=1e-9)
        assert kept_own.heads.weights.dtype == torch.float64
        before, after = without(model, name, sizes[name]), without(found, name, sizes[name])
        assert before is not None
        assert after is not None
        np.testing.assert_allclose(after, before, atol=1e-5)
    # A second round trip changes nothing more.
    assert again(found).to_bytes() == found.to_bytes()


def test_logits_without_a_block_are_calibrated_and_nan_inside_it() -> None:
    own_map, rng, folds = feature_map(), np.random.default_rng(11), 3
    own = refits(rng, folds, own_map.dimensions)
    model = FittedClassifier(own_map, {"a": (logistic(rng, folds, own_map.dimensions),)}, refits={"a": [own]})
    vectors, fold = draw(rng, 50, DIMENSIONS).numpy(), rng.integers(0, folds, 50).astype(np.int8)
    block = (np.arange(50) % BLOCKS).astype(np.int8)
    found = model.predict_refits("a", vectors, fold, block).without
    assert found is not None
    features = own_map(torch.from_numpy(vectors)).numpy()
    for row in range(50):
        for b in range(BLOCKS):
            head = b * folds + fold[row]
            raw = features[row] @ own.heads.weights[head].numpy() + float(own.heads.intercepts[head])
            expected = own.slope[b, fold[row]] * raw + own.offset[b]
            assert found[row, b] == pytest.approx(np.nan if b == block[row] else expected, nan_ok=True)


def test_a_model_without_a_generator_is_a_feature_map() -> None:
    own_map = feature_map()
    found = again(FittedClassifier(own_map, {}))
    assert found.heads == {}
    vectors = draw(np.random.default_rng(5), 8, DIMENSIONS)
    torch.testing.assert_close(found.feature_map(vectors), own_map(vectors), rtol=0, atol=0)


def test_the_same_model_has_the_same_bytes_and_they_hold_no_pickle() -> None:
    own_map, rng = feature_map(), np.random.default_rng(6)
    model = FittedClassifier(
        own_map, {"a": (logistic(rng, 2, own_map.dimensions),)}, {"a": calibration(rng, 1, 2)}
    )
    assert model.to_bytes() == again(model).to_bytes()
    with np.load(io.BytesIO(model.to_bytes()), allow_pickle=False) as arrays:
        assert all(arrays[name].dtype.kind in "fib" for name in arrays.files)


def test_every_repeat_uses_its_own_heads_and_folds() -> None:
    rng = np.random.default_rng(7)
    heads = tuple(logistic(rng, 3, DIMENSIONS) for _ in range(4))
    features, fold = draw(rng, 25, DIMENSIONS), rng.integers(0, 3, (25, 4)).astype(np.int8)
    logits = out_of_fold_logits(heads, features, fold)
    assert logits.shape == (25, 4)
    for i, own in enumerate(heads):
        for row in range(25):
            f = fold[row, i]
            expected = float(features[row] @ own.weights[f] + own.intercepts[f])
            assert logits[row, i] == pytest.approx(expected, abs=1e-12)


def test_logits_are_only_shifted_if_scaling_raises_the_log_loss_by_more_than_its_error() -> None:
    own_map, rng = feature_map(0), np.random.default_rng(8)
    heads = {"a": (logistic(rng, 2, DIMENSIONS),)}
    fold = np.array([[0], [1], [1]], np.int8)
    features = draw(rng, 3, DIMENSIONS)
    plain = FittedClassifier(own_map, heads).logits("a", features, fold)
    slope, offset, shift = np.array([[2.0, 0.5]]), np.array([1.0]), np.array([-3.0])
    harms = PlattScaling(slope, offset, shift, (0.6, 0.6002), 0.0001)
    for rise in (-0.1, 0.0, 0.00005):
        used = PlattScaling(slope, offset, shift, (0.6, 0.6 + rise), 0.0001)
        scaled = FittedClassifier(own_map, heads, {"a": used}).logits("a", features, fold)
        np.testing.assert_allclose(scaled[:, 0], [2 * plain[0, 0] + 1, plain[1, 0] / 2 + 1, plain[2, 0] / 2 + 1])
    shifted = FittedClassifier(own_map, heads, {"a": harms}).logits("a", features, fold)
    np.testing.assert_allclose(shifted, plain - 3)


def test_coordinates_are_along_each_direction() -> None:
    axes = torch.tensor([[1.0, 0.0], [0.6, 0.8]]).double()
    places = SeparatingDirections(axes, torch.tensor([0.7, 0.3]).double()).coordinates(
        torch.tensor([[2.0, -1.0]]).double()
    )
    np.testing.assert_allclose(places, [[2.0, 0.4]])
