"""Mean and standard deviation of each column, from moments that merge over shards. Arrays in, arrays out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CONSTANT = 1e-6
"""A column whose deviation is below this multiple of its mean counts as constant: it may be float32 rounding."""


@dataclass(frozen=True)
class ColumnMoments:
    """Moments of n rows of d columns, in float64; merge with ``+``.

    Attributes:
        count: n.
        mean: (d,).
        squares: (d,) sums of squared deviations from the mean.
    """

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, rows: NDArray[np.floating]) -> "ColumnMoments":
        """Return the moments of rows (n, d)."""
        wide = rows.astype(np.float64)
        mean = wide.mean(axis=0) if len(wide) else np.zeros(wide.shape[1])
        wide -= mean
        return cls(len(wide), mean, np.einsum("ij,ij->j", wide, wide))

    def __add__(self, other: "ColumnMoments") -> "ColumnMoments":
        """Return the moments of both sets of rows (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        return ColumnMoments(
            count,
            self.mean + apart * (other.count / count),
            self.squares + other.squares + np.square(apart) * (self.count * other.count / count),
        )

    def inverse_deviations(self) -> NDArray[np.float64]:
        """Return the factor that scales each column to a standard deviation of 1, or 0 if it is constant: (d,)."""
        deviation = np.sqrt(self.squares / max(1, self.count))
        varies = deviation > _CONSTANT * np.abs(self.mean)
        return np.divide(1.0, deviation, out=np.zeros(len(deviation)), where=varies)
