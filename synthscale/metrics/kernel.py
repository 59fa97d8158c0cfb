"""The kernel distance (KID) between two sets of embeddings: an unbiased squared maximum mean discrepancy.

Range: 0 in expectation at equal distributions, and then often below 0; no upper end; it compares within one
encoder only. Formula: the mean of k(x, x') over pairs of real rows, plus that over pairs of synthetic rows,
minus twice the mean of k(x, y) over pairs of both, with k(x, y) = (x.y / d + 1)^3 (Binkowski et al. 2018; the
estimator is lemma 6 of Gretton et al. 2012). Unlike the Frechet distance it has no bias, so small sets do.

At scale: the cost grows with the square of the rows, so both sets are dealt at random to disjoint blocks of about
1,000 rows, each block one task; blocks that share no row are independent, and their spread gives the error.
"""

import math

import numpy as np
from numpy.typing import NDArray

_DEGREE = 3
_OFFSET = 1.0


def kid(
    real_blocks: list[NDArray[np.floating]], synthetic_blocks: list[NDArray[np.floating]]
) -> tuple[float, float]:
    """Return the mean of `kid_blocks` and its standard error, from their spread.

    The error is honest for disjoint blocks alone. It is NaN with one block, and both are without any.
    """
    values = kid_blocks(real_blocks, synthetic_blocks)
    value = float(values.mean()) if len(values) else math.nan
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return value, error


def kid_blocks(
    real_blocks: list[NDArray[np.floating]], synthetic_blocks: list[NDArray[np.floating]]
) -> NDArray[np.float64]:
    """Return the unbiased squared discrepancy of each pair of blocks: (b,), computed in float64.

    Args:
        real_blocks: b arrays (n, d) of rows, of any float type; n may differ, but blocks count alike.
        synthetic_blocks: b arrays (m, d).

    Raises:
        ValueError: where the numbers of blocks differ, or a block has fewer than two rows.
    """
    pairs = zip(real_blocks, synthetic_blocks, strict=True)
    return np.array([_discrepancy(i, x, y) for i, (x, y) in enumerate(pairs)], np.float64)


def _discrepancy(block: int, real: NDArray[np.floating], synthetic: NDArray[np.floating]) -> float:
    n, m = len(real), len(synthetic)
    if min(n, m) < 2:
        raise ValueError(f"block {block} has {n} real and {m} synthetic rows: KID needs two or more of each")
    x, y = real.astype(np.float64), synthetic.astype(np.float64)
    return _mean_of_pairs(x) + _mean_of_pairs(y) - 2 * float(_kernel(x, y).mean())


def _mean_of_pairs(x: NDArray[np.float64]) -> float:
    """Mean of the kernel over pairs of different rows."""
    kernel = _kernel(x, x)
    np.fill_diagonal(kernel, 0)
    return float(kernel.sum()) / (len(x) * (len(x) - 1))


def _kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = (x @ y.T / x.shape[1] + _OFFSET) ** _DEGREE
    return result
