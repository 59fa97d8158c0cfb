import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist

from synthscale.classify.features import FOURIER_FEATURES, FeatureMap, LinearHeads, fit_feature_map
from tests.examples import examples


def fitted(real: NDArray[np.float64], fourier_features: int = FOURIER_FEATURES, seed: int = 0) -> FeatureMap:
    x = torch.from_numpy(real)
    return fit_feature_map(x.mean(0), x.std(0, correction=0), x[:300], fourier_features, seed)


def scaled(seed: int, n: int, d: int = 5) -> NDArray[np.float64]:
    """Columns of different means and scales."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * np.geomspace(0.1, 10, d) + np.arange(d) * 50


def test_the_real_rows_are_standardised() -> None:
    real = scaled(0, 1000)
    z = fitted(real).standardise(torch.from_numpy(real)).numpy()
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-9)


def test_a_feature_does_not_depend_on_the_units_of_a_dimension() -> None:
    real, other = scaled(1, 200), scaled(2, 50)
    units = np.array([8.0, 0.5, 1.0, 7.0, 0.3])
    plain = fitted(real)(torch.from_numpy(other))
    changed = fitted(real * units + 3)(torch.from_numpy(other * units + 3))
    torch.testing.assert_close(changed, plain, rtol=0, atol=1e-6)


def test_a_small_column_beside_a_large_one_is_still_standardised() -> None:
    # Tabular data may have incomes (1e5) beside ratios (0.1), with the difference in the ratio alone.
    real = np.random.default_rng(2).normal(size=(500, 2)) * [1e5, 0.1]
    z = fitted(real).standardise(torch.from_numpy(real)).numpy()
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-6)


@pytest.mark.parametrize("fourier_features", [0, 64])
@pytest.mark.parametrize("value", [4.0, 0.0, -1e-20])
def test_dimensions_without_variance_stay_finite_and_bounded(fourier_features: int, value: float) -> None:
    real = scaled(3, 100)
    real[:, 1] = value
    synthetic = scaled(4, 100)
    synthetic[0, 1] = 1e30
    features = fitted(real, fourier_features)(torch.from_numpy(synthetic))
    assert torch.isfinite(features).all()
    assert features.abs().max() < 20


def test_rounding_of_a_constant_dimension_is_not_scaled_up() -> None:
    # 0.1 in float16, read back: all equal, but their mean in float64 is off by the last bits.
    real = scaled(3, 999)
    real[:, 2] = np.float16(0.1)
    z = fitted(real).standardise(torch.from_numpy(real))
    assert z[:, 2].abs().max() < 1e-6


def test_a_value_far_outside_the_real_range_is_clipped() -> None:
    real, synthetic = scaled(3, 200), scaled(4, 50)
    far = synthetic.copy()
    far[7, 3] = 1e6
    feature_map = fitted(real)
    z, plain = feature_map.standardise(torch.from_numpy(far)), feature_map.standardise(torch.from_numpy(synthetic))
    assert 5 < z[7, 3] < 20
    assert z.norm(dim=1).max() < 25
    changed = (z != plain).numpy()
    assert np.argwhere(changed).tolist() == [[7, 3]]


@pytest.mark.parametrize("rows", [1, 2])
def test_identical_real_rows_give_finite_features(rows: int) -> None:
    features = fitted(np.full((rows, 4), 2.5))(torch.randn(10, 4, dtype=torch.float64))
    assert torch.isfinite(features).all()


def test_without_fourier_features_the_features_are_the_standardised_embedding() -> None:
    real = scaled(5, 100)
    linear, kernel = fitted(real, 0), fitted(real, 100)
    assert linear.dimensions == 5
    assert linear(torch.from_numpy(real)).shape == (100, 5)
    assert kernel.dimensions == 105
    assert kernel(torch.from_numpy(real)).shape == (100, 105)
    torch.testing.assert_close(kernel(torch.from_numpy(real))[:, :5], linear(torch.from_numpy(real)))


def test_either_part_of_the_features_has_a_norm_of_about_one() -> None:
    # So that one penalty suits both parts, at any number of dimensions.
    for d in (3, 300):
        real = np.random.default_rng(d).normal(size=(400, d)) * 7 + 2
        features = fitted(real)(torch.from_numpy(real))
        assert features[:, :d].square().sum(1).mean() == pytest.approx(1, abs=0.01)
        assert features[:, d:].square().sum(1).mean() == pytest.approx(1, abs=0.05)


def test_fourier_features_have_the_gaussian_kernel_as_their_inner_product() -> None:
    real = np.random.default_rng(6).normal(size=(300, 8)) * np.arange(1, 9)
    waves = fitted(real)(torch.from_numpy(real[:40]))[:, 8:].numpy()
    z = (real - real.mean(axis=0)) / real.std(axis=0)
    # The bandwidth is the median distance of the standardised real rows.
    kernel = np.exp(-cdist(z[:40], z[:40], "sqeuclidean") / (2 * np.median(pdist(z)) ** 2))
    # The error of 512 random features is about 1 / sqrt(512) = 0.044 at one pair.
    error = waves @ waves.T - kernel
    assert np.abs(error).mean() < 0.045
    assert np.abs(error).max() < 0.25


def test_more_fourier_features_come_closer_to_the_kernel() -> None:
    real = np.random.default_rng(16).normal(size=(300, 4))
    z = (real - real.mean(axis=0)) / real.std(axis=0)
    kernel = np.exp(-cdist(z, z, "sqeuclidean") / (2 * np.median(pdist(z)) ** 2))
    errors = []
    for m in (64, 1024, 16384):
        waves = fitted(real, m)(torch.from_numpy(real))[:, 4:].numpy()
        errors.append(np.abs(waves @ waves.T - kernel).mean())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_the_seed_draws_the_random_features() -> None:
    real = scaled(7, 50)
    torch.testing.assert_close(fitted(real, seed=1).frequencies, fitted(real, seed=1).frequencies, rtol=0, atol=0)
    assert not torch.equal(fitted(real, seed=1).frequencies, fitted(real, seed=2).frequencies)


def test_a_rows_features_do_not_depend_on_its_batch() -> None:
    # Inference runs in batches of any size, so a row's features must not depend on other rows.
    real = scaled(8, 64)
    feature_map = fitted(real)
    whole = feature_map(torch.from_numpy(real))
    parts = torch.cat([feature_map(torch.from_numpy(real[i : i + 7])) for i in range(0, 64, 7)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_vectors_of_less_precision_are_mapped_in_double(dtype: type) -> None:
    # float16 represents values up to 65,504, but not their squares and differences.
    real = (np.random.default_rng(12).uniform(-6e4, 6e4, size=(200, 6))).astype(dtype)
    feature_map = fitted(real.astype(np.float64))
    narrow, wide = feature_map(torch.from_numpy(real)), feature_map(torch.from_numpy(real.astype(np.float64)))
    assert narrow.dtype == torch.float64
    torch.testing.assert_close(narrow, wide, rtol=0, atol=0)
    assert torch.isfinite(narrow).all()


def test_features_leave_the_vectors_as_they_were() -> None:
    vectors = torch.from_numpy(scaled(9, 20))
    before = vectors.clone()
    fitted(scaled(9, 20))(vectors)
    assert torch.equal(vectors, before)


@pytest.mark.parametrize("fourier_features", [0, 32])
def test_embedding_gradients_are_finite_differences(fourier_features: int) -> None:
    real = scaled(13, 300)
    feature_map = fitted(real, fourier_features)
    vectors = torch.from_numpy(scaled(14, 20) * 0.99)
    rng = np.random.default_rng(15)
    by_features = torch.from_numpy(rng.normal(size=(20, feature_map.dimensions)))
    found = feature_map.embedding_gradient(vectors, by_features)
    # A step along one standardised coordinate, in the units of the embedding.
    step = 1e-5
    for j in range(5):
        move = torch.zeros(5, dtype=torch.float64)
        move[j] = step
        ahead, behind = (feature_map(vectors + sign * move * feature_map.scale) for sign in (1, -1))
        slope = ((ahead - behind) * by_features).sum(1) / (2 * step)
        np.testing.assert_allclose(found[:, j], slope, atol=1e-6)


def test_a_rows_logit_is_from_the_head_of_its_own_fold() -> None:
    heads = LinearHeads(torch.tensor([[1.0, 0.0], [0.0, 10.0]]).double(), torch.tensor([0.5, -0.5]).double())
    features = torch.tensor([[2.0, 3.0], [2.0, 3.0]]).double()
    assert heads.out_of_fold_logits(features, np.array([0, 1], np.int8)).tolist() == [2.5, 29.5]
    assert heads.gradients(features, np.array([1, 0], np.int8)).tolist() == [[0.0, 10.0], [1.0, 0.0]]


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 1000))
@examples(15)
def test_a_rows_logit_does_not_depend_on_other_rows(n: int, folds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, intercepts, x = rng.normal(size=(folds, 3)), rng.normal(size=folds), rng.normal(size=(n, 3))
    fold = rng.integers(0, folds, n).astype(np.int8)
    heads = LinearHeads(torch.from_numpy(weights), torch.from_numpy(intercepts))
    logits = heads.out_of_fold_logits(torch.from_numpy(x), fold)
    assert logits.shape == (n,)
    np.testing.assert_allclose(logits, [weights[f] @ row + intercepts[f] for f, row in zip(fold, x, strict=True)])
