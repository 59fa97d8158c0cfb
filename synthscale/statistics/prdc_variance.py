"""Variance of precision, recall, density and coverage between data sets, estimated from disjoint subsamples.

Rows do not contribute to these shares independently: one real row's radius contains many synthetic rows, and one
synthetic row lies within many radii. The measured variance is 0.9 to 7 times that of the same number of
independent rows (in survey sampling, the design effect). The jackknife does not help: its estimate is 2 to 5 times
too large, because a row becomes uncovered only if every row that covers it is left out. But the shares stay the
same when both sets shrink together, so the spread of the shares over small disjoint subsamples, each with its own
k-NN search, gives the variance for all rows (subsampling: Politis and Romano 1994). The deviations returned here
are in units of a share's standard error over independent rows, so their squares add up to the design effect.

Pure: works on arrays; reads and writes no files.
"""

import numpy as np
from numpy.typing import NDArray

from synthscale.statistics.jackknife import Blocks
from synthscale.tables.id_hashes import Hashes, mix
from synthscale.tables.schemas import BLOCKS

_STREAM = 30_000
_PARTS = ((2000, 20), (600, 10), (0, 5))
"""Pairs of (minimum rows of the smaller set, number of disjoint parts that both sets are divided into).

A division into fewer than BLOCKS parts is repeated with other random numbers, until there are BLOCKS parts in all.
"""
_MIN_PART_ROWS = 8
"""Minimum average number of rows in a part; with fewer, no variance is estimated."""
_TIES = 1e-6
"""Relative tolerance of distances compared with a radius: rows at the same distance are within it."""
SAMPLE_ROWS = 4096
"""Maximum number of rows of the larger set that are used; bounds time and memory, as parts compare all pairs."""


def sample_rows(real: int, synthetic: int) -> tuple[int, int]:
    """Return how many distinct real and synthetic rows to sample, in the proportion of the set sizes."""
    largest = max(real, synthetic)
    share = min(1.0, SAMPLE_ROWS / largest)
    return int(np.ceil(real * share)), int(np.ceil(synthetic * share))


def share_deviations(
    real: NDArray[np.float64], synthetic: NDArray[np.float64], hashes: tuple[Hashes, Hashes], k: int
) -> dict[str, Blocks]:
    """Return deviations of precision, coverage, recall and density whose squares add up to the design effect.

    Args:
        real: (n, d) distinct real rows, or a sample of them.
        synthetic: (m, d) synthetic rows, sampled in the proportion of the set sizes.
        hashes: (n,) and (m,) hashes of the rows, which assign them to subsamples.
        k: number of neighbours that defines the k-NN radius.

    Returns:
        Metric name to (BLOCKS,) deviations; those of density, which is not a share, are relative to its value. A
        share that is 0 or 1 on average is left out, and so is a density of 0. Empty if there are too few rows.
    """
    parts = next(parts for rows, parts in _PARTS if min(len(real), len(synthetic)) >= rows)
    if min(len(real), len(synthetic)) < parts * _MIN_PART_ROWS:
        return {}
    shares = []
    for division in range(BLOCKS // parts):
        part_of = [mix(row_hashes, _STREAM + division) % np.uint64(parts) for row_hashes in hashes]
        for part in range(parts):
            real_part, synthetic_part = real[part_of[0] == part], synthetic[part_of[1] == part]
            if len(real_part) <= k or len(synthetic_part) == 0:
                return {}
            shares.append(_shares(real_part, synthetic_part, k))
    result = {}
    by_division = np.array(shares).reshape(-1, parts, 4)
    rows = {"precision": len(synthetic), "coverage": len(real), "recall": len(real), "density": len(synthetic)}
    for i, (name, count) in enumerate(rows.items()):
        share = by_division[..., i]
        mean = share.mean()
        unit_variance = mean**2 if name == "density" else mean * (1 - mean)
        if not unit_variance > 0:
            continue
        deviations = (share - share.mean(1, keepdims=True)).ravel() / np.sqrt((parts - 1) * len(share))
        result[name] = deviations * np.sqrt(count / parts / unit_variance)
    return result


def _shares(real: NDArray[np.float64], synthetic: NDArray[np.float64], k: int) -> list[float]:
    """Return precision, coverage, recall and density of rows (n, d) and (m, d), from all pairs."""
    distance = _distances(real, synthetic)
    in_real = distance <= _radius(real, k)[:, None] * (1 + _TIES)
    in_synthetic = distance <= _radius(synthetic, k)[None, :] * (1 + _TIES)
    shares = (in_real.any(0), in_real.any(1), in_synthetic.any(1), in_real.sum(0) / k)
    return [float(share.mean()) for share in shares]


def _distances(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return half the squared distances of all pairs of rows, (n, m)."""
    half_norms = [np.einsum("ij,ij->i", rows, rows) / 2 for rows in (x, y)]
    result: NDArray[np.float64] = half_norms[0][:, None] + half_norms[1][None, :] - x @ y.T
    return result


def _radius(rows: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return each row's distance to its k-th nearest other row, or to the farthest if there are fewer: (n,)."""
    if len(rows) < 2:
        return np.full(len(rows), -np.inf)
    distance = _distances(rows, rows)
    np.fill_diagonal(distance, np.inf)
    last = min(k, len(rows) - 1) - 1
    return np.partition(distance, last, axis=1)[:, last]
