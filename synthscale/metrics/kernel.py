"""Kernel inception distance (KID): an unbiased squared maximum mean discrepancy between two sets of embeddings.

Range: 0 in expectation for equal distributions, where estimates are often below 0; no upper bound; values compare
only within one encoder. Formula: the mean of k(x, x') over pairs of different real rows, plus the same over
synthetic rows, minus twice the mean of k(x, y) over real-synthetic pairs, with k(x, y) = (x.y / d + 1)^3
(Binkowski et al. 2018; the estimator is lemma 6 of Gretton et al. 2012). Unlike the Frechet distance it is
unbiased, so small sets suffice.

Near-duplicates are rows like any other: pairs of a row and its copy count as often as they occur. Blocks drawn in
whole near-duplicate groups would overstate them: of two rows of one block, too many are copies of each other. So
rows are drawn one by one, and near-duplicates matter for the error alone.

At scale: the cost is quadratic in the rows, so a set of more than `SUBSET_ROWS` rows is split at random into
subsets, and pairs are taken within them. Each pair of rows is equally likely to be compared, so the value stays
unbiased. The error is that of the delete-a-block jackknife (`statistics/jackknife.py`), by linearisation from the
kernel's sums over the pairs of blocks.
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from synthscale.statistics.jackknife import Blocks
from synthscale.tables.schemas import BLOCKS

SUBSET_ROWS = 5000
"""Largest number of rows that are compared pair by pair; 5,000 rows of 512 dimensions against as many take 0.7 s.
Halving it doubles the variance for equal distributions and halves the time."""
_CHUNK_ROWS = 512
"""Rows whose kernel with all rows of a subset is in memory at once."""

Rows = tuple[NDArray[np.floating], NDArray[np.int8]]
"""Embeddings of any float type, (n, d), in random order, and the jackknife block of each row, (n,)."""


def kid(real: Rows, synthetic: Rows) -> tuple[float, Blocks]:
    """Return KID and its deviations by jackknife block, (BLOCKS,), whose squares add up to its variance.

    All numbers are NaN where a set has fewer than two rows. For equal distributions, where the value depends on
    pairs of rows rather than on single rows, the variance is up to twice too large.

    Args:
        real: n rows, with the block of each row's cluster of near-duplicates.
        synthetic: m rows; the copies of a real row are in its block.
    """
    x, y = _subsets(real), _subsets(synthetic)
    both = ((x[i % len(x)], y[i % len(y)]) for i in range(max(len(x), len(y))))
    terms = (
        (1.0, _pair_sums((own, own) for own in x)),
        (1.0, _pair_sums((own, own) for own in y)),
        (-2.0, _pair_sums(both)),
    )
    value, deviations = 0.0, np.zeros(BLOCKS)
    for factor, (total, pairs) in terms:
        count = pairs.sum()
        if count == 0:
            return math.nan, np.full(BLOCKS, np.nan)
        mean = float(total.sum() / count)
        excess = total - mean * pairs
        value += factor * mean
        # The derivative of the mean in the weight of a block's rows.
        deviations += factor * (excess.sum(0) + excess.sum(1)) / count
    return value, np.sqrt(BLOCKS / (BLOCKS - 1)) * deviations


def _subsets(rows: Rows) -> list[Rows]:
    """Split rows into as few subsets of about equal size as `SUBSET_ROWS` allows; one empty subset for no rows."""
    vectors, block = rows
    number = max(1, math.ceil(len(vectors) / SUBSET_ROWS))
    return [(vectors[i::number].astype(np.float64), block[i::number]) for i in range(number)]


def _pair_sums(subsets: Iterable[tuple[Rows, Rows]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return sums of the kernel and numbers of pairs, (BLOCKS, BLOCKS) each, by the blocks of both rows.

    Args:
        subsets: rows to compare with one another; a subset with itself leaves out pairs of a row with itself.
    """
    total, pairs = np.zeros((BLOCKS, BLOCKS)), np.zeros((BLOCKS, BLOCKS))
    for (x, x_block), (y, y_block) in subsets:
        members = [(block[:, None] == np.arange(BLOCKS)).astype(np.float64) for block in (x_block, y_block)]
        counts = [member.sum(0) for member in members]
        pairs += np.outer(*counts) - (np.diag(counts[0]) if x is y else 0.0)
        for start in range(0, len(x), _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            kernel = x[part] @ y.T / x.shape[1] + 1.0
            # Products, as a power of floats takes many times as long.
            kernel *= kernel * kernel
            if x is y:
                own = np.arange(len(kernel))
                kernel[own, start + own] = 0.0
            total += members[0][part].T @ (kernel @ members[1])
    return total, pairs
