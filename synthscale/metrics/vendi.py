"""The Vendi score: how many different images a set is worth, by a kernel and without a reference.

Range: 1 (all rows alike) to n (no two alike in the least); the unit is images. Formula: exp of the entropy of the
eigenvalues of K/n, where K is a kernel matrix with ones on its diagonal (Friedman and Dieng 2023). It grows with n
until the set's variety is seen in full: compare sets of one size.

At scale: K has n^2 entries, but Phi^T Phi / n has the same eigenvalues if K = Phi Phi^T. The rows of Phi are
random Fourier features of a Gaussian kernel (Rahimi and Recht 2007; for this score, Ospanov et al. 2024), so every
shard gives a `SecondMoment` of (2m)^2 numbers, and these add up. Such a score cannot exceed 2m and reads low, the
more the flatter the eigenvalues fall off (1,000 CIFAR-10 images in 1,280 dimensions: an exact score of 17.7 by 18,
9 and 5 % with m = 256, 512 and 1,024, one of 169 by 39, 22 and 12 %): compare scores of one m.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

_ROUNDING = 1e-4
"""How far the diagonal of a kernel may be from 1."""


@dataclass
class SecondMoment:
    """The sum of outer products of feature rows of norm 1; two of them add up.

    Attributes:
        count: rows.
        total: (p, p) float64.
    """

    count: float
    total: NDArray[np.float64]

    @classmethod
    def empty(cls, features: int) -> "SecondMoment":
        """Return the sum over no rows of p features: the neutral element."""
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
        # It makes the trace 1, so the count does not enter.
        return vendi_of_second_moment(self.total)


@dataclass(frozen=True)
class FourierMap:
    """Maps rows to features whose products approximate a Gaussian kernel, to about 1 / sqrt(2m) an entry.

    Attributes:
        frequencies: (d, m), the bandwidth included.
    """

    frequencies: NDArray[np.float64]

    def __call__(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return [cos, sin] / sqrt(m) of rows (n, d): (n, 2m), where every row has norm 1 exactly.

        The usual cos(w x + b) would have that norm in expectation alone, and the score's eigenvalues a wrong sum.
        """
        m = self.frequencies.shape[1]
        angles = vectors.astype(np.float64) @ self.frequencies
        result = np.empty((len(vectors), 2 * m))
        np.cos(angles, out=result[:, :m])
        np.sin(angles, out=result[:, m:])
        result /= math.sqrt(m)
        return result


def fourier_map(dimensions: int, bandwidth: float, features: int, seed: int) -> FourierMap:
    """Return a map for the kernel exp(-|x - y|^2 / (2 h^2)), the same for the same arguments.

    Args:
        dimensions: d.
        bandwidth: h, in units of the embedding; above 0.
        features: m, the frequencies drawn: a row becomes 2m numbers, and no score exceeds 2m.
        seed: of the draw; one seed for all sets that are compared.

    Raises:
        ValueError: where the bandwidth or m is not positive.
    """
    if not (math.isfinite(bandwidth) and bandwidth > 0 and features > 0):
        raise ValueError(f"bandwidth ({bandwidth}) and features ({features}) must be positive")
    return FourierMap(np.random.default_rng(seed).standard_normal((dimensions, features)) / bandwidth)


def vendi_of_kernel(kernel: NDArray[np.floating]) -> float:
    """Return exp(-sum p log p) over the eigenvalues p of K/n: 1 to n; NaN without rows.

    Args:
        kernel: (n, n), symmetric and positive semi-definite, with ones on its diagonal.

    Raises:
        ValueError: where the diagonal is not 1: the eigenvalues would not be shares.
    """
    if not np.allclose(kernel.diagonal(), 1, rtol=0, atol=_ROUNDING):
        raise ValueError("a Vendi score needs a kernel with k(x, x) = 1: divide by the roots of its diagonal")
    return vendi_of_second_moment(kernel / max(1, len(kernel)))


def vendi_of_second_moment(moment: NDArray[np.floating]) -> float:
    """Return the same from Phi^T Phi / n, (p, p), for features Phi whose rows have norm 1: 1 to p.

    Its trace is 1, and is made so again after rounding. NaN where it is 0 or not finite.
    """
    trace = float(moment.trace())
    if not (math.isfinite(trace) and trace > 0):
        return math.nan
    shares = np.linalg.eigvalsh(moment.astype(np.float64)).clip(0)
    return math.exp(float(entr(shares / shares.sum()).sum()))
