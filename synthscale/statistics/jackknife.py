"""Delete-a-block jackknife: standard errors and 95 % intervals of metrics over data sets of the same sizes.

Clusters of near-duplicates are assigned to 20 blocks by hash, so a row's block depends on its cluster only. The
uncertainty of a metric is stored as 20 **deviations**, one per block, whose squares add up to the metric's
variance. For a ratio of sums they come from linearisation; for a metric of fitted heads, from refits that leave
out one block each (Busing et al. 1999, for blocks of unequal size). Metrics whose blocks hold the same rows (of
two generators against one real set, say) can be compared in pairs: the deviations of a difference are the
differences of the deviations, so the variance that both metrics share cancels.

Pure: works on arrays; reads and writes no files.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, expit, logit, ndtri
from scipy.stats import t

from synthscale.tables.id_hashes import Hashes, mix
from synthscale.tables.schemas import BLOCKS

T_HALF_WIDTH = float(t.ppf(0.975, BLOCKS - 1))
"""Half-width of a 95 % interval in standard errors: the 97.5 % quantile of Student's t with BLOCKS - 1 degrees of
freedom (2.09), because the variance is itself estimated from BLOCKS numbers."""
_STREAM = 20_000
_NO_SPREAD = 1e-6
"""Standard errors of a mean score below this are rounding errors: all scores are the same."""
_NO_ROWS = 1e-9
"""Numbers of rows below this are rounding errors and count as 0."""
_EXACT_BELOW_ROWS = 5.0
"""A share gets the exact binomial interval if fewer effective rows than this have the property, or lack it.

Most blocks then contain none of these rows, and the jackknife misses most of the variance.
"""

Blocks = NDArray[np.float64]
"""(..., BLOCKS): sums over the rows of each block, or deviations."""


def jackknife_blocks(keys: Hashes) -> NDArray[np.int8]:
    """Return the block of each row, 0..BLOCKS-1, from the hash of its cluster or component: (n,)."""
    result: NDArray[np.int8] = (mix(keys, _STREAM) % np.uint64(BLOCKS)).astype(np.int8)
    return result


def reassigned_folds(block: NDArray[np.integer], reassignment: int, folds: int) -> NDArray[np.int8]:
    """Return the fold of each row under an alternative fold assignment, which assigns whole blocks at random.

    Args:
        block: (n,) block of each row's component.
        reassignment: seed of the permutation of blocks.
        folds: number of folds, k.

    Returns:
        (n,) folds, 0..k-1.
    """
    fold_of_block = np.random.default_rng(reassignment).permutation(BLOCKS) % folds
    result: NDArray[np.int8] = fold_of_block.astype(np.int8)[block]
    return result


def add_variance(deviations: Blocks, values: NDArray[np.float64]) -> Blocks:
    """Scale deviations so that their variance grows by the sample variance of ``values``.

    Args:
        deviations: (BLOCKS,).
        values: (r,) the metric under r other fold assignments. With fewer than two, or any that is not finite,
            nothing is added.

    Returns:
        (BLOCKS,); unchanged where all deviations are 0, which leaves nothing to scale.
    """
    variance = float(np.square(deviations).sum())
    added = float(values.var(ddof=1)) if len(values) > 1 and np.isfinite(values).all() else 0.0
    return deviations * np.sqrt(1 + added / variance) if variance > 0 else deviations


def ratio_deviations(total: Blocks, count: Blocks) -> Blocks:
    """Return the deviations of sum(total) / sum(count), by linearisation of the ratio (Cochran 1977, section 6.3).

    Args:
        total: (..., BLOCKS) numerator, summed by block.
        count: (..., BLOCKS) denominator, summed by block.

    Returns:
        (..., BLOCKS); NaN where the counts add up to 0.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        n = count.sum(-1, keepdims=True)
        value = total.sum(-1, keepdims=True) / n
        result: Blocks = np.sqrt(BLOCKS / (BLOCKS - 1)) * (total - value * count) / n
    return result


def replicate_deviations(value: float, replicates: Blocks, removed: Blocks) -> Blocks:
    """Return the deviations of a metric from its delete-a-block replicates.

    Args:
        value: the metric over all rows.
        replicates: (BLOCKS,) the metric without each block.
        removed: (BLOCKS,) share of the rows in each block, which weights blocks of unequal size.

    Returns:
        (BLOCKS,), centred.
    """
    changes = (value - replicates) * (1 - removed)
    result: Blocks = np.sqrt(BLOCKS / (BLOCKS - 1)) * (changes - changes.mean())
    return result


def standard_error(deviations: Blocks) -> float:
    """Return the standard error: the root of the sum of the squared deviations, (BLOCKS,)."""
    return float(np.sqrt(np.square(deviations).sum(-1)))


def larger_variance(first: Blocks, second: Blocks) -> Blocks:
    """Return whichever deviations have the larger variance; ``first`` if they are equal."""
    return second if standard_error(second) > standard_error(first) else first


def interval(
    value: float, error: float, clusters: float, *, other_clusters: float | None = None
) -> tuple[float, float] | None:
    """Return the 95 % interval of a metric in 0..1, or None if there are too few rows for one.

    The interval of a share is symmetric in the log-odds, or the exact binomial one (`binomial_interval`) if fewer
    than `_EXACT_BELOW_ROWS` independent rows have the property or lack it. The interval of 1 - mean quality score
    is described in `_mean_quality_interval`.

    Args:
        value: the metric; values that rounding puts outside 0..1 are clipped.
        error: its standard error.
        clusters: number of independent rows that it averages, at most that of clusters of near-duplicates.
        other_clusters: for a mean quality score, that of the other class; None for the share of rows with some
            property.

    Returns:
        (low, high) within 0..1. None if ``value`` or ``error`` is not finite, if there is at most one independent
        row, or if a metric that is not a share is exactly 0 or 1.
    """
    if not np.isfinite(value) or not np.isfinite(error) or clusters <= 1:
        return None
    value = min(max(value, 0.0), 1.0)
    if other_clusters is None and min(value, 1 - value) * clusters < _EXACT_BELOW_ROWS:
        return binomial_interval(value, clusters)
    if value in (0.0, 1.0):
        return None
    if other_clusters is not None:
        is_constant = error < _NO_SPREAD
        return (
            _null_interval(value, clusters, other_clusters)
            if is_constant
            else _mean_quality_interval(value, error)
        )
    margin = T_HALF_WIDTH * error / (value * (1 - value))
    return float(expit(logit(value) - margin)), float(expit(logit(value) + margin))


def _mean_quality_interval(value: float, error: float) -> tuple[float, float]:
    """Return the 95 % interval of 1 - mean quality score (fidelity, representativeness).

    The interval is computed on a variance-stabilising scale.
    The metric's distance from chance (0.5) grows with the square of the separation of the sets, and its standard
    error therefore with the root of that distance: an estimate that happens to fall near chance comes with too
    small an error. Near 0 and 1 the error shrinks with the value. The interval is symmetric on the scale
    artanh(sqrt(1 - 2 value)), mirrored above 0.5, which corrects both. An offset of twice the error keeps the
    scale smooth at 0.5.
    """
    offset = 2 * error

    def from_scale(position: float) -> float:
        distance = (np.tanh(abs(position)) + np.sqrt(offset)) ** 2 - offset
        return float(np.clip((1 - np.sign(position) * distance) / 2, 0, 1))

    distance = abs(1 - 2 * value)
    root = np.sqrt(distance + offset) - np.sqrt(offset)
    position = np.sign(1 - 2 * value) * np.arctanh(root)
    # The derivative of the scale converts the standard error (delta method).
    margin = T_HALF_WIDTH * error / (np.sqrt(distance + offset) * (1 - root**2))
    return from_scale(position + margin), from_scale(position - margin)


def _null_interval(value: float, n: float, m: float) -> tuple[float, float] | None:
    """Return the 95 % interval of 1 - mean quality score where every row has the same score.

    The classifier found no difference, so the error of its scores is unknown. The interval is as wide as the
    difference that may have been missed: two normal distributions as far apart as the upper end of the 95 %
    interval of the AUC of equal distributions of n and m independent rows (Mann and Whitney 1947), with twice the
    variance for the fit.
    """
    if min(n, m) <= 1:
        return None
    missed = T_HALF_WIDTH * np.sqrt(2 * (n + m + 1) / (12 * n * m))
    if missed >= 0.5:
        return 0.0, 1.0
    # AUC = Phi(shift / sqrt(2)). The mean probability of the wrong class, by Gauss-Hermite quadrature.
    shift = np.sqrt(2) * ndtri(0.5 + missed)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    margin = 0.5 - float(weights @ expit(-shift * nodes - shift**2 / 2) / weights.sum())
    return max(0.0, value - margin), min(1.0, value + margin)


def binomial_interval(share: float, rows: float) -> tuple[float, float]:
    """Return the exact 95 % interval of a share (Clopper and Pearson 1934), as quantiles of beta distributions.

    Args:
        share: successes / rows, 0..1.
        rows: number of independent rows. Neither ``rows`` nor the number of successes needs to be an integer, so
            an effective sample size may be given.

    Returns:
        (low, high); low is 0 without a success, high is 1 without a failure.
    """
    successes = share * rows
    failures = rows - successes
    low = betaincinv(successes, failures + 1, 0.025) if successes > _NO_ROWS else 0.0
    high = betaincinv(successes + 1, failures, 0.975) if failures > _NO_ROWS else 1.0
    return float(low), float(high)
