import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import t

from synthscale.embed.encoders.torchvision_model import import_torchvision
from synthscale.metrics import kernel
from synthscale.metrics.kernel import kid
from synthscale.statistics.jackknife import standard_error
from synthscale.tables.schemas import BLOCKS
from tests.reference.kid import polynomial_mmd, subset_kid

Matrix = NDArray[np.float64]
SPREAD = np.arange(1, 33) ** -0.5 * 3
"""Standard deviations of 32 dimensions, that fall as those of embeddings do."""


def rows(x: NDArray[np.floating], group: NDArray[np.int64] | None = None, seed: int = 0) -> kernel.Rows:
    """Rows with the jackknife block of each group (of each row, where there are none), at random."""
    group = np.arange(len(x)) if group is None else group
    blocks = np.random.default_rng(seed).integers(0, BLOCKS, int(group.max(initial=0)) + 1)
    return x, blocks[group].astype(np.int8)


def gaussians(seed: int, n: int, m: int, d: int, shift: float) -> tuple[Matrix, Matrix]:
    """Return rows of N(0, I_d) and of N(shift, I_d)."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(m, d)) + shift


def closed_form(d: int, shift: float) -> float:
    """Return KID of N(0, I_d) against N(shift, I_d) for the kernel (x.y / d + 1)^3."""
    a = shift**2
    return (1 + a) ** 3 - 1 + 3 / d * (a + 2 * a**2) + 6 * a / d**2


@pytest.mark.parametrize(("d", "shift", "expected"), [(64, 0.3, 0.3001), (64, 1.0, 7.142), (8, 0.5, None)])
def test_shifted_gaussians_have_a_closed_form(d: int, shift: float, expected: float | None) -> None:
    truth = closed_form(d, shift)
    if expected is not None:
        assert truth == pytest.approx(expected, abs=5e-4)
    x, y = gaussians(d, 6000, 6000, d, shift)
    value, deviations = kid(rows(x), rows(y, seed=1))
    assert standard_error(deviations) < 0.05 * truth
    assert value == pytest.approx(truth, abs=4 * standard_error(deviations))


@pytest.mark.parametrize(("n", "m", "d"), [(2, 2, 1), (5, 7, 3), (9, 4, 6)])
def test_the_value_is_the_double_loop_over_pairs(n: int, m: int, d: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, d)) * 2 + 1, rng.normal(size=(m, d))

    def k(a: Matrix, b: Matrix) -> float:
        return (sum(p * q for p, q in zip(a, b, strict=True)) / d + 1) ** 3

    within = [np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    expected = sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert kid(rows(x), rows(y))[0] == pytest.approx(expected, rel=1e-12)


# Generators that repeat and copy: (real rows, synthetic rows, their groups).


def copying(rng: np.random.Generator, n: int, m: int) -> tuple[Matrix, Matrix, NDArray[np.int64]]:
    """Synthetic rows are real ones with jitter of 5 %."""
    x = rng.normal(size=(n, 32)) * SPREAD
    source = rng.permutation(np.arange(m) % n)
    return x, x[source] + 0.05 * SPREAD * rng.normal(size=(m, 32)), source


def half_copying(rng: np.random.Generator, n: int, m: int) -> tuple[Matrix, Matrix, NDArray[np.int64]]:
    x, y, group = copying(rng, n, m)
    new = np.arange(m) % 2 == 0
    y[new] = rng.normal(size=(new.sum(), 32)) * SPREAD
    return x, y, np.where(new, n + np.arange(m), group)


def collapsed(rng: np.random.Generator, n: int, m: int) -> tuple[Matrix, Matrix, NDArray[np.int64]]:
    """Synthetic rows are forty images of the real distribution, each repeated with jitter."""
    x, few = rng.normal(size=(n, 32)) * SPREAD, rng.normal(size=(40, 32)) * SPREAD
    group = rng.integers(0, 40, m)
    return x, few[group] + 0.05 * SPREAD * rng.normal(size=(m, 32)), n + group


def shifted(rng: np.random.Generator, n: int, m: int) -> tuple[Matrix, Matrix, NDArray[np.int64]]:
    x, y = rng.normal(size=(n, 32)) * SPREAD, rng.normal(size=(m, 32)) * SPREAD + 0.3
    return x, y, n + np.arange(m)


def equal(rng: np.random.Generator, n: int, m: int) -> tuple[Matrix, Matrix, NDArray[np.int64]]:
    x, y, group = shifted(rng, n, m)
    return x, y - 0.3, group


WORLDS = {world.__name__: world for world in (equal, shifted, copying, half_copying, collapsed)}


def found(name: str, n: int, m: int, seed: int = 0) -> tuple[Matrix, Matrix, float, float]:
    """Return rows of both sets, KID and its standard error."""
    x, y, group = WORLDS[name](np.random.default_rng([seed, n, m]), n, m)
    blocks = np.random.default_rng(seed).integers(0, BLOCKS, n + m + 40).astype(np.int8)
    value, deviations = kid((x, blocks[:n]), (y, blocks[group]))
    return x, y, value, standard_error(deviations)


@pytest.mark.parametrize(("n", "m"), [(1000, 1000), (600, 80), (64, 900)])
@pytest.mark.parametrize("name", WORLDS)
def test_copies_included_the_value_is_that_of_torch_fidelity(name: str, n: int, m: int) -> None:
    x, y, value, error = found(name, n, m)
    assert value == pytest.approx(polynomial_mmd(x, y), rel=1e-9, abs=1e-12)
    mean, chance = subset_kid(x, y, 60, min(n, m) // 4, np.random.default_rng(1))
    assert value == pytest.approx(mean, abs=4 * chance)
    assert 0 < error < 1


def test_jittered_copies_have_a_slightly_negative_value() -> None:
    # Blocks of whole groups gave -0.07 where the estimator over all pairs gives -0.014.
    _, _, value, error = found("copying", 1000, 1000)
    assert -0.03 < value < -0.01
    assert error < 0.02


@pytest.mark.parametrize("name", WORLDS)
def test_subsets_are_unbiased_and_use_every_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, group = WORLDS[name](np.random.default_rng(7), 900, 500)
    whole = polynomial_mmd(x, y)
    monkeypatch.setattr(kernel, "SUBSET_ROWS", 200)
    values = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        i, j = rng.permutation(900), rng.permutation(500)
        blocks = rng.integers(0, BLOCKS, 1500).astype(np.int8)
        values.append(kid((x[i], blocks[i]), (y[j], blocks[group[j]]))[0])
    assert np.mean(values) == pytest.approx(whole, abs=4 * np.std(values) / np.sqrt(40))
    one, two = kernel._subsets(rows(x)), kernel._subsets(rows(y))
    for parts, z in ((one, x), (two, y)):
        assert max(len(part) for part, _ in parts) <= 200
        np.testing.assert_array_equal(np.sort(np.concatenate([part for part, _ in parts]), 0), np.sort(z, 0))


def test_a_small_set_is_compared_with_every_subset_of_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "SUBSET_ROWS", 100)
    x, y = gaussians(0, 450, 3, 4, 0.5)
    value, _ = kid(rows(x), rows(y))
    cube = (x @ y.T / 4 + 1) ** 3
    parts = [x[i::5] for i in range(5)]
    within = [((z @ z.T / 4 + 1) ** 3).sum() - ((z * z).sum(1) / 4 + 1).__pow__(3).sum() for z in parts]
    own = (y @ y.T / 4 + 1) ** 3
    expected = sum(within) / (5 * 90 * 89) + (own.sum() - np.trace(own)) / 6 - 2 * cube.mean()
    assert value == pytest.approx(expected, rel=1e-9)


def test_deviations_are_the_change_in_the_weight_of_a_block() -> None:
    x, y, group = half_copying(np.random.default_rng(2), 300, 200)
    blocks = np.random.default_rng(3).integers(0, BLOCKS, 700).astype(np.int8)
    value, deviations = kid((x, blocks[:300]), (y, blocks[group]))

    def weighted(weight: Matrix) -> float:
        """KID with weights of the blocks' rows, from the definition of a weighted mean over pairs."""
        total = 0.0
        for factor, (a, own), (b, other) in (
            (1, (x, blocks[:300]), (x, blocks[:300])),
            (1, (y, blocks[group]), (y, blocks[group])),
            (-2, (x, blocks[:300]), (y, blocks[group])),
        ):
            pair = np.outer(weight[own], weight[other])
            if a is b:
                np.fill_diagonal(pair, 0)
            total += factor * (pair * (a @ b.T / 32 + 1) ** 3).sum() / pair.sum()
        return total

    assert value == pytest.approx(weighted(np.ones(BLOCKS)))
    for block in range(BLOCKS):
        step = 1e-5 * (np.arange(BLOCKS) == block)
        slope = (weighted(1 + step) - weighted(1 - step)) / 2e-5
        assert deviations[block] == pytest.approx(math.sqrt(BLOCKS / (BLOCKS - 1)) * slope, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(400, 400), (1000, 200), (64, 800)])
@pytest.mark.parametrize("name", WORLDS)
def test_intervals_contain_the_expectation(name: str, n: int, m: int) -> None:
    value, error = np.array([found(name, n, m, seed)[2:] for seed in range(200)]).T
    covered = np.abs(value - value.mean()) < t.ppf(0.975, BLOCKS - 1) * error
    # Too wide where the value depends on pairs more than on rows: for equal sets and for copies.
    assert covered.mean() >= 0.91
    assert 0.85 < np.sqrt(np.mean(error**2)) / value.std(ddof=1) < 2.5


def test_the_error_of_repeats_is_that_of_their_groups() -> None:
    x, y, group = collapsed(np.random.default_rng(4), 500, 2000)
    blocks = np.random.default_rng(5).integers(0, BLOCKS, 540).astype(np.int8)
    by_group = standard_error(kid((x, blocks[:500]), (y, blocks[group]))[1])
    by_row = standard_error(kid((x, blocks[:500]), rows(y, seed=6))[1])
    assert by_group > 3 * by_row


def test_kid_is_symmetric_and_does_not_depend_on_the_order_of_rows() -> None:
    x, y = gaussians(3, 80, 60, 4, 0.5)
    (value, deviations), (swapped, of_swapped) = kid(rows(x), rows(y)), kid(rows(y), rows(x))
    assert swapped == pytest.approx(value)
    np.testing.assert_allclose(of_swapped, deviations)
    reversed_rows = [(part[::-1], block[::-1]) for part, block in (rows(x), rows(y))]
    assert kid(*reversed_rows)[0] == pytest.approx(value)


@pytest.mark.parametrize("rows_of_a_set", [2, 3, 25])
def test_equal_distributions_give_zero_on_average_however_small_the_sets(rows_of_a_set: int) -> None:
    # The biased estimator, which includes pairs of a row with itself, gives 0.5 and more here.
    data = (gaussians(seed, rows_of_a_set, rows_of_a_set, 16, 0.0) for seed in range(2000))
    values = np.array([kid(rows(x), rows(y))[0] for x, y in data])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(2000)
    assert (values < 0).mean() > 0.3


@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1), (0, 5), (0, 0)])
def test_sets_of_fewer_than_two_rows_have_no_value(n: int, m: int) -> None:
    value, deviations = kid(rows(np.ones((n, 3))), rows(np.ones((m, 3))))
    assert math.isnan(value)
    assert np.isnan(deviations).all()


def test_narrow_rows_are_computed_in_float64() -> None:
    for (dtype, scale), shift in itertools.product(((np.float16, 10_000.0), (np.float32, 300.0)), (0.0, 0.5)):
        narrow = [(x * scale).astype(dtype) for x in gaussians(1, 80, 80, 8, shift)]
        # Cubes of float16 products would overflow.
        value, _ = kid(rows(narrow[0]), rows(narrow[1]))
        assert value == pytest.approx(polynomial_mmd(*(x.astype(np.float64) for x in narrow)), rel=1e-9)


def test_torchmetrics_finds_the_same_on_one_subset() -> None:
    import_torchvision()
    peers = pytest.importorskip("torchmetrics.image.kid")

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, x):
            return x.flatten(1).double()

    real, synthetic = gaussians(2, 80, 80, 12, 0.4)
    peer = peers.KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=80, normalize=True)
    for x, is_real in ((real, True), (synthetic, False)):
        peer.update(torch.from_numpy(x).reshape(-1, 3, 2, 2), real=is_real)
    assert float(peer.compute()[0]) == pytest.approx(kid(rows(real), rows(synthetic))[0], rel=1e-5)
