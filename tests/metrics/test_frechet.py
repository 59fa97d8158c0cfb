import functools
import math
import operator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from scipy.stats import ortho_group

from synthscale.embed.encoders.torchvision_model import import_torchvision
from synthscale.metrics.frechet import Moments, extrapolated, frechet_distance
from tests.examples import examples


def exactly(mean: NDArray[np.float64], covariance: NDArray[np.float64], count: float = 1000) -> Moments:
    return Moments(count, mean, covariance * (count - 1))


def normal(seed: int, n: int, d: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(n, d))


def in_parts(x: NDArray[np.floating], parts: int) -> list[Moments]:
    return [Moments.of(part) for part in np.array_split(x, parts)]


def distance(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    return frechet_distance(Moments.of(x), Moments.of(y))


def bias(n: int, m: int, d: int) -> float:
    """Return the approximate bias of the distance between samples of N(0, I_d)."""
    return (1 / n + 1 / m) * (d + d * (d + 1) / 4)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 3, 2047, 2048, 2049, 5000])
def test_moments_are_those_of_numpy_over_any_number_of_blocks(n: int, dtype: type[np.floating]) -> None:
    rows = (normal(n, n, 4) * [1, 5, 0.1, 3] + [7, 0, -2, 9]).astype(dtype)
    found = Moments.of(rows)
    wide = rows.astype(np.float64)
    assert found.count == n
    assert found.mean.dtype == found.scatter.dtype == np.float64
    np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(wide.T), rtol=1e-11, atol=1e-11)


def test_taking_moments_leaves_the_rows_as_they_were() -> None:
    rows = normal(0, 50, 3) + 4
    before = rows.copy()
    Moments.of(rows)
    np.testing.assert_array_equal(rows, before)


@given(st.integers(0, 60), st.lists(st.integers(0, 60), max_size=5), st.integers(0, 2**32 - 1))
@examples(30)
def test_moments_merge_over_any_split_and_order(n: int, cuts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 3)) * rng.lognormal(sigma=3, size=3) + rng.normal(size=3) * 100
    parts = np.split(rng.permutation(rows), sorted(min(cut, n) for cut in cuts))
    merged = functools.reduce(operator.add, (Moments.of(part) for part in parts))
    assert merged.count == n
    if n == 0:
        assert not merged.scatter.any()
        return
    centred = rows - rows.mean(axis=0)
    np.testing.assert_allclose(merged.mean, rows.mean(axis=0), rtol=1e-10, atol=1e-10)
    scale = np.sqrt(np.outer((centred**2).sum(axis=0), (centred**2).sum(axis=0)))
    assert (np.abs(merged.scatter - centred.T @ centred) <= 1e-9 * scale + 1e-18).all()


@pytest.mark.parametrize("place", ["left", "right"])
def test_adding_empty_moments_changes_nothing(place: str) -> None:
    own, nothing = Moments.of(normal(1, 20, 3) + 5), Moments.empty(3)
    found = own + nothing if place == "right" else nothing + own
    assert found.count == 20
    np.testing.assert_array_equal(found.mean, own.mean)
    np.testing.assert_array_equal(found.scatter, own.scatter)
    assert (nothing + Moments.empty(3)).count == 0


@pytest.mark.parametrize("d", [1, 5, 40])
def test_commuting_covariances_have_a_closed_form(d: int) -> None:
    rng = np.random.default_rng(d)
    basis = ortho_group.rvs(d, random_state=0) if d > 1 else np.eye(1)
    ours, theirs = rng.lognormal(sigma=2, size=(2, d))
    mean, other = rng.normal(size=(2, d))
    found = frechet_distance(exactly(mean, basis * ours @ basis.T), exactly(other, basis * theirs @ basis.T))
    expected = ((mean - other) ** 2).sum() + ((np.sqrt(ours) - np.sqrt(theirs)) ** 2).sum()
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_covariances_that_do_not_commute_agree_with_the_matrix_root(seed: int) -> None:
    rng = np.random.default_rng(seed)
    d = 12
    x, y = (
        rng.normal(size=(40, d)) @ rng.normal(size=(d, d)),
        rng.normal(size=(70, d)) @ rng.normal(size=(d, d)) + 1,
    )
    one, two = np.cov(x.T), np.cov(y.T)
    apart = x.mean(axis=0) - y.mean(axis=0)
    expected = apart @ apart + np.trace(one + two - 2 * sqrtm(one @ two).real)
    assert distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_the_distance_is_symmetric_and_zero_from_a_set_to_itself() -> None:
    x, y = normal(0, 100, 8), normal(1, 60, 8) * 2 + 1
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-10)
    assert 0 <= distance(x, x) < 1e-10
    # Equal covariances, shifted mean: only the mean term remains.
    assert distance(x, x + 3) == pytest.approx(8 * 9, rel=1e-10)


def test_a_change_of_units_scales_the_distance_by_its_square() -> None:
    x, y = normal(0, 100, 8), normal(1, 60, 8) * 2 + 1
    for unit in (1e-12, 1e6):
        assert distance(unit * x, unit * y) == pytest.approx(unit**2 * distance(x, y), rel=1e-9)


@pytest.mark.parametrize(("n", "m", "d"), [(1000, 1000, 32), (5000, 5000, 256), (300, 4000, 20)])
def test_finite_samples_of_one_distribution_are_apart_by_the_known_bias(n: int, m: int, d: int) -> None:
    repeats = 1 if d > 100 else 20
    found = np.mean([distance(normal(2 * i, n, d), normal(2 * i + 1, m, d)) for i in range(repeats)])
    assert found == pytest.approx(bias(n, m, d), rel=0.06)
    if d == 256:
        assert bias(n, m, d) == pytest.approx(6.68, abs=0.005)


@pytest.mark.parametrize("offset", [300.0, 3000.0])
def test_an_offset_of_float32_rows_costs_no_accuracy(offset: float) -> None:
    # Sums of squares in float32, without centring, are off by 0.86 here.
    x, y = (normal(i, 4000, 16).astype(np.float32) + np.float32(offset + i / 10) for i in (0, 1))
    assert x.dtype == np.float32
    centred = (x.astype(np.float64) - offset, y.astype(np.float64) - offset)
    assert distance(x, y) == pytest.approx(distance(*centred), abs=1e-8)


def test_float16_rows_near_the_largest_number_do_not_overflow() -> None:
    x = (normal(0, 500, 6) * 3000 + 50_000).clip(0, 65_504).astype(np.float16)
    y = (normal(1, 400, 6) * 1000 + 40_000).clip(0, 65_504).astype(np.float16)
    found = distance(x, y)
    assert found == pytest.approx(distance(x.astype(np.float64), y.astype(np.float64)), rel=1e-12)
    assert found == pytest.approx(6 * (10_000**2 + 2000**2), rel=0.05)


@pytest.mark.parametrize(("n", "m"), [(5, 9), (5, 400), (400, 5), (2, 2)])
def test_fewer_rows_than_dimensions_have_the_distance_of_their_span(n: int, m: int) -> None:
    # The nuclear norm of the product of the centred rows is tr (S1 S2)^1/2 and needs no root of a singular matrix.
    x, y = normal(0, n, 60), normal(1, m, 60) + 0.3
    thin = [(z - z.mean(axis=0)) / math.sqrt(len(z) - 1) for z in (x, y)]
    apart = x.mean(axis=0) - y.mean(axis=0)
    traces = sum((z**2).sum() for z in thin)
    expected = apart @ apart + traces - 2 * np.linalg.norm(thin[0] @ thin[1].T, "nuc")
    assert distance(x, y) == pytest.approx(expected, abs=1e-5)


def test_equal_singular_sets_are_not_below_zero() -> None:
    for seed in range(10):
        x = normal(seed, 7, 50)
        assert 0 <= distance(x, x[::-1]) < 1e-5


@pytest.mark.parametrize("rows", [0, 1])
def test_below_two_rows_there_is_no_distance(rows: int) -> None:
    x, few = Moments.of(normal(0, 10, 3)), Moments.of(normal(1, rows, 3))
    assert math.isnan(frechet_distance(x, few))
    assert math.isnan(frechet_distance(few, x))
    assert np.isnan(few.covariance).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_give_no_distance(value: float) -> None:
    x = normal(0, 10, 3)
    x[4, 1] = value
    with np.errstate(invalid="ignore"):
        assert math.isnan(distance(x, normal(1, 10, 3)))


def test_torchmetrics_finds_the_same_distance() -> None:
    import_torchvision()
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, x):
            return x.flatten(1)

    x, y = normal(0, 300, 12), normal(1, 200, 12) * 1.5 + 0.2
    peer = fid.FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 2, 2), normalize=True).set_dtype(
        torch.float64
    )
    for rows, is_real in ((x, True), (y, False)):
        peer.update(torch.from_numpy(rows).reshape(-1, 3, 2, 2), real=is_real)
    assert float(peer.compute()) == pytest.approx(distance(x, y), rel=1e-5)


PARTS = 12


def sampled(seed: int, n: int, m: int, d: int, is_equal: bool) -> tuple[list[Moments], list[Moments]]:
    spread = np.sqrt(np.geomspace(1, 0.01, d))
    other = spread if is_equal else np.sqrt(np.geomspace(1.5, 0.02, d))
    x, y = normal(2 * seed, n, d) * spread, normal(2 * seed + 1, m, d) * other + (0 if is_equal else 0.1)
    return in_parts(x, PARTS), in_parts(y, PARTS)


def true_distance(d: int) -> float:
    return d * 0.01 + float(((np.sqrt(np.geomspace(1, 0.01, d)) - np.sqrt(np.geomspace(1.5, 0.02, d))) ** 2).sum())


def test_the_extrapolation_of_equal_gaussians_is_near_zero_while_the_distance_is_not() -> None:
    runs = [sampled(seed, 1200, 600, 32, is_equal=True) for seed in range(20)]
    plain = np.array([frechet_distance(*(functools.reduce(operator.add, s) for s in run)) for run in runs])
    found = np.array([extrapolated(*run) for run in runs])
    assert plain.min() > 0.05
    assert abs(found[:, 0].mean()) < 0.1 * plain.mean()
    assert np.abs(found[:, 0]).max() < 0.5 * plain.min()
    # The extrapolation has both signs.
    assert (found[:, 0] < 0).any()
    assert (found[:, 0] > 0).any()


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(1200, 1200), (2400, 600), (601, 1801)])
def test_the_extrapolation_of_different_gaussians_finds_their_distance_and_its_own_error(n: int, m: int) -> None:
    d = 32
    found = np.array([extrapolated(*sampled(seed, n, m, d, is_equal=False)) for seed in range(40)])
    value, error = found.T
    assert value.mean() == pytest.approx(true_distance(d), abs=3.5 * value.std(ddof=1) / math.sqrt(40))
    # The standard deviation of 40 values is known within some 35 %.
    assert 0.65 < error.mean() / value.std(ddof=1) < 1.6
    covered = np.abs(value - true_distance(d)) < 2.2 * error
    assert covered.mean() >= 0.85


def test_three_equal_parts_extrapolate_by_half_the_excess_of_a_third() -> None:
    x, y = np.split(normal(0, 300, 5), 3), np.split(normal(1, 600, 5) * 1.3, 3)
    whole = distance(np.concatenate(x), np.concatenate(y))
    third = np.mean([distance(a, b) for a, b in zip(x, y, strict=True)])
    pairs = [
        distance(np.concatenate([x[i], x[j]]), np.concatenate([y[i], y[j]])) for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    value, error = extrapolated([Moments.of(a) for a in x], [Moments.of(b) for b in y])
    assert value == pytest.approx(1.5 * whole - 0.5 * third, rel=1e-9)
    assert error == pytest.approx(math.sqrt(2 / 3 * sum((pair - np.mean(pairs)) ** 2 for pair in pairs)), rel=1e-9)


def test_moments_of_equal_means_and_scatter_extrapolate_to_the_distance_without_error() -> None:
    # The distance does not depend on the size here, so there is no bias to remove.
    real = [Moments(20, np.zeros(1), np.zeros((1, 1)))] * 6
    synthetic = [Moments(20, np.full(1, 1.5), np.zeros((1, 1)))] * 6
    assert extrapolated(real, synthetic) == pytest.approx((2.25, 0), abs=1e-12)


def test_parts_of_uneven_sizes_and_empty_ones_still_extrapolate() -> None:
    x, y = normal(0, 1500, 8), normal(1, 1500, 8)
    cuts = [100, 260, 300, 600, 700, 900, 1100, 1150, 1400]
    parts = [[Moments.of(part) for part in np.split(z, cuts)] for z in (x, y)]
    value, error = extrapolated(*parts)
    plain = distance(x, y)
    assert abs(value) < 0.6 * plain
    assert error > 0
    parts[0].append(Moments.empty(8))
    parts[1].append(Moments.empty(8))
    assert extrapolated(*parts)[0] == pytest.approx(value, abs=0.5 * plain)


def test_extrapolation_returns_nan_or_raises_without_enough_parts() -> None:
    whole = Moments.of(normal(0, 30, 3))
    assert all(math.isnan(figure) for figure in extrapolated([whole], [whole]))
    tiny = in_parts(normal(1, 3, 3), 3)
    assert all(math.isnan(figure) for figure in extrapolated(tiny, tiny))
    with pytest.raises(ValueError, match="at least one part"):
        extrapolated([], [])
    with pytest.raises(ValueError):
        extrapolated([whole], [whole, whole])


def test_extrapolating_leaves_the_parts_as_they_were() -> None:
    real, synthetic = sampled(0, 240, 240, 4, is_equal=True)
    first = extrapolated(real, synthetic)
    assert extrapolated(real, synthetic) == first
