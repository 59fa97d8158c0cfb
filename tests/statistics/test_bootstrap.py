"""Poisson bootstrap weights: distribution, independence of rows and replicates, stability under selection."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare, poisson

from synthscale.statistics.bootstrap import REPLICATES, poisson_weights
from synthscale.tables.id_hashes import Hashes, hash_ids
from tests.examples import examples

SOURCES = {
    "ids": lambda n: hash_ids(f"real/photo-{i:06d}.jpg" for i in range(n)),
    "random numbers": lambda n: np.random.default_rng(0).integers(0, 2**64, n, np.uint64),
    # Group keys are hashes, but the weights must not depend on that.
    "counted numbers": lambda n: np.arange(n, dtype=np.uint64),
    "multiples of a power of two": lambda n: np.arange(n, dtype=np.uint64) << np.uint64(40),
}
every_source = pytest.mark.parametrize("source", SOURCES)
keys = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20).map(lambda k: np.array(k, np.uint64))


def test_there_is_one_weight_per_row_and_replicate() -> None:
    assert poisson_weights(hash_ids("abc")).shape == (3, REPLICATES)
    assert poisson_weights(hash_ids([])).shape == (0, REPLICATES)


@every_source
def test_weights_have_the_mean_and_variance_of_poisson_one(source: str) -> None:
    found = poisson_weights(SOURCES[source](10_000)).astype(float)
    # The standard error of the mean is 1 / sqrt(N), that of the variance sqrt(3 / N).
    size = found.size**0.5
    assert found.mean() == pytest.approx(1, abs=4.5 / size)
    assert found.var() == pytest.approx(1, abs=4.5 * 3**0.5 / size)


@every_source
def test_weights_have_the_frequencies_of_poisson_one(source: str) -> None:
    found = poisson_weights(SOURCES[source](10_000))
    seen = np.bincount(np.minimum(found, 8).ravel(), minlength=9)
    expected = np.append(poisson.pmf(np.arange(8), 1), poisson.sf(7, 1)) * found.size
    assert chisquare(seen, expected).pvalue > 1e-3


@every_source
def test_every_replicate_alone_has_the_distribution(source: str) -> None:
    found = poisson_weights(SOURCES[source](10_000))
    expected = np.append(poisson.pmf(np.arange(4), 1), poisson.sf(3, 1)) * len(found)
    seen = np.stack([np.bincount(np.minimum(column, 4), minlength=5) for column in found.T])
    # The smallest of 200 p-values.
    assert chisquare(seen, expected[None], axis=1).pvalue.min() > 1e-4


@every_source
def test_replicates_are_independent(source: str) -> None:
    found = poisson_weights(SOURCES[source](10_000))
    correlation = np.corrcoef(found.astype(float).T)
    np.fill_diagonal(correlation, 0)
    # The largest of 19,900 correlations is expected near 4.1 / sqrt(n).
    assert np.abs(correlation).max() < 5.5 / len(found) ** 0.5
    table = np.zeros((4, 4))
    np.add.at(table, (np.minimum(found[:, 0], 3), np.minimum(found[:, 1], 3)), 1)
    assert chi2_contingency(table).pvalue > 1e-3


@every_source
@pytest.mark.parametrize("apart", [1, 2, 1000])
def test_weights_of_different_keys_are_independent(source: str, apart: int) -> None:
    found = poisson_weights(SOURCES[source](10_000)).astype(float) - 1
    products = found[:-apart] * found[apart:]
    assert abs(products.mean()) < 4.5 / products.size**0.5


def test_the_sum_of_a_replicates_weights_has_the_variance_of_independent_weights() -> None:
    # This is what the bootstrap relies on: sums of 10,000 weights have a variance of 10,000.
    totals = poisson_weights(SOURCES["ids"](10_000)).sum(0)
    assert totals.var(ddof=1) == pytest.approx(10_000, rel=4 * (2 / REPLICATES) ** 0.5)


@given(keys, st.data())
@examples(25)
def test_a_weight_depends_on_its_own_key_only(own: Hashes, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(own) - 1), max_size=30))
    np.testing.assert_array_equal(poisson_weights(own[chosen]), poisson_weights(own)[chosen])


@given(keys)
@examples(25)
def test_rows_share_weights_exactly_if_they_share_a_group(own: Hashes) -> None:
    found = poisson_weights(own)
    for i in range(len(own)):
        for j in range(i):
            # Two independent rows of 200 weights are never equal.
            assert (found[i] == found[j]).all() == (own[i] == own[j])
