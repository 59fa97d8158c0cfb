"""Comparison of generators at the size of the smallest one.

Diversity, coverage and, to a small degree, what a classifier can learn depend on the number of synthetic images.
For each generator larger than the smallest of a run, a subsample of about the smallest size is therefore drawn by
hash, in whole near-duplicate groups. Its rows alone are scored, by heads fitted to the subsample alone
(classify/jackknife_refits.py). Where a metric depends on which rows were left out, its expectation over subsamples
is taken in closed form (rarefaction: Hurlbert 1971).

Pure: works on arrays; reads and writes no files.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from synthscale.statistics.jackknife import jackknife_blocks
from synthscale.tables.id_hashes import Hashes, mix, sampling_threshold

OUTSIDE_SUBSAMPLE = 32
"""Added to the jackknife block of rows outside their generator's subsample.

Must be at least BLOCKS, so that block and membership can be told apart, and OUTSIDE_SUBSAMPLE + BLOCKS must fit an
int8.
"""
Generator = TypeVar("Generator", bound=Hashable)
"""Name or code of a generator."""
_STREAM = 60_000
_SIMILAR_SIZE_RATIO = 1.05
"""Sets whose sizes differ by at most this factor are compared without matching."""


def matched_sizes(rows: Mapping[Generator, int]) -> dict[Generator, int]:
    """Return the subsample size of each generator that is more than 5 % larger than the smallest.

    Args:
        rows: number of synthetic rows of each generator.

    Returns:
        Generator to subsample size, which is the size of the smallest generator. Generators of similar size
        are left out; empty if the smallest generator has no rows.
    """
    smallest = min(rows.values(), default=0)
    return {
        name: smallest for name, count in rows.items() if smallest > 0 and not are_similar_sizes([count, smallest])
    }


def are_similar_sizes(sizes: Sequence[int]) -> bool:
    """Return True if set sizes differ by at most 5 %."""
    return not sizes or max(sizes) <= _SIMILAR_SIZE_RATIO * min(sizes)


def matched_block_codes(
    group: Hashes, is_real: NDArray[np.bool_], rows: int, size: int | None
) -> NDArray[np.int8]:
    """Return the jackknife block of each row, plus `OUTSIDE_SUBSAMPLE` for rows outside the subsample.

    Args:
        group: (n,) hashes of the rows' near-duplicate groups.
        is_real: (n,); real rows are in every subsample.
        rows: number of synthetic rows of the generator.
        size: number of rows of the subsample; None if there is none, which leaves all rows inside.

    Returns:
        (n,) int8: 0..BLOCKS-1 inside, OUTSIDE_SUBSAMPLE..OUTSIDE_SUBSAMPLE+BLOCKS-1 outside.
    """
    code = jackknife_blocks(group)
    if size is not None:
        code[~is_real & (mix(group, _STREAM) > sampling_threshold(size, rows))] += OUTSIDE_SUBSAMPLE
    return code


def probability_any_drawn(others: NDArray[np.int64], population: int, drawn: int) -> NDArray[np.float64]:
    """Return the probability that a sample contains at least one of c given rows: 1 - C(N - c, m) / C(N, m).

    Args:
        others: (n,) values of c, the number of given rows.
        population: N, number of rows in the population.
        drawn: m, number of rows in the sample, drawn without replacement.

    Returns:
        (n,) probabilities, 0..1.
    """
    remaining = population - others - drawn
    with np.errstate(invalid="ignore", divide="ignore"):
        log_none = (
            gammaln(population - others + 1.0)
            - gammaln(np.maximum(remaining, 0) + 1.0)
            - gammaln(population + 1.0)
            + gammaln(population - drawn + 1.0)
        )
    return np.where(remaining < 0, 1.0, np.where(others == 0, 0.0, -np.expm1(np.minimum(log_none, 0.0))))
