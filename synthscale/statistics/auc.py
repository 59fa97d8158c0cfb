"""The area under the ROC curve with its interval, from sums that merge over shards.

Ranks come from sparse histograms of the values. The one for the AUC keeps 11 bits of mantissa: values closer than
0.05 % count as tied, which bounds its size whatever the number of rows. The bootstrap's keeps 4 bits, for only the
deviations of its replicates are used.
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
from synthscale.statistics.estimates import Metric, metric

_DROPPED_BITS = 12
_COARSE_BITS = 19
ERRORS = 1.959963984540054 * math.sqrt(2)
"""Bootstrap standard errors on either side of a 95 % interval of an out-of-fold figure.

The bootstrap holds the fitted heads still. But each two rows meet twice: either is in the training part of the
other. Where there is little to learn, or the heads have many dimensions, that doubles the variance (simulated: 1.7
to 2.3 times; near 1 where few dimensions separate the sets well, where these intervals are too wide by 1.4).
"""


@dataclass
class RankSums:
    """Histograms by class (0 real, 1 synthetic) of some value; two of them add up.

    Attributes:
        fine: counts by code.
        codes: (u,) ascending codes of the coarse histogram.
        replicates: (u, 2, REPLICATES) weighted counts.
    """

    fine: tuple[Counter[int], Counter[int]] = field(default_factory=lambda: (Counter(), Counter()))
    codes: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    replicates: NDArray[np.floating] = field(default_factory=lambda: np.zeros((0, 2, REPLICATES)))

    def __add__(self, other: "RankSums") -> "RankSums":
        """Return the histograms of both sets of rows."""
        codes = np.union1d(self.codes, other.codes)
        replicates = np.zeros((len(codes), 2, REPLICATES))
        for part in (self, other):
            replicates[np.searchsorted(codes, part.codes)] += part.replicates
        fine = (self.fine[0] + other.fine[0], self.fine[1] + other.fine[1])
        return RankSums(fine, codes, replicates)

    @property
    def counts(self) -> tuple[int, int]:
        """Real and synthetic rows."""
        return self.fine[0].total(), self.fine[1].total()

    @property
    def independent(self) -> float:
        """Return how many independent rows the smaller class is worth; see `independent_rows`."""
        return min(independent_rows(weighted) for weighted in self.replicates.sum(0, dtype=np.float64))


def sum_ranks(
    values: NDArray[np.float64], is_real: NDArray[np.bool_], weights: NDArray[np.uint8] | None = None
) -> RankSums:
    """Sum over rows with values (n,) and classes (n,); NaN is left out.

    ``weights``, (n, REPLICATES), are the bootstrap's; without them there is no interval.
    """
    known = ~np.isnan(values)
    values, is_real = values[known], is_real[known]
    ordered = _ordered(values)
    fine = tuple(Counter(_counts(_rounded(ordered[is_real == kind], _DROPPED_BITS))) for kind in (True, False))
    sums = RankSums((fine[0], fine[1]))
    if weights is None or not len(values):
        return sums
    codes, own = np.unique(_rounded(ordered, _COARSE_BITS), return_inverse=True)
    shape = (2 * len(codes), len(values))
    cell = csr_array((np.ones(len(values)), (2 * own + ~is_real, np.arange(len(values)))), shape=shape)
    # Whole numbers: exact in float32 for the rows of a shard, and half to send.
    replicates = (cell.astype(np.float32) @ weights[known].astype(np.float32)).reshape(len(codes), 2, REPLICATES)
    return RankSums(sums.fine, codes, replicates)


def _ordered(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Integers that order as the values do in float32: its bits, the sign folded."""
    bits = values.astype(np.float32).view(np.int32).astype(np.int64)
    result: NDArray[np.int64] = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    return result


def value_of(code: int) -> float:
    """Return the value that a code of the fine histogram stands for, to 0.05 % of it."""
    bits = code << _DROPPED_BITS
    sign = np.uint32(0x80000000 if bits < 0 else 0)
    return float((np.uint32(abs(bits)) | sign).view(np.float32))


def _rounded(ordered: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    result: NDArray[np.int64] = np.round(ordered / 2**bits).astype(np.int64)
    return result


def _counts(codes: NDArray[np.int64]) -> dict[int, int]:
    values, counts = np.unique(codes, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def auc(sums: RankSums) -> float:
    """Return the area under the ROC curve: the chance that a synthetic row's value is above a real row's."""
    keys = sorted(set(sums.fine[0]) | set(sums.fine[1]))
    counts = np.array([[sums.fine[kind][k] for k in keys] for kind in (0, 1)], np.float64)
    return float(_area(counts[0][:, None], counts[1][:, None])[0])


def _area(real: NDArray[np.floating], synthetic: NDArray[np.floating]) -> NDArray[np.float64]:
    """AUCs of histograms (u, m) over ascending values: (m,)."""
    below = np.cumsum(real, axis=0) - real
    with np.errstate(invalid="ignore", divide="ignore"):
        result: NDArray[np.float64] = (synthetic * (below + real / 2)).sum(0) / (real.sum(0) * synthetic.sum(0))
    return result


def auc_error(sums: RankSums) -> float:
    """Return the standard error of the AUC by the bootstrap over groups; NaN without its weights."""
    replicates = sums.replicates.astype(np.float64)
    return standard_error(_area(replicates[:, 0], replicates[:, 1]))


def standard_error(replicates: NDArray[np.float64]) -> float:
    """Return the standard deviation of a figure over replicates, those left out where a class was not drawn."""
    drawn = replicates[np.isfinite(replicates)]
    return float(drawn.std(ddof=1)) if len(drawn) > 1 else float("nan")


def independent_rows(weighted: NDArray[np.float64]) -> float:
    """Return how many independent rows some rows in groups are worth: (sum c)^2 / sum c^2 over group sizes.

    Read off the weighted counts, (REPLICATES,): their variance is the sum of the squares.
    """
    variance = float(weighted.var(ddof=1))
    return max(1.0, float(weighted.mean()) ** 2 / variance) if variance > 0 else 1.0


def certain_up_to(rows: float) -> float:
    """Return the lower end of the exact 95 % binomial interval of a share that is 1 over so many rows."""
    return float(0.025 ** (1 / rows))


def auc_metric(sums: RankSums) -> Metric:
    """Return the AUC with its 95 % interval, which is symmetric in its log-odds.

    Where all pairs are ordered the bootstrap sees no error at all; the interval is then the exact binomial one
    over the groups of the smaller class.
    """
    value, error = auc(sums), auc_error(sums)
    if not np.isfinite(error):
        low = high = error
    elif value in (0.0, 1.0):
        bound = certain_up_to(sums.independent)
        low, high = (bound, 1.0) if value else (0.0, 1 - bound)
    else:
        away = ERRORS * error / (value * (1 - value))
        low, high = expit(logit(value) - away), expit(logit(value) + away)
    return interval(value, low, high, reference=0.5)


def interval(
    value: float,
    low: float,
    high: float,
    within: tuple[float, float] = (0.0, 1.0),
    reference: float | None = None,
) -> Metric:
    """Return a metric with its 95 % interval, cut to its range; without one where it is not finite."""
    result: dict[str, Any] = metric(value, reference=reference)
    if not (np.isfinite(low) and np.isfinite(high)):
        return result
    result |= {"low": float(np.clip(low, *within)), "high": float(np.clip(high, *within))}
    result.pop("reason", None)
    return result


def two_sample_test(sums: RankSums) -> dict[str, Any]:
    """Return the p-value of "these cannot be told apart" against an AUC above one half.

    A classifier two-sample test (Lopez-Paz and Oquab 2017) on the out-of-fold AUC, one-sided and normal, with the
    bootstrap's standard error times the root of 2 (see `ERRORS`).
    """
    excess, error = auc(sums) - 0.5, auc_error(sums)
    if not np.isfinite(error):
        return {"value": None, "reason": "too few rows or groups for a standard error"}
    if error == 0:
        # Every row was answered alike, or every pair is ordered: then as far as the rows can say.
        value = 1.0 if excess <= 0 else 0.5**sums.independent
        return {"value": value}
    return {"value": float(ndtr(-excess / (math.sqrt(2) * error)))}
