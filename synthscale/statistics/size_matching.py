"""Comparison of generators at the size of the smallest one.

Diversity, coverage and, to a small degree, what a classifier can learn depend on the number of synthetic images.
For each generator larger than the smallest of a run, a subsample of about the smallest size is therefore drawn by
hash of the ids. Its rows alone are scored, by heads fitted to the subsample alone
(classify/jackknife_refits.py). Where a metric depends on which rows were left out, its expectation over subsamples
is taken in closed form (rarefaction: Hurlbert 1971).

Pure: works on arrays; reads and writes no files.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from synthscale.statistics.jackknife import jackknife_blocks
from synthscale.tables.id_hashes import Hashes, mix, sampling_threshold

_OUTSIDE = 32
"""Added to the code of rows outside their generator's subsample; at least BLOCKS, to be told apart from them."""
_ASSIGNMENT = 64
"""Factor of the block that decides the fold under other fold assignments; twice `_OUTSIDE`. Codes fit an int16."""
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


@dataclass(frozen=True)
class RowHashes:
    """Hashes of n rows (tables/id_hashes.py).

    Attributes:
        key: (n,) of the rows' ids: which rows are in a subsample.
        group: (n,) of the near-duplicate components, which are never split between folds.
        cluster: (n,) of the clusters, the units of dependence of intervals.
    """

    key: Hashes
    group: Hashes
    cluster: Hashes


def block_codes(hashes: RowHashes, is_real: NDArray[np.bool_], rows: int, size: int | None) -> NDArray[np.int16]:
    """Return a code of each row for the refits of a classifier (`block_of`, `is_outside`, `assignment_block_of`).

    Args:
        hashes: of the n rows.
        is_real: (n,); real rows are in every subsample.
        rows: number of synthetic rows of the generator.
        size: number of rows of the subsample; None if there is none, which leaves all rows inside.

    Returns:
        (n,) int16, at least 0.
    """
    code = jackknife_blocks(hashes.cluster).astype(np.int16)
    code += _ASSIGNMENT * jackknife_blocks(hashes.group).astype(np.int16)
    if size is not None:
        code[~is_real & (mix(hashes.key, _STREAM) > sampling_threshold(size, rows))] += _OUTSIDE
    return code


def block_of(code: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return the jackknife block of each row, 0..BLOCKS-1: that of its cluster."""
    return code % _OUTSIDE


def assignment_block_of(code: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return the block of each row's component, 0..BLOCKS-1, which other fold assignments assign to folds."""
    return code // _ASSIGNMENT


def is_outside(code: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Return whether each row is outside its generator's subsample."""
    return code % _ASSIGNMENT >= _OUTSIDE


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
