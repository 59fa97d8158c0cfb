import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import t

from synthscale.embed.encoders.torchvision_model import import_torchvision
from synthscale.metrics.kernel import kid, kid_blocks

Blocks = list[NDArray[np.floating]]


def gaussians(seed: int, blocks: int, rows: int, d: int, shift: float) -> tuple[Blocks, Blocks]:
    """Return blocks of N(0, I_d) and of N(shift, I_d)."""
    rng = np.random.default_rng(seed)
    return list(rng.normal(size=(blocks, rows, d))), list(rng.normal(size=(blocks, rows, d)) + shift)


def closed_form(d: int, shift: float) -> float:
    """Return KID of N(0, I_d) against N(shift, I_d) for the kernel (x.y / d + 1)^3."""
    a = shift**2
    return (1 + a) ** 3 - 1 + 3 / d * (a + 2 * a**2) + 6 * a / d**2


@pytest.mark.parametrize(("d", "shift", "expected"), [(64, 0.3, 0.3001), (64, 1.0, 7.142), (8, 0.5, None)])
def test_shifted_gaussians_have_a_closed_form(d: int, shift: float, expected: float | None) -> None:
    truth = closed_form(d, shift)
    if expected is not None:
        assert truth == pytest.approx(expected, abs=5e-4)
    value, error = kid(*gaussians(d, 20, 300, d, shift))
    assert error < 0.05 * truth
    assert value == pytest.approx(truth, abs=4 * error)


@pytest.mark.parametrize(("n", "m", "d"), [(2, 2, 1), (5, 7, 3), (9, 4, 6)])
def test_a_block_is_the_double_loop_over_pairs(n: int, m: int, d: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, d)) * 2 + 1, rng.normal(size=(m, d))

    def k(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return (sum(p * q for p, q in zip(a, b, strict=True)) / d + 1) ** 3

    within = [np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    expected = sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert kid_blocks([x], [y])[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rows", [2, 3, 25])
def test_equal_distributions_give_zero_on_average_however_small_the_blocks(rows: int) -> None:
    # The biased estimator, which includes pairs of a row with itself, gives 0.5 and more here.
    values = kid_blocks(*gaussians(rows, 4000, rows, 16, 0.0))
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(4000)
    assert values.std() / math.sqrt(4000) < 0.03
    assert (values < 0).mean() > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.2, 0.6])
def test_the_standard_error_matches_the_spread_over_data_sets(shift: float) -> None:
    repeats, blocks = 300, 10
    values = kid_blocks(*gaussians(7, repeats * blocks, 30, 12, shift)).reshape(repeats, blocks)
    runs = [kid(*gaussians(1000 + i, blocks, 30, 12, shift)) for i in range(repeats)]
    value, error = np.array(runs).T
    # Compared with the spread over other data sets, and as the coverage of a Student t interval.
    assert np.sqrt(np.mean(error**2)) == pytest.approx(values.mean(axis=1).std(ddof=1), rel=0.2)
    covered = np.abs(value - closed_form(12, shift)) < t.ppf(0.975, blocks - 1) * error
    assert 0.90 <= covered.mean() <= 0.99


def test_the_value_is_the_mean_of_blocks_and_its_error_theirs() -> None:
    real, synthetic = gaussians(3, 5, 20, 4, 0.5)
    single = [kid([x], [y])[0] for x, y in zip(real, synthetic, strict=True)]
    value, error = kid(real, synthetic)
    assert value == pytest.approx(sum(single) / 5)
    spread = math.sqrt(sum((v - sum(single) / 5) ** 2 for v in single) / 4)
    assert error == pytest.approx(spread / math.sqrt(5))
    # KID is symmetric in the sets and does not depend on the order of rows.
    assert kid(synthetic, real)[0] == pytest.approx(value)
    assert kid([x[::-1] for x in real], synthetic)[0] == pytest.approx(value)


def test_one_block_has_no_error_and_none_has_no_value() -> None:
    value, error = kid(*gaussians(0, 1, 50, 4, 0.5))
    assert math.isfinite(value)
    assert math.isnan(error)
    assert all(math.isnan(figure) for figure in kid([], []))
    assert len(kid_blocks([], [])) == 0


@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1), (0, 5)])
def test_a_block_of_fewer_than_two_rows_is_refused_by_name(n: int, m: int) -> None:
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(4, 3))
    with pytest.raises(ValueError, match=rf"block 1 has {n} real and {m} synthetic rows"):
        kid_blocks([whole, rng.normal(size=(n, 3))], [whole, rng.normal(size=(m, 3))])


def test_different_numbers_of_blocks_are_refused() -> None:
    real, synthetic = gaussians(0, 3, 5, 2, 0.0)
    with pytest.raises(ValueError):
        kid(real, synthetic[:2])


def test_narrow_rows_are_computed_in_float64() -> None:
    real, synthetic = gaussians(1, 2, 40, 8, 0.5)
    for dtype, scale in ((np.float16, 10_000.0), (np.float32, 300.0)):
        narrow = [[(x * scale).astype(dtype) for x in blocks] for blocks in (real, synthetic)]
        wide = [[x.astype(np.float64) for x in blocks] for blocks in narrow]
        found = kid_blocks(*narrow)
        # Cubes of float16 products would overflow.
        assert np.isfinite(found).all()
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, kid_blocks(*wide), rtol=1e-12)


def test_torchmetrics_finds_the_same_on_one_subset() -> None:
    import_torchvision()
    peers = pytest.importorskip("torchmetrics.image.kid")

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, x):
            return x.flatten(1).double()

    real, synthetic = gaussians(2, 1, 80, 12, 0.4)
    peer = peers.KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=80, normalize=True)
    for rows, is_real in ((real[0], True), (synthetic[0], False)):
        peer.update(torch.from_numpy(rows).reshape(-1, 3, 2, 2), real=is_real)
    assert float(peer.compute()[0]) == pytest.approx(kid(real, synthetic)[0], rel=1e-5)
