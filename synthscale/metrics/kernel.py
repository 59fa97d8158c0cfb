"""Kernel inception distance (KID): an unbiased squared maximum mean discrepancy between two sets of embeddings.

Range: 0 in expectation for equal distributions, where estimates are often below 0; no upper bound; values compare
only within one encoder. Formula: the mean of k(x, x') over pairs of different real rows, plus the same over
synthetic rows, minus twice the mean of k(x, y) over real-synthetic pairs, with k(x, y) = (x.y / d + 1)^3
(Binkowski et al. 2018; the estimator is lemma 6 of Gretton et al. 2012). Unlike the Frechet distance it is
unbiased, so small sets suffice.

At scale: the cost is quadratic in the rows, so both sets are split at random into disjoint blocks of about 1,000
rows. Blocks that share no row are independent, and their spread gives the standard error.
"""

import math

import numpy as np
from numpy.typing import NDArray

_DEGREE = 3
_OFFSET = 1.0


def kid(
    real_blocks: list[NDArray[np.floating]], synthetic_blocks: list[NDArray[np.floating]]
) -> tuple[float, float]:
    """Return KID as the mean of `kid_blocks`, and its standard error from their spread.

    The error is valid only for disjoint blocks. It is NaN for one block; both numbers are NaN for none.
    """
    values = kid_blocks(real_blocks, synthetic_blocks)
    value = float(values.mean()) if len(values) else math.nan
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return value, error


def kid_blocks(
    real_blocks: list[NDArray[np.floating]], synthetic_blocks: list[NDArray[np.floating]]
) -> NDArray[np.float64]:
    """Return the unbiased squared MMD of each pair of blocks: (b,) float64.

    Args:
        real_blocks: b arrays (n, d) of any float type; n may differ between blocks, which all have equal weight.
        synthetic_blocks: b arrays (m, d).

    Raises:
        ValueError: the numbers of blocks differ, or a block has fewer than two rows.
    """
    pairs = zip(real_blocks, synthetic_blocks, strict=True)
    return np.array([_discrepancy(i, x, y) for i, (x, y) in enumerate(pairs)], np.float64)


def _discrepancy(block: int, real: NDArray[np.floating], synthetic: NDArray[np.floating]) -> float:
    n, m = len(real), len(synthetic)
    if min(n, m) < 2:
        raise ValueError(f"block {block} has {n} real and {m} synthetic rows: KID needs at least two of each")
    x, y = real.astype(np.float64), synthetic.astype(np.float64)
    return _mean_of_pairs(x) + _mean_of_pairs(y) - 2 * float(_kernel(x, y).mean())


def _mean_of_pairs(x: NDArray[np.float64]) -> float:
    """Return the mean of the kernel over pairs of different rows."""
    kernel = _kernel(x, x)
    np.fill_diagonal(kernel, 0)
    return float(kernel.sum()) / (len(x) * (len(x) - 1))


def _kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = (x @ y.T / x.shape[1] + _OFFSET) ** _DEGREE
    return result
