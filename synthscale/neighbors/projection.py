"""PCA projection to points whose distances are lower bounds, so that far pairs are excluded cheaply.

Arrays in, arrays out. The spectra of embeddings fall fast, so a few dozen principal components account for most of
a distance. The point of x is (B^T (x - m), |residual of x|), with the mean m and principal components B of a
sample. By the triangle inequality the distance between two points is at most that between their vectors, whatever
sample the projection was fitted on.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.candidate_filter import Points, count_near
from synthscale.neighbors.distance import squared_norms

Vectors = NDArray[np.float32]

_WIDTHS = (32, 64, 128, 256)
"""Numbers of principal components to choose from."""
_TRIED_ROWS = 4096
"""Sampled rows on which the cost of each width is estimated, all pairs compared."""
_UNUSUAL = 100.0
"""Rows with more than this multiple of the median squared norm are left out of the fit. No unit vector is."""
_BLOCK = 8192
"""Vectors projected at a time, to bound memory."""
PRODUCT_S = 4e-11
"""Seconds of one core per multiply-add of a float32 matrix product (2.5e10 per second)."""
COMPARE_S = 3e-10
"""Seconds of one core to compare one entry of the product with the limit."""
VERIFY_S = 3e-9
"""Seconds of one core per pair and dimension of the distance formula in float64."""


@dataclass(frozen=True)
class Projection:
    """Map from normalized vectors of d dimensions to points of ``width`` dimensions.

    Attributes:
        mean: (d,) float32.
        basis: (d, p) float32, orthonormal columns; None keeps all dimensions.
    """

    mean: Vectors
    basis: Vectors | None

    @property
    def width(self) -> int:
        """Number of dimensions of a point: p components and the norm of the residual, or d without a basis."""
        return len(self.mean) if self.basis is None else self.basis.shape[1] + 1

    def __call__(self, vectors: Vectors) -> Points:
        """Project normalized vectors (n, d) to points (n, width)."""
        blocks = [self._block(vectors[start : start + _BLOCK]) for start in range(0, len(vectors), _BLOCK)]
        return np.concatenate([np.empty((0, self.width), np.float32), *blocks])

    def of_stored(self, vectors: NDArray[np.floating], lengths: NDArray[np.float64]) -> Points:
        """Project vectors as stored, (n, d), with `divisors` ``lengths`` (n,), to points (n, width)."""
        parts = [slice(start, start + _BLOCK) for start in range(0, len(vectors), _BLOCK)]
        blocks = [self._block((vectors[part] / lengths[part, None]).astype(np.float32)) for part in parts]
        return np.concatenate([np.empty((0, self.width), np.float32), *blocks])

    def _block(self, vectors: Vectors) -> Points:
        centred = vectors - self.mean
        if self.basis is None:
            return centred
        low = centred @ self.basis
        # The residual is computed explicitly, because a small difference of squared norms is inexact in float32.
        centred -= low @ self.basis.T
        return np.column_stack([low, np.sqrt(np.einsum("ij,ij->i", centred, centred))])


def usual_rows(sample: Vectors) -> Vectors:
    """Return the rows (m, d) without those far longer than most, at least half: for means and components.

    A single corrupt row of 1e9 would move the mean so far from all other rows that the rounding error of their
    points exceeds any radius, and every pair would have to be compared in float64.
    """
    squared = squared_norms(sample)
    return sample[squared <= _UNUSUAL * np.median(squared)] if len(sample) else sample


def fit_projection(sample: Vectors, radius: float, pairs: float) -> Projection:
    """Fit a PCA projection with the width of least estimated cost.

    A narrow projection makes products cheap but passes more candidates to the distance formula. Each width's share
    of candidates is measured on pairs of the sample.

    Args:
        sample: normalized vectors, (m, d).
        radius: distance of the search.
        pairs: number of pairs that will be compared.
    """
    usual = usual_rows(sample)
    mean = usual.mean(axis=0, dtype=np.float64).astype(np.float32)
    identity = Projection(mean, None)
    m, d = sample.shape
    widths = [p for p in _WIDTHS if p < d - 1 and p < m]
    if not widths:
        return identity
    centred = usual.astype(np.float64) - mean
    _, components = np.linalg.eigh(centred.T @ centred)
    basis = np.ascontiguousarray(components[:, ::-1], dtype=np.float32)
    tried = sample[np.linspace(0, m - 1, min(m, _TRIED_ROWS)).astype(np.int64)]
    choices = [identity, *(Projection(mean, np.ascontiguousarray(basis[:, :p])) for p in widths)]
    return min(choices, key=_cost(tried, radius, pairs))


def _cost(sample: Vectors, radius: float, pairs: float) -> Callable[[Projection], float]:
    """Return a function that estimates the seconds of one core to compare ``pairs`` pairs under a projection."""
    d, n, magnitude = sample.shape[1], len(sample), squared_norms(sample)
    all_pairs = max(1.0, n * (n - 1) / 2)

    def seconds(projection: Projection) -> float:
        passed = float(count_near(projection(sample), radius, magnitude).sum() - n) / 2
        seconds_per_pair: float = projection.width * PRODUCT_S + COMPARE_S + passed / all_pairs * d * VERIFY_S
        return pairs * seconds_per_pair

    return seconds
