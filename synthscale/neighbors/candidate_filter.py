"""The one kernel of the near-duplicate engine: which pairs of points may be within a limit of each other.

A shortlist misses no pair that is within its limit by more than float32 can be wrong; it may hold others, and the
distance formula decides among them. A point z with limit t stands as (z, 1, t - |z|^2 / 2) on the left and as
(z, t - |z|^2 / 2, 1) on the right, so that one matrix product gives, for every pair, the two limits less half the
squared distance, and one comparison with 0 the shortlist.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]
Places = NDArray[np.int64]

SLACK = 4e-6
"""More than half a squared distance of points from unit vectors is ever off by in float32 (8e-7 measured for rows
like the sample, 2.8e-6 for rows all opposite its mean)."""

_BLOCK = 2048


def as_queries(points: Points, limit: NDArray[np.floating] | float = 0.0) -> Points:
    """Return points (n, p) as the left side of a shortlist, (n, p + 2); limits in halved squared distance."""
    return _augmented(points, limit, -1)


def as_database(points: Points, limit: NDArray[np.floating] | float = 0.0) -> Points:
    """Return points (n, p) as the right side of a shortlist, (n, p + 2)."""
    return _augmented(points, limit, -2)


def _augmented(points: Points, limit: NDArray[np.floating] | float, place: int) -> Points:
    n, p = points.shape
    out = np.ones((n, p + 2), np.float32)
    out[:, :p] = points
    half_norm = np.einsum("ij,ij->i", points, points, dtype=np.float64) / 2.0
    out[:, place] = limit - half_norm
    return out


class CandidateFilter(Protocol):
    """Finds the pairs of a left and a right block that may be within their limits."""

    def __call__(self, left: Points, right: Points) -> tuple[Places, Places]:
        """Return places in ``left`` (ascending) and in ``right`` of all pairs whose product is at least -SLACK."""
        ...


def cpu_filter(left: Points, right: Points) -> tuple[Places, Places]:
    """See Shortlist; one BLAS product and one pass over it."""
    products = left @ right.T
    found = np.flatnonzero(products.ravel() >= -SLACK)
    return np.divmod(found, max(1, len(right)))


def count_near(points: Points, limit: float) -> Places:
    """Return for each of n points how many, itself included, a shortlist at ``limit`` holds: (n,)."""
    right = as_database(points)
    counts = [
        (as_queries(points[start : start + _BLOCK], limit) @ right.T >= -SLACK).sum(axis=1)
        for start in range(0, len(points), _BLOCK)
    ]
    return np.concatenate([np.zeros(0, np.int64), *counts])


class TorchFilter:
    """See Shortlist; on a device of torch's, in float32 (not TF32: its error would swamp a radius)."""

    def __init__(self, device: str) -> None:
        """Take ``cuda``, ``cuda:1``, or ``cpu`` for a test of the same code."""
        import torch

        self._torch, self._device = torch, torch.device(device)
        torch.backends.cuda.matmul.allow_tf32 = False

    def __call__(self, left: Points, right: Points) -> tuple[Places, Places]:
        """See Shortlist."""
        torch = self._torch
        products = torch.from_numpy(left).to(self._device) @ torch.from_numpy(right).to(self._device).T
        found = torch.nonzero(products >= -SLACK).cpu().numpy()
        return found[:, 0], found[:, 1]


def filter_for(gpus: int) -> CandidateFilter:
    """Return the fastest shortlist where this process may use ``gpus`` GPUs."""
    return TorchFilter("cuda") if gpus else cpu_filter
