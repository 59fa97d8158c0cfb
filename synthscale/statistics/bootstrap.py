"""Poisson bootstrap weights drawn from hashes of clusters, so that a row's weights do not depend on its shard.

Each replicate gives each cluster of near-duplicates a weight from Poisson(1), the limit of drawing clusters with
replacement (Chamandy et al. 2012). All rows of a cluster share the weight, because their errors are not
independent.
"""

import math

import numpy as np
from numpy.typing import NDArray

from synthscale.tables.id_hashes import Hashes, mix

REPLICATES = 200
"""Number of bootstrap replicates; time and memory grow in proportion.

The standard deviation of a standard error from 200 replicates is 5 % of it.
"""
_STREAM = 10_000
# P(X <= i) of Poisson(1), i < 15, as 64-bit thresholds. Weights above 15 have a probability below 2^-44.
_THRESHOLDS = np.array(
    [int(sum(math.exp(-1) / math.factorial(j) for j in range(i + 1)) * 2**53) << 11 for i in range(15)], np.uint64
)


def poisson_weights(keys: Hashes) -> NDArray[np.uint8]:
    """Return the Poisson(1) weight of each row in each bootstrap replicate.

    Args:
        keys: (n,) hash of each row's cluster of near-duplicates.

    Returns:
        (n, REPLICATES) uint8, 0..15; equal in all rows of a cluster.
    """
    result = np.empty((len(keys), REPLICATES), np.uint8)
    base = mix(keys, 0)
    for replicate in range(REPLICATES):
        result[:, replicate] = np.searchsorted(_THRESHOLDS, mix(base, _STREAM + replicate), side="right")
    return result
