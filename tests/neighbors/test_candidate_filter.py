import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthscale.neighbors.candidate_filter import (
    TorchFilter,
    as_database,
    as_queries,
    count_near,
    cpu_filter,
    filter_for,
)
from tests.examples import examples

Points = NDArray[np.float32]
Matrix = NDArray[np.float64]


def points_of(kind: str, seed: int, n: int, d: int) -> Points:
    """Points like those of a projection: unit vectors minus a mean, so of norm at most 2."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + {"centred": 0, "offset": 5, "tight": 300}.get(kind, 0)
    if kind == "copies":
        x = x[rng.integers(0, max(1, n // 3), n)]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return (x - (x[:1] if kind == "tight" else 0)).astype(np.float32)


def halved(x: Points, y: Points) -> Matrix:
    """Half the squared distance of all pairs in float64, (n, m)."""
    return ((x.astype(np.float64)[:, None] - y.astype(np.float64)[None]) ** 2).sum(axis=2) / 2


def pairs_of(found: tuple[NDArray[np.int64], NDArray[np.int64]]) -> set[tuple[int, int]]:
    pairs = list(zip(*(side.tolist() for side in found), strict=True))
    assert len(set(pairs)) == len(pairs)
    return set(pairs)


def pairs_where(chosen: NDArray[np.bool_]) -> set[tuple[int, int]]:
    return {(int(i), int(j)) for i, j in np.argwhere(chosen)}


cases = given(
    kind=st.sampled_from(["centred", "offset", "tight", "copies"]),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 30),
    m=st.integers(0, 30),
    d=st.sampled_from([1, 2, 5, 64, 300]),
)


@cases
@examples(75)
def test_every_pair_within_its_limits_is_a_candidate_and_few_others_are(
    kind: str, seed: int, n: int, m: int, d: int
) -> None:
    both = points_of(kind, seed, n + m + 1, d)
    x, y = both[:n], both[n : n + m]
    distances = halved(x, y)
    rng = np.random.default_rng(seed)
    # The limits of some pairs add up to exactly their distance.
    right = rng.choice([0.0, 1e-9, 0.01, 0.3], m)
    left = np.zeros(n) if m == 0 else np.diagonal(distances[:, rng.integers(0, m, n)] - right[:1]).copy()
    excess = distances - left[:, None] - right[None]
    row, column = cpu_filter(as_queries(x, left), as_database(y, right))
    assert (np.diff(row) >= 0).all()
    found = pairs_of((row, column))
    assert pairs_where(excess <= 0) <= found <= pairs_where(excess <= 1e-5)


@cases
@examples(30)
def test_torch_filter_equals_cpu_filter_up_to_rounding(kind: str, seed: int, n: int, m: int, d: int) -> None:
    both = points_of(kind, seed, n + m + 1, d)
    left, right = as_queries(both[:n], 0.2), as_database(both[n : n + m], np.linspace(0, 0.5, m))
    sure = np.abs(left.astype(np.float64) @ right.astype(np.float64).T) > 1e-5
    one, other = pairs_of(cpu_filter(left, right)), pairs_of(TorchFilter("cpu")(left, right))
    assert {pair for pair in one ^ other if sure[pair]} == set()


@pytest.mark.parametrize("limit", [0.0, 5e-324, 1e-30, 1e-9])
def test_equal_points_pass_at_any_limit_and_far_ones_do_not(limit: float) -> None:
    x = points_of("offset", 0, 50, 512)
    assert pairs_of(cpu_filter(as_queries(x, limit), as_database(x))) == {(i, i) for i in range(50)}


def test_a_negative_limit_excludes_a_point() -> None:
    x = points_of("centred", 1, 20, 8)
    limits = np.where(np.arange(20) < 5, -2.0, 2.0)
    assert set(cpu_filter(as_queries(x), as_database(x, limits))[1].tolist()) == set(range(5, 20))
    assert set(cpu_filter(as_queries(x, limits), as_database(x))[0].tolist()) == set(range(5, 20))


def test_input_points_are_not_modified() -> None:
    x = points_of("centred", 2, 20, 8)
    before = x.copy()
    as_queries(x, 0.1), as_database(x, 0.1), count_near(x, 0.1)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("kind", ["centred", "offset", "tight", "copies"])
@pytest.mark.parametrize("n", [0, 1, 700, 2500])
def test_count_near_equals_brute_force(kind: str, n: int) -> None:
    x = points_of(kind, 3, n, 6)
    distances = np.concatenate([np.empty((0, n)), *(halved(x[i : i + 100], x) for i in range(0, n, 100))])
    for limit in (0.0, 1e-3, 0.3, 2.0):
        counts = count_near(x, limit)
        assert counts.shape == (n,)
        assert (counts >= (distances <= limit).sum(axis=1)).all()
        assert (counts <= (distances <= limit + 1e-5).sum(axis=1)).all()


def test_without_a_gpu_the_cpu_is_used() -> None:
    assert filter_for(0) is cpu_filter
