"""Coverage of 95 % intervals of the expectation over data sets of the same sizes: simulated, about a minute.

Generators are shifted normal distributions around a mean away from 0 that repeat themselves and copy real rows in
groups of random size, so that no metric is near 0 or 1 throughout. The expectation is the mean over all data sets.

Measured with 150 data sets a design, in per cent (fidelity, representativeness, diversity, freshness, precision,
coverage): the first design below 93 91 98 97 96 97; the second 97 95 95 95 100 97 (the interval of precision near
1 is too wide). More designs: benchmarks/README.md.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from synthscale import score_features
from synthscale.metric_names import CORE_METRICS

Vectors = NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """Distribution of simulated data sets of n real and m synthetic rows."""

    n: int
    m: int
    d: int
    shift: float
    scale: float

    def draw(self, seed: int) -> Vectors:
        """Return the real rows followed by the synthetic ones."""
        rng = np.random.default_rng(seed)
        centre = np.r_[3.0, np.zeros(self.d - 1)]
        real = centre + rng.normal(size=(self.n, self.d))
        fake = centre + self.shift / self.d**0.5 + self.scale * rng.normal(size=(self.m, self.d))
        start = 0
        while start < self.m:
            kind, stop = rng.random(), start + 1
            if kind < 0.08:
                # One synthetic image repeated two to four times.
                stop += int(rng.integers(1, 4))
                fake[start:stop] = fake[start] + 1e-3 * rng.normal(size=fake[start:stop].shape)
            elif kind < 0.2:
                # A copy of a real image, once or twice.
                stop += int(rng.integers(0, 2))
                fake[start:stop] = real[rng.integers(self.n)] + 1e-3 * rng.normal(size=fake[start:stop].shape)
            start = stop
        return np.vstack([real, fake])

    def held(self, data_sets: int) -> tuple[dict[str, float], dict[str, int]]:
        """Return each metric's expectation, and in how many data sets its interval contains it."""
        found = []
        for seed in range(data_sets):
            x, kinds = self.draw(seed), ["real"] * self.n + ["synthetic"] * self.m
            # Different ids in each data set, for different fold and block assignments.
            ids = [f"{seed}/{i}" for i in range(len(x))]
            metrics = score_features(x, kinds, ids=ids).metrics["synthetic"]["metrics"]
            found.append([[metrics[name][end] for end in ("value", "low", "high")] for name in CORE_METRICS])
        value, low, high = np.moveaxis(np.array(found, float), 2, 0)
        expected = value.mean(0)
        hits = ((low <= expected) & (expected <= high)).sum(0)
        return (
            dict(zip(CORE_METRICS, expected.tolist(), strict=True)),
            dict(zip(CORE_METRICS, hits.tolist(), strict=True)),
        )


def is_within(hits: int, data_sets: int, low: float, high: float) -> bool:
    """Return True unless a share between the limits is rejected at the 1 % level."""
    ends = binomtest(hits, data_sets).proportion_ci(0.98, method="exact")
    return bool(ends.high >= low and ends.low <= high)


@pytest.mark.slow
def test_intervals_hold_the_expectation_in_92_to_98_of_100_data_sets() -> None:
    data_sets = 100
    expected, hits = Design(200, 200, 8, 0.8, 1.0).held(data_sets)
    # No metric is near 0 or 1.
    assert 0.6 < expected["diversity"] < 0.95
    assert 0.6 < expected["freshness"] < 0.95
    assert 0.3 < expected["fidelity"] < 0.48
    assert 0.3 < expected["representativeness"] < 0.48
    assert 0.85 < expected["precision"] < 0.99
    assert 0.85 < expected["coverage"] < 0.99
    for name in CORE_METRICS:
        assert is_within(hits[name], data_sets, 0.92, 0.98), hits


@pytest.mark.slow
def test_intervals_hold_it_as_often_with_fewer_synthetic_rows_that_spread_less() -> None:
    data_sets = 70
    expected, hits = Design(300, 150, 16, 0.5, 0.85).held(data_sets)
    assert 0.3 < expected["fidelity"] < 0.49
    for name in CORE_METRICS:
        assert is_within(hits[name], data_sets, 0.92, 1.0 if name == "precision" else 0.98), hits
