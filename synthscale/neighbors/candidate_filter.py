"""Candidate filter of k-NN, radius search and join: one matrix product finds the pairs that may be within a limit.

The filter keeps every pair within its limit, with an allowance for float32 rounding. It may keep others too; the
distance formula in float64 decides among the candidates. A limit t is a distance of distance.py, half a squared
Euclidean one. A query point z with limit t is stored as (z, 1, t - |z|^2 / 2), a database point as
(z, t - |z|^2 / 2, 1). The inner product of a query and a database point is the sum of their limits minus half
their squared distance, so candidates are the products of at least 0, once each limit includes the allowance.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.distance import squared_norms

Points = NDArray[np.float32]
"""Projected vectors, (n, p), or their augmented form, (n, p + 2)."""
Places = NDArray[np.int64]
"""Indices into an array, as opposed to row numbers of the run (`distance.Rows`)."""

_ROUNDING = 1e-6
"""Float32 error of half a squared distance, relative to the squared norms of both points and both vectors.

Measured on unit vectors: 8e-7 for rows like the sample, 2.8e-6 for rows that are all opposite its mean, where the
allowances of a pair are 4e-6 and 1e-5. A smaller value could miss pairs; a larger one only adds candidates."""
UNIT = 1.0
"""Squared norm of a unit vector, the ``magnitude`` of the points of unit vectors."""

_BLOCK = 2048
"""Queries per matrix product in `count_near`."""


def allowance(points: Points, magnitude: NDArray[np.floating] | float = UNIT) -> NDArray[np.float64]:
    """Return each point's share of the rounding error of its distances, (n,); that of a pair is the sum of two.

    Args:
        points: (n, p).
        magnitude: squared norms of the float32 vectors that they are projections of, (n,) or one for all.
    """
    return _ROUNDING * (squared_norms(points) + magnitude)


def as_queries(
    points: Points,
    limit: NDArray[np.floating] | float = 0.0,
    magnitude: NDArray[np.floating] | float = UNIT,
) -> Points:
    """Augment points (n, p) for the query side of the product: (n, p + 2); ``magnitude`` as in `allowance`."""
    return _augmented(points, limit, magnitude, -1)


def as_database(
    points: Points,
    limit: NDArray[np.floating] | float = 0.0,
    magnitude: NDArray[np.floating] | float = UNIT,
) -> Points:
    """Augment points (n, p) for the database side of the product: (n, p + 2); arguments as in `as_queries`."""
    return _augmented(points, limit, magnitude, -2)


def _augmented(
    points: Points, limit: NDArray[np.floating] | float, magnitude: NDArray[np.floating] | float, column: int
) -> Points:
    n, p = points.shape
    out = np.ones((n, p + 2), np.float32)
    out[:, :p] = points
    squared = squared_norms(points)
    out[:, column] = limit + _ROUNDING * (squared + magnitude) - squared / 2.0
    return out


class CandidateFilter(Protocol):
    """Finds the pairs of a query block and a database block that may be within their limits."""

    def __call__(self, left: Points, right: Points) -> tuple[Places, Places]:
        """Return indices into ``left`` (ascending) and into ``right`` of all pairs whose product is >= 0.

        Args:
            left: (m, p + 2) from `as_queries`.
            right: (n, p + 2) from `as_database`.
        """
        ...


def cpu_filter(left: Points, right: Points) -> tuple[Places, Places]:
    """Filter candidates on the CPU: one BLAS product and one pass over it; see `CandidateFilter`."""
    products = left @ right.T
    candidates = np.flatnonzero(products.ravel() >= 0)
    return np.divmod(candidates, max(1, len(right)))


def count_near(points: Points, limit: float, magnitude: NDArray[np.floating] | float = UNIT) -> Places:
    """Count, for each of n points, its candidates within ``limit``, itself included; see `as_queries`."""
    left, right = as_queries(points, limit, magnitude), as_database(points, 0.0, magnitude)
    counts = [(left[start : start + _BLOCK] @ right.T >= 0).sum(axis=1) for start in range(0, len(points), _BLOCK)]
    return np.concatenate([np.zeros(0, np.int64), *counts])


class TorchFilter:
    """Filters candidates on a torch device, in float32: the error of TF32 would exceed a typical radius."""

    def __init__(self, device: str) -> None:
        """Select the device: ``cuda``, ``cuda:1``, or ``cpu`` to test the same code without a GPU."""
        import torch

        self._torch, self._device = torch, torch.device(device)
        torch.backends.cuda.matmul.allow_tf32 = False

    def __call__(self, left: Points, right: Points) -> tuple[Places, Places]:
        """See `CandidateFilter`."""
        torch = self._torch
        products = torch.from_numpy(left).to(self._device) @ torch.from_numpy(right).to(self._device).T
        candidates = torch.nonzero(products >= 0).cpu().numpy()
        return candidates[:, 0], candidates[:, 1]


def filter_for(gpus: int) -> CandidateFilter:
    """Return the candidate filter for a process that may use ``gpus`` GPUs: torch on CUDA, or NumPy for 0."""
    return TorchFilter("cuda") if gpus else cpu_filter
