"""Area under the ROC curve with its interval and p-value, from sums that merge over shards.

Ranks come from sparse histograms of the values. The histogram for the AUC keeps 11 bits of the mantissa: values
within 0.05 % of one another count as tied, which bounds its size whatever the number of rows. The bootstrap's
histogram keeps 4 bits, which is enough because only the deviations of its replicates are used.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import expit, logit, ndtr

from synthscale.statistics.bootstrap import REPLICATES
from synthscale.statistics.estimates import Metric, metric_block
from synthscale.statistics.jackknife import binomial_interval

_FINE_DROPPED_BITS = 12
"""Bits dropped from a float32's 23-bit mantissa for the AUC's histogram; 11 remain."""
_COARSE_DROPPED_BITS = 19
"""Bits dropped for the bootstrap's histogram; 4 remain."""
BOOTSTRAP_HALF_WIDTH = 1.959963984540054 * math.sqrt(2)
"""Half-width of a 95 % interval of an out-of-fold metric, in standard errors of the bootstrap.

The bootstrap does not refit the heads, so it misses the variance from training. In cross-validation each row also
helps to train the heads that score the rows of other folds. Where there is little to learn, or the heads have many
dimensions, that doubles the variance, hence the root of 2 (simulated: 1.7 to 2.3 times the variance). Where few
dimensions separate the sets well the factor is near 1, and these intervals are 1.4 times too wide.
"""


@dataclass
class RankSums:
    """Histograms of a value by class (0 real, 1 synthetic), plain and weighted by the bootstrap; merge with ``+``.

    Attributes:
        fine: counts by code (see `value_of`) of real and of synthetic rows.
        codes: (u,) codes of the coarse histogram, ascending.
        replicates: (u, 2, REPLICATES) bootstrap-weighted counts by coarse code and class.
        clusters: (2,) independent rows of each class: clusters of near-duplicates.
    """

    fine: tuple[Counter[int], Counter[int]] = field(default_factory=lambda: (Counter(), Counter()))
    codes: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    replicates: NDArray[np.floating] = field(default_factory=lambda: np.zeros((0, 2, REPLICATES)))
    clusters: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))

    def __add__(self, other: "RankSums") -> "RankSums":
        """Return the histograms over both sets of rows."""
        codes = np.union1d(self.codes, other.codes)
        replicates = np.zeros((len(codes), 2, REPLICATES))
        for part in (self, other):
            replicates[np.searchsorted(codes, part.codes)] += part.replicates
        fine = (self.fine[0] + other.fine[0], self.fine[1] + other.fine[1])
        return RankSums(fine, codes, replicates, self.clusters + other.clusters)

    @property
    def counts(self) -> tuple[int, int]:
        """Number of real and of synthetic rows."""
        return self.fine[0].total(), self.fine[1].total()


def sum_ranks(
    values: NDArray[np.float64],
    is_real: NDArray[np.bool_],
    weights: NDArray[np.uint8] | None = None,
    cluster_rows: NDArray[np.number] | None = None,
) -> RankSums:
    """Count the values of a shard's rows in histograms.

    Args:
        values: (n,); rows with NaN are left out.
        is_real: (n,) class of each row.
        weights: (n, REPLICATES) bootstrap weights; without them there will be no standard error and no interval.
        cluster_rows: (n,) number of rows of the row's own class in its cluster; by default rows are independent.
    """
    is_known = ~np.isnan(values)
    share = np.ones(len(values)) if cluster_rows is None else 1 / cluster_rows
    clusters = np.array([share[is_known & (is_real == kind)].sum() for kind in (True, False)])
    values, is_real = values[is_known], is_real[is_known]
    ordered = _ordered(values)
    fine = tuple(
        Counter(_counts(_rounded(ordered[is_real == kind], _FINE_DROPPED_BITS))) for kind in (True, False)
    )
    sums = RankSums((fine[0], fine[1]), clusters=clusters)
    if weights is None or not len(values):
        return sums
    codes, index = np.unique(_rounded(ordered, _COARSE_DROPPED_BITS), return_inverse=True)
    shape = (2 * len(codes), len(values))
    cell = csr_array((np.ones(len(values)), (2 * index + ~is_real, np.arange(len(values)))), shape=shape)
    # Sums of integers: float32 is exact for the rows of a shard, and half as large to send.
    replicates = (cell.astype(np.float32) @ weights[is_known].astype(np.float32)).reshape(
        len(codes), 2, REPLICATES
    )
    return RankSums(sums.fine, codes, replicates, clusters)


def _ordered(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return integers that sort as the values in float32 do: bit patterns, negated for negative values."""
    bits = values.astype(np.float32).view(np.int32).astype(np.int64)
    result: NDArray[np.int64] = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    return result


def value_of(code: int) -> float:
    """Return the value that a code of the fine histogram represents, to a relative precision of 0.05 %."""
    bits = code << _FINE_DROPPED_BITS
    sign = np.uint32(0x80000000 if bits < 0 else 0)
    return float((np.uint32(abs(bits)) | sign).view(np.float32))


def _rounded(ordered: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Return histogram codes: ordered integers rounded to multiples of 2^bits, then divided by it."""
    result: NDArray[np.int64] = np.round(ordered / 2**bits).astype(np.int64)
    return result


def _counts(codes: NDArray[np.int64]) -> dict[int, int]:
    values, counts = np.unique(codes, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def auc(sums: RankSums) -> float:
    """Return the area under the ROC curve: the probability that a synthetic row's value exceeds a real row's.

    Ties count one half. NaN if either class has no rows.
    """
    codes = sorted(set(sums.fine[0]) | set(sums.fine[1]))
    counts = np.array([[sums.fine[kind][code] for code in codes] for kind in (0, 1)], np.float64)
    return float(_area(counts[0][:, None], counts[1][:, None])[0])


def _area(real: NDArray[np.floating], synthetic: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the AUCs of m pairs of histograms, (u, m) counts over ascending values each: (m,)."""
    below = np.cumsum(real, axis=0) - real
    with np.errstate(invalid="ignore", divide="ignore"):
        result: NDArray[np.float64] = (synthetic * (below + real / 2)).sum(0) / (real.sum(0) * synthetic.sum(0))
    return result


def auc_error(sums: RankSums) -> float:
    """Return the standard error of the AUC by the bootstrap over groups; NaN without bootstrap weights."""
    return replicate_standard_error(_replicates(sums))


def _replicates(sums: RankSums) -> NDArray[np.float64]:
    """Return the AUC of each bootstrap replicate: (REPLICATES,)."""
    replicates = sums.replicates.astype(np.float64)
    return _area(replicates[:, 0], replicates[:, 1])


def _log_odds_error(sums: RankSums, value: float, error: float) -> float:
    """Return the standard error of the log-odds of an AUC between 0 and 1.

    It is that of the delta method, or that of the replicates' log-odds where this is smaller. Near 0 and 1 the
    delta method fails if one cluster has most of a class's rows: without it the AUC is further from the end, and
    the error exceeds the distance to the end many times.

    Args:
        sums: sums with bootstrap weights.
        value: the AUC.
        error: its standard error.
    """
    by_delta_method = error / (value * (1 - value))
    # A replicate at 0 or 1 counts as half a pair of independent rows away from it.
    nearest = 0.5 / max(1.0, float(np.prod(sums.clusters)))
    of_replicates = replicate_standard_error(logit(np.clip(_replicates(sums), nearest, 1 - nearest)))
    return min(by_delta_method, of_replicates)


def replicate_standard_error(replicates: NDArray[np.float64]) -> float:
    """Return the standard deviation of a metric over bootstrap replicates, (REPLICATES,).

    Replicates that are not finite, because they drew no row of a class, are left out; NaN if fewer than two
    remain.
    """
    finite = replicates[np.isfinite(replicates)]
    return float(finite.std(ddof=1)) if len(finite) > 1 else float("nan")


def null_error(sums: RankSums) -> float:
    """Return the standard error of the AUC of equal distributions (Mann and Whitney 1947), from the clusters."""
    n, m = sums.clusters
    return math.sqrt((n + m + 1) / (12 * n * m)) if n * m > 0 else float("nan")


def auc_metric(sums: RankSums) -> Metric:
    """Return the AUC with its 95 % interval, which is symmetric in the log-odds.

    Where no replicate has an error, the interval comes from the numbers of independent rows: the exact binomial
    one of the smaller class for an AUC of 0 or 1, that of equal distributions where all values are tied.
    """
    value, error = auc(sums), auc_error(sums)
    if value in (0.0, 1.0) and np.isfinite(error):
        bound = binomial_interval(1.0, max(1.0, sums.clusters.min()))[0]
        return metric_with_interval(value, *((bound, 1.0) if value else (0.0, 1 - bound)), reference=0.5)
    of_log_odds = float("nan")
    if error == 0:
        of_log_odds = null_error(sums) / (value * (1 - value))
    elif np.isfinite(error):
        of_log_odds = _log_odds_error(sums, value, error)
    margin = BOOTSTRAP_HALF_WIDTH * of_log_odds
    low, high = expit(logit(value) - margin), expit(logit(value) + margin)
    return metric_with_interval(value, low, high, reference=0.5)


def metric_with_interval(
    value: float,
    low: float,
    high: float,
    within: tuple[float, float] = (0.0, 1.0),
    reference: float | None = None,
) -> Metric:
    """Return a metric with its 95 % interval in the form of metrics.json.

    Args:
        value: the metric.
        low: lower end of the interval.
        high: upper end of the interval; the metric gets no interval unless both ends are finite.
        within: range of the metric, to which the interval is clipped.
        reference: the value that an ideal generator would get.
    """
    result: dict[str, Any] = metric_block(value, reference=reference)
    if not (np.isfinite(low) and np.isfinite(high)):
        return result
    result |= {"low": float(np.clip(low, *within)), "high": float(np.clip(high, *within))}
    result.pop("reason", None)
    return result


def two_sample_test(sums: RankSums) -> dict[str, Any]:
    """Return the p-value of the null hypothesis AUC = 0.5 (the sets cannot be told apart) against AUC > 0.5.

    A classifier two-sample test (Lopez-Paz and Oquab 2017) on the out-of-fold AUC: one-sided, normal, with the
    bootstrap's standard error times the root of 2 (see `BOOTSTRAP_HALF_WIDTH`).

    Returns:
        ``value``, the p-value; None, with a ``reason``, if there is no standard error.
    """
    excess, error = auc(sums) - 0.5, auc_error(sums)
    if not np.isfinite(error):
        return {"value": None, "reason": "too few rows or groups for a standard error"}
    if error == 0:
        # All values are tied, or every pair is ordered: the smallest p-value that the sample size allows.
        value = 1.0 if excess <= 0 else 0.5 ** max(1.0, float(sums.clusters.min()))
        return {"value": value}
    return {"value": float(ndtr(-excess / (math.sqrt(2) * error)))}
