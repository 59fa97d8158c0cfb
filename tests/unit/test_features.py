import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from synthscale.features import FeatureMap, Heads, fit_feature_map, load_model, save_model


def fitted(real: NDArray[np.float64], head: str = "kernel", seed: int = 0) -> FeatureMap:
    x = torch.from_numpy(real)
    return fit_feature_map(x.mean(0), x.std(0, correction=0), x[:300], head, seed)  # type: ignore[arg-type]


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
    # Tabular users have incomes (1e5) beside ratios (0.1) and may see the fake in the ratio alone.
    real = np.random.default_rng(2).normal(size=(500, 2)) * [1e5, 0.1]
    z = fitted(real).standardise(torch.from_numpy(real)).numpy()
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-6)


@pytest.mark.parametrize("head", ["linear", "kernel"])
def test_dimensions_without_variance_stay_finite_and_bounded(head: str) -> None:
    real = scaled(3, 100)
    real[:, 1] = 4.0
    synthetic = scaled(4, 100)
    synthetic[0, 1] = 1e30
    features = fitted(real, head)(torch.from_numpy(synthetic))
    assert torch.isfinite(features).all()
    assert features.abs().max() < 20


@pytest.mark.parametrize("rows", [1, 2])
def test_real_rows_all_alike_give_finite_features(rows: int) -> None:
    features = fitted(np.full((rows, 4), 2.5))(torch.randn(10, 4, dtype=torch.float64))
    assert torch.isfinite(features).all()


def test_the_linear_head_has_the_embedding_and_the_kernel_head_more() -> None:
    real = scaled(5, 100)
    linear, kernel = fitted(real, "linear"), fitted(real)
    assert linear.dimensions == 5
    assert linear(torch.from_numpy(real)).shape == (100, 5)
    assert kernel(torch.from_numpy(real)).shape == (100, kernel.dimensions)
    torch.testing.assert_close(kernel(torch.from_numpy(real))[:, :5], linear(torch.from_numpy(real)))


def test_fourier_features_have_the_gaussian_kernel_as_their_inner_product() -> None:
    real = np.random.default_rng(6).normal(size=(300, 8))
    feature_map = fitted(real)
    x = torch.from_numpy(real[:40])
    waves = feature_map(x)[:, 8:]
    z = feature_map.standardise(x)
    # The bandwidth is the median distance of the standardised real rows.
    bandwidth = torch.pdist(feature_map.standardise(torch.from_numpy(real))).median()
    kernel = torch.exp(-(torch.cdist(z, z) ** 2) / (2 * bandwidth**2))
    # The error of 512 random features is about 1 / sqrt(512) = 0.044 at one pair.
    error = waves @ waves.T - kernel
    assert error.abs().mean() < 0.045
    assert error.abs().max() < 0.25


def test_the_seed_draws_the_random_features() -> None:
    real = scaled(7, 50)
    torch.testing.assert_close(fitted(real, seed=1).frequencies, fitted(real, seed=1).frequencies, rtol=0, atol=0)
    assert not torch.equal(fitted(real, seed=1).frequencies, fitted(real, seed=2).frequencies)


def test_a_map_answers_row_by_row() -> None:
    # Inference runs in batches of any size: a row's features may not hang on its neighbours.
    real = scaled(8, 64)
    feature_map = fitted(real)
    whole = feature_map(torch.from_numpy(real))
    parts = torch.cat([feature_map(torch.from_numpy(real[i : i + 7])) for i in range(0, 64, 7)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


def test_features_leave_the_vectors_as_they_were() -> None:
    vectors = torch.from_numpy(scaled(9, 20))
    before = vectors.clone()
    fitted(scaled(9, 20))(vectors)
    assert torch.equal(vectors, before)


def test_the_head_of_a_rows_own_fold_answers_for_it() -> None:
    heads = Heads(torch.tensor([[1.0, 0.0], [0.0, 10.0]]).double(), torch.tensor([0.5, -0.5]).double())
    features = torch.tensor([[2.0, 3.0], [2.0, 3.0]]).double()
    assert heads.out_of_fold_logits(features, np.array([0, 1], np.int8)).tolist() == [2.5, 29.5]


@pytest.mark.parametrize("head", ["linear", "kernel"])
def test_a_saved_model_gives_the_same_logits(head: str) -> None:
    real = scaled(10, 60)
    feature_map = fitted(real, head)
    rng = np.random.default_rng(0)
    heads = {
        name: Heads(
            torch.from_numpy(rng.normal(size=(k, feature_map.dimensions))), torch.from_numpy(rng.normal(size=k))
        )
        for name, k in (("gan-2.v1", 5), ("weights", 2))
    }
    map_again, heads_again = load_model(save_model(feature_map, heads))
    assert set(heads_again) == set(heads)
    x = torch.from_numpy(scaled(11, 30))
    for name, own in heads.items():
        fold = np.arange(30, dtype=np.int8) % len(own.intercepts)
        np.testing.assert_array_equal(
            heads_again[name].out_of_fold_logits(map_again(x), fold), own.out_of_fold_logits(feature_map(x), fold)
        )
