"""Vendi score: the effective number of different images in a set, from a similarity kernel.

Range: 1 (all rows equal) to n (no similarity between any two); the unit is images. Formula: exp of the entropy of
the eigenvalues of K/n, where K is a kernel matrix with ones on its diagonal (Friedman and Dieng 2023). It needs no
reference set. It grows with n until the set's variety is fully sampled: compare only sets of equal size.

At scale: K has n^2 entries, but Phi^T Phi / n has the same non-zero eigenvalues if K = Phi Phi^T. The rows of Phi
are random Fourier features of a Gaussian kernel (Rahimi and Recht 2007; for this score, Ospanov et al. 2024), so
each shard returns a `SecondMoment` of (2m)^2 numbers, and these add up. Such a score cannot exceed 2m and is
biased low, the more the slower the eigenvalues decay (1,000 CIFAR-10 images in 1,280 dimensions: an exact score of
17.7 by 18, 9 and 5 % with m = 256, 512 and 1,024, one of 169 by 39, 22 and 12 %): compare only scores of equal m.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

_ROUNDING = 1e-4
"""Tolerance for the diagonal of a kernel, which must be 1."""


@dataclass
class SecondMoment:
    """Sum of the outer products of feature rows of norm 1; merge with ``+``.

    Attributes:
        count: number of rows.
        total: (p, p) float64 sum.
    """

    count: float
    total: NDArray[np.float64]

    @classmethod
    def empty(cls, features: int) -> "SecondMoment":
        """Return the sum over zero rows of ``features`` features, the neutral element of ``+``."""
        return cls(0.0, np.zeros((features, features)))

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> "SecondMoment":
        """Return the sum over rows (n, p) of norm 1."""
        rows = features.astype(np.float64, copy=False)
        return cls(float(len(rows)), rows.T @ rows)

    def __add__(self, other: "SecondMoment") -> "SecondMoment":
        """Return the sum over both sets of rows."""
        return SecondMoment(self.count + other.count, self.total + other.total)

    def score(self) -> float:
        """Return the Vendi score of all rows, 1 to min(count, p); NaN without rows."""
        # vendi_of_second_moment normalises the trace, so there is no division by the count.
        return vendi_of_second_moment(self.total)


@dataclass(frozen=True)
class FourierMap:
    """Random Fourier features whose products approximate a Gaussian kernel, with an error of about 1 / sqrt(2m).

    Attributes:
        frequencies: (d, m) random frequencies, divided by the bandwidth.
    """

    frequencies: NDArray[np.float64]

    def __call__(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return [cos, sin] / sqrt(m) of rows (n, d): (n, 2m), where every row has norm 1 exactly.

        The other common form, cos(w x + b), has norm 1 only in expectation, so the eigenvalues would not sum to 1.
        """
        m = self.frequencies.shape[1]
        angles = vectors.astype(np.float64) @ self.frequencies
        result = np.empty((len(vectors), 2 * m))
        np.cos(angles, out=result[:, :m])
        np.sin(angles, out=result[:, m:])
        result /= math.sqrt(m)
        return result


def fourier_map(dimensions: int, bandwidth: float, features: int, seed: int) -> FourierMap:
    """Return a feature map for the kernel exp(-|x - y|^2 / (2 h^2)), deterministic in its arguments.

    Args:
        dimensions: d, dimensions of the embedding.
        bandwidth: h, in units of the embedding; above 0.
        features: m, number of random frequencies: a row gets 2m features, and no score exceeds 2m.
        seed: random seed; use the same for all sets that are compared.

    Raises:
        ValueError: the bandwidth or m is not positive.
    """
    if not (math.isfinite(bandwidth) and bandwidth > 0 and features > 0):
        raise ValueError(f"bandwidth ({bandwidth}) and features ({features}) must be positive")
    return FourierMap(np.random.default_rng(seed).standard_normal((dimensions, features)) / bandwidth)


def vendi_of_kernel(kernel: NDArray[np.floating]) -> float:
    """Return exp(-sum p log p) over the eigenvalues p of K/n: 1 to n; NaN without rows.

    Args:
        kernel: (n, n), symmetric and positive semi-definite, with ones on its diagonal.

    Raises:
        ValueError: the diagonal is not 1, so the eigenvalues would not sum to 1.
    """
    if not np.allclose(kernel.diagonal(), 1, rtol=0, atol=_ROUNDING):
        raise ValueError(
            "the Vendi score needs a kernel with k(x, x) = 1: normalise it by the roots of its diagonal"
        )
    return vendi_of_second_moment(kernel / max(1, len(kernel)))


def vendi_of_second_moment(moment: NDArray[np.floating]) -> float:
    """Return the Vendi score from a second moment of features whose rows have norm 1: 1 to p.

    Args:
        moment: (p, p) Phi^T Phi, up to a factor, since the trace is normalised to 1.

    Returns:
        The score; NaN if the trace is 0 or not finite.
    """
    trace = float(moment.trace())
    if not (math.isfinite(trace) and trace > 0):
        return math.nan
    shares = np.linalg.eigvalsh(moment.astype(np.float64)).clip(0)
    return math.exp(float(entr(shares / shares.sum()).sum()))
