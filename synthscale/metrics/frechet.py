"""Frechet distance between two sets of embeddings, and its extrapolation to infinite samples.

Range: 0 (equal means and covariances) and up, in squared units of the embedding; values compare only within one
encoder. Formula: |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2), the squared 2-Wasserstein distance of two Gaussians
(Dowson and Landau 1982), applied to embeddings as in FID (Heusel et al. 2017). The estimate from finite samples
is biased upwards, by about (1/n + 1/m)(d + d(d+1)/4) at N(0, I_d), so sets of different sizes are not comparable;
FD-infinity (Chong and Forsyth 2020) is the distance extrapolated to 1/n + 1/m = 0.

At scale: each shard returns its `Moments`, d^2 float64 numbers, which merge (Chan, Golub and LeVeque 1979); rows
are assigned at random to a dozen parts for the extrapolation and its error.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BLOCK_ROWS = 2048
"""Rows converted to float64 at a time, which bounds memory to about 16 KiB per dimension."""
_THIRDS = 3


@dataclass
class Moments:
    """Count, mean and scatter matrix of rows; merge with ``+``.

    Attributes:
        count: number of rows.
        mean: (d,) float64; 0 where there are no rows.
        scatter: (d, d) float64, the sum over rows of (x - mean)(x - mean)^T.
    """

    count: float
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @classmethod
    def empty(cls, dimensions: int) -> "Moments":
        """Return the moments of zero rows, the neutral element of ``+``."""
        return cls(0.0, np.zeros(dimensions), np.zeros((dimensions, dimensions)))

    @classmethod
    def of(cls, vectors: NDArray[np.floating]) -> "Moments":
        """Return the moments of rows (n, d) of any float type, computed block by block in float64."""
        result = cls.empty(vectors.shape[1])
        for start in range(0, len(vectors), _BLOCK_ROWS):
            block = vectors[start : start + _BLOCK_ROWS].astype(np.float64)
            mean = block.mean(axis=0)
            block -= mean
            result += cls(float(len(block)), mean, block.T @ block)
        return result

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of rows (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        share = other.count / count
        scatter = np.outer(shift, shift)
        scatter *= self.count * share
        scatter += self.scatter
        scatter += other.scatter
        return Moments(count, self.mean + share * shift, scatter)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Unbiased covariance (d, d), divided by count - 1; NaN for fewer than two rows."""
        if self.count < 2:
            return np.full_like(self.scatter, np.nan)
        return self.scatter / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2), 0 and up.

    tr (S1 S2)^1/2 is the sum of the square roots of the eigenvalues of S1^1/2 S2 S1^1/2. That matrix is symmetric
    and positive semi-definite up to rounding, so singular covariances (fewer rows than dimensions) need no
    regularisation. NaN where either set has fewer than two rows or a value that is not finite.
    """
    a_covariance, b_covariance = a.covariance, b.covariance
    shift = a.mean - b.mean
    upper = float(shift @ shift + a_covariance.trace() + b_covariance.trace())
    if not math.isfinite(upper):
        return math.nan
    values, vectors = np.linalg.eigh(a_covariance)
    # Any factor R with R R^T = S1 gives R^T S2 R the eigenvalues of S1^1/2 S2 S1^1/2; this one needs no product.
    root = vectors * np.sqrt(values.clip(0))
    root_trace = np.sqrt(np.linalg.eigvalsh(root.T @ b_covariance @ root).clip(0)).sum()
    return max(0.0, upper - 2 * float(root_trace))


def extrapolated(real_parts: list[Moments], synthetic_parts: list[Moments]) -> tuple[float, float]:
    """Return FD-infinity and its standard error, in units of the distance; may be below 0 for equal sets.

    The distance is extrapolated linearly in 1/n + 1/m from two points: the whole sets, and the mean over three
    disjoint thirds. Both sets shrink by the same factor, so a bias a/n + b/m is linear in 1/n + 1/m for any a and
    b. Two sizes that each use every row give less noise than nested subsets of many sizes (simulated: standard
    deviation lower by 10 to 40 %). The residuals of a regression over nested subsets, which share rows,
    underestimate the error by a factor of three; the error here is the delete-a-part jackknife of the whole sets'
    distance (simulated: 0.9 to 1.3 times the true error). It takes P + 4 distances.

    A third should have more rows than dimensions: with fewer, the bias is not linear and only partly removed.

    Args:
        real_parts: P random disjoint subsets of the real set, of similar sizes; 12 give a good error.
        synthetic_parts: P of the synthetic set; the jackknife leaves out part i of both sets together.

    Returns:
        The value and its standard error; both NaN with one part, or if a third has fewer than two rows.

    Raises:
        ValueError: the sets have different numbers of parts, or none.
    """
    parts = list(zip(real_parts, synthetic_parts, strict=True))
    if not parts:
        raise ValueError("FD-infinity needs at least one part of each set")
    if len(parts) == 1:
        return math.nan, math.nan
    inverse_size, value = _point(parts)
    thirds = [_point(parts[start::_THIRDS]) for start in range(min(_THIRDS, len(parts)))]
    third_inverse_size, third_value = np.mean(thirds, axis=0)
    limit = value - inverse_size * (third_value - value) / (third_inverse_size - inverse_size)
    replicates = np.array([_point(parts[:i] + parts[i + 1 :])[1] for i in range(len(parts))])
    error = math.sqrt((len(parts) - 1) * replicates.var())
    return float(limit), error if math.isfinite(limit) else math.nan


def _point(parts: list[tuple[Moments, Moments]]) -> tuple[float, float]:
    """Return 1/n + 1/m and the Frechet distance of the merged parts."""
    real, synthetic = parts[0]
    for real_part, synthetic_part in parts[1:]:
        real, synthetic = real + real_part, synthetic + synthetic_part
    if min(real.count, synthetic.count) < 2:
        return math.nan, math.nan
    return 1 / real.count + 1 / synthetic.count, frechet_distance(real, synthetic)
