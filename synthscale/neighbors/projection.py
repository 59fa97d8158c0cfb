"""An orthogonal projection that brings no two points farther apart, so that far pairs are ruled out cheaply.

Embeddings have spectra that fall fast: a few dozen principal components hold most of a distance. The point of x
is (B^T (x - m), |rest of x|) for the mean m and principal components B of a sample; by the triangle inequality
the distance of two points is at most that of their vectors, whatever the sample was.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.candidate_filter import Points, count_near

Vectors = NDArray[np.float32]

_WIDTHS = (32, 64, 128, 256)
_TRIED_ROWS = 4096
_BLOCK = 8192
PRODUCT_S = 4e-11
"""Seconds that a core needs for one multiplication and addition of a float32 matrix product (2.5e10 a second)."""
COMPARE_S = 3e-10
"""Seconds for the comparison of one product."""
VERIFY_S = 3e-9
"""Seconds for one dimension of one pair under the distance formula in float64."""


@dataclass(frozen=True)
class Projection:
    """From unit vectors of d dimensions to points of ``width`` dimensions.

    Attributes:
        mean: (d,) float32.
        basis: (d, p) float32, orthonormal columns; None keeps all dimensions.
    """

    mean: Vectors
    basis: Vectors | None

    @property
    def width(self) -> int:
        """The dimensions of a point."""
        return len(self.mean) if self.basis is None else self.basis.shape[1] + 1

    def __call__(self, vectors: Vectors) -> Points:
        """Return the points, (n, width), of unit vectors (n, d)."""
        blocks = [self._block(vectors[start : start + _BLOCK]) for start in range(0, len(vectors), _BLOCK)]
        return np.concatenate([np.empty((0, self.width), np.float32), *blocks])

    def of_stored(self, vectors: NDArray[np.floating], lengths: NDArray[np.float64]) -> Points:
        """Return the points of vectors as stored, (n, d), whose norms are known."""
        parts = [slice(start, start + _BLOCK) for start in range(0, len(vectors), _BLOCK)]
        blocks = [self._block((vectors[part] / lengths[part, None]).astype(np.float32)) for part in parts]
        return np.concatenate([np.empty((0, self.width), np.float32), *blocks])

    def _block(self, vectors: Vectors) -> Points:
        centred = vectors - self.mean
        if self.basis is None:
            return centred
        low = centred @ self.basis
        # The rest itself: a difference of squared lengths would lose a small one in float32.
        centred -= low @ self.basis.T
        return np.column_stack([low, np.sqrt(np.einsum("ij,ij->i", centred, centred))])


def fit_projection(sample: Vectors, radius: float, pairs: float) -> Projection:
    """Choose the width that makes ``pairs`` comparisons cheapest, by the pairs of a sample that each lets pass.

    Args:
        sample: unit vectors, (m, d).
        radius: the cosine distance that pairs are searched within.
        pairs: how many pairs will be compared.
    """
    mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    whole = Projection(mean, None)
    m, d = sample.shape
    widths = [p for p in _WIDTHS if p < d - 1 and p < m]
    if not widths:
        return whole
    centred = sample.astype(np.float64) - mean
    _, components = np.linalg.eigh(centred.T @ centred)
    basis = np.ascontiguousarray(components[:, ::-1], dtype=np.float32)
    tried = sample[np.linspace(0, m - 1, min(m, _TRIED_ROWS)).astype(np.int64)]
    choices = [whole, *(Projection(mean, np.ascontiguousarray(basis[:, :p])) for p in widths)]
    return min(choices, key=_cost(tried, radius, pairs))


def _cost(sample: Vectors, radius: float, pairs: float) -> Callable[[Projection], float]:
    d, n = sample.shape[1], len(sample)
    all_pairs = max(1.0, n * (n - 1) / 2)

    def seconds(projection: Projection) -> float:
        passed = float(count_near(projection(sample), radius).sum() - n) / 2
        each: float = projection.width * PRODUCT_S + COMPARE_S + passed / all_pairs * d * VERIFY_S
        return pairs * each

    return seconds
