"""Generators of different sizes, compared as if all were as small as the smallest.

Diversity, coverage and, a little, what a classifier can learn depend on how many synthetic images there are. So
for each generator that is larger than the smallest of a run a subsample of about that size, of whole
near-duplicate groups, is drawn by key: its rows alone are judged, by heads that saw no other (refits.py). What
depends on rows that are left out is the expectation over subsamples, in closed form (rarefaction: Hurlbert
1971).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from synthscale.statistics.jackknife import jackknife_blocks
from synthscale.tables.id_hashes import Hashes, mix, sampling_threshold

OUTSIDE = 32
"""Added to the jackknife's block of a row that is not in its generator's subsample."""
_STREAM = 60_000
_ALIKE = 1.05
"""Sets whose sizes differ by less than this factor are compared as they are."""


def matched_sizes(rows: Mapping[str, int]) -> dict[str, int]:
    """Return the size to compare at for each generator that is larger; ``rows`` are those of each generator."""
    least = min(rows.values(), default=0)
    return {name: least for name, count in rows.items() if least > 0 and not are_similar_sizes([count, least])}


def are_similar_sizes(sizes: Sequence[int]) -> bool:
    """Tell whether sets are about as large as one another."""
    return not sizes or max(sizes) <= _ALIKE * min(sizes)


def matched_block_codes(
    group: Hashes, is_real: NDArray[np.bool_], rows: int, size: int | None
) -> NDArray[np.int8]:
    """Return the jackknife's block of each row, plus `OUT` for those outside the subsample: (n,).

    Args:
        group: (n,) keys of near-duplicate groups.
        is_real: (n,); real rows are in every subsample.
        rows: synthetic rows of the generator.
        size: of the subsample; None where there is none.
    """
    code = jackknife_blocks(group)
    if size is not None:
        code[~is_real & (mix(group, _STREAM) > sampling_threshold(size, rows))] += OUTSIDE
    return code


def probability_any_drawn(others: NDArray[np.int64], population: int, drawn: int) -> NDArray[np.float64]:
    """Return the chance that some of ``others`` (n,) rows are among those drawn: 1 - C(N - c, m) / C(N, m).

    Args:
        others: c, of a population of N.
        population: N.
        drawn: m, without replacement.
    """
    free = population - others - drawn
    with np.errstate(invalid="ignore", divide="ignore"):
        log_none = (
            gammaln(population - others + 1.0)
            - gammaln(np.maximum(free, 0) + 1.0)
            - gammaln(population + 1.0)
            + gammaln(population - drawn + 1.0)
        )
    return np.where(free < 0, 1.0, np.where(others == 0, 0.0, -np.expm1(np.minimum(log_none, 0.0))))
