"""Delete-a-block jackknife: how far a figure would move between data sets of these sizes.

Near-duplicate groups are dealt to 20 blocks by key, so that a row's block depends on nothing but its group. A
figure's 20 **deviations** are numbers whose squares add up to its variance: of a ratio of sums by linearisation,
of what is fitted by leaving each block out of the fit (Busing et al. 1999, for blocks of unequal size). Figures
whose blocks hold the same rows can be compared in pairs: the deviations of a difference are the differences of
deviations, so that what two figures share cancels.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import beta, t

from synthscale.tables.id_hashes import Hashes, mix
from synthscale.tables.schemas import BLOCKS

ERRORS = float(t.ppf(0.975, BLOCKS - 1))
"""Standard errors on either side of a 95 % interval: Student's t, for so many blocks say only so much of a
variance."""
_STREAM = 20_000
_NOTHING = 1e-9
_FEW = 5.0
"""Within so many independent rows of 0 or 1 a share's interval is the exact binomial one."""

Blocks = NDArray[np.float64]
"""(..., BLOCKS): sums over the rows of each block, or deviations."""


def jackknife_blocks(group_keys: Hashes) -> NDArray[np.int8]:
    """Return the block of each row, 0..BLOCKS-1, from the key of its group: (n,)."""
    result: NDArray[np.int8] = (mix(group_keys, _STREAM) % np.uint64(BLOCKS)).astype(np.int8)
    return result


def reassigned_folds(block: NDArray[np.int8], reassignment: int, folds: int) -> NDArray[np.int8]:
    """Return another fold for each row: blocks (n,) are dealt to folds at random, in one way for each number."""
    fold_of = np.random.default_rng(reassignment).permutation(BLOCKS) % folds
    result: NDArray[np.int8] = fold_of.astype(np.int8)[block]
    return result


def add_variance(deviations: Blocks, values: NDArray[np.float64]) -> Blocks:
    """Return deviations that also hold the variance of ``values`` (r,): the figure under other fold assignments."""
    own = float(np.square(deviations).sum())
    added = float(values.var(ddof=1)) if len(values) > 1 and np.isfinite(values).all() else 0.0
    return deviations * np.sqrt(1 + added / own) if own > 0 else deviations


def ratio_deviations(total: Blocks, count: Blocks) -> Blocks:
    """Return the deviations of sum(total) / sum(count): (..., BLOCKS) each; NaN where nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        n = count.sum(-1, keepdims=True)
        value = total.sum(-1, keepdims=True) / n
        result: Blocks = np.sqrt(BLOCKS / (BLOCKS - 1)) * (total - value * count) / n
    return result


def replicate_deviations(value: float, replicates: Blocks, removed: Blocks) -> Blocks:
    """Return the deviations of a figure from what it is without each block.

    Args:
        value: over all rows.
        replicates: (BLOCKS,) without each block.
        removed: (BLOCKS,) the share of the rows in each block.
    """
    moved = (value - replicates) * (1 - removed)
    result: Blocks = np.sqrt(BLOCKS / (BLOCKS - 1)) * (moved - moved.mean())
    return result


def standard_error(deviations: Blocks) -> float:
    """Return the standard error that deviations stand for."""
    return float(np.sqrt(np.square(deviations).sum(-1)))


def larger_variance(one: Blocks, two: Blocks) -> Blocks:
    """Return the deviations of the larger variance; the first where they are equal."""
    return two if standard_error(two) > standard_error(one) else one


def interval(value: float, error: float, independent: float, *, is_share: bool) -> tuple[float, float] | None:
    """Return the 95 % interval of a figure in 0..1; None where there are too few rows to say.

    That of a share is symmetric in the log-odds; within a few rows of 0 or 1, where 20 blocks see little or
    nothing of its variance, it is the exact binomial one (Clopper and Pearson 1934). For others: `_from_chance`.

    Args:
        value: the figure.
        error: its standard error.
        independent: how many independent rows it rests on: groups, at most.
        is_share: whether it is the share of rows that have some property.
    """
    if not np.isfinite(value) or not np.isfinite(error) or independent <= 1:
        return None
    value = min(max(value, 0.0), 1.0)
    if is_share and min(value, 1 - value) * independent < _FEW:
        return binomial_interval(value, independent)
    if value in (0.0, 1.0):
        return None
    if not is_share:
        return _from_chance(value, error)
    away = ERRORS * error / (value * (1 - value))
    return float(expit(logit(value) - away)), float(expit(logit(value) + away))


def _from_chance(value: float, error: float) -> tuple[float, float]:
    """Return the 95 % interval of a mean quality, on a scale where its error hardly depends on it.

    How far it lies from chance (0.5) grows with the square of how far the sets are apart, and so its error with
    the root: the nearer an estimate happens to be to chance, the smaller its error is taken for. Towards 0 and 1
    the error shrinks with the value. The scale artanh(sqrt(1 - 2 value)) does both; an offset of the error keeps
    it smooth at 0.5.
    """
    if error == 0:
        return value, value
    offset = 2 * error

    def back(at: float) -> float:
        distance = (np.tanh(abs(at)) + np.sqrt(offset)) ** 2 - offset
        return float(np.clip((1 - np.sign(at) * distance) / 2, 0, 1))

    distance = abs(1 - 2 * value)
    root = np.sqrt(distance + offset) - np.sqrt(offset)
    at = np.sign(1 - 2 * value) * np.arctanh(root)
    away = ERRORS * error / (np.sqrt(distance + offset) * (1 - root**2))
    return back(at + away), back(at - away)


def binomial_interval(share: float, rows: float) -> tuple[float, float]:
    """Return the exact 95 % interval of a share of so many independent rows (Clopper and Pearson 1934)."""
    found = share * rows
    low = beta.ppf(0.025, found, rows - found + 1) if found > _NOTHING else 0.0
    high = beta.ppf(0.975, found + 1, rows - found) if rows - found > _NOTHING else 1.0
    return float(low), float(high)
