"""Poisson bootstrap weights that are drawn from keys, so that they are the same on whatever shard a row lies.

Each replicate weighs each near-duplicate group by a number from Poisson(1), the limit of drawing groups with
replacement (Chamandy et al. 2012). Rows of one group share the number: their errors are not independent.
"""

import math

import numpy as np
from numpy.typing import NDArray

from synthscale.tables.id_hashes import Hashes, mix

REPLICATES = 200
_STREAM = 10_000
# P(X <= i) of Poisson(1), as 64-bit thresholds; more than 15 is rarer than 2^-44.
_BELOW = np.array(
    [int(sum(math.exp(-1) / math.factorial(j) for j in range(i + 1)) * 2**53) << 11 for i in range(15)], np.uint64
)


def poisson_weights(group_keys: Hashes) -> NDArray[np.uint8]:
    """Return the weight of each row in each replicate: (n,) -> (n, REPLICATES)."""
    result = np.empty((len(group_keys), REPLICATES), np.uint8)
    base = mix(group_keys, 0)
    for b in range(REPLICATES):
        result[:, b] = np.searchsorted(_BELOW, mix(base, _STREAM + b), side="right")
    return result
