"""Distances in float64: half the squared Euclidean distance, d = |x - y|^2 / 2.

With the metric ``cosine`` rows are first scaled to length 1, and d is then the cosine distance, 1 - cos(x, y).
With ``euclidean`` rows are taken as they are.

Every distance that decides a result comes from this formula, because 1 - x.y in float32 is off by up to 6e-7.
Arrays in, arrays out.
"""

import numpy as np
from numpy.typing import NDArray

from synthscale.tables.layout import DistanceMetric

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
"""Row numbers of the run, as in the manifest."""

_BLOCK = 2048
"""Vectors converted to float64 at a time."""
_PAIRS = 256
"""Pairs whose distance is computed at a time: their rows stay in the processor's cache."""


def divisors(vectors: NDArray[np.floating], metric: DistanceMetric = "cosine") -> Floats:
    """Return what rows (n, d) are divided by before they are compared: norms, or 1 if ``euclidean``: (n,)."""
    if metric == "euclidean":
        return np.ones(len(vectors))
    # In blocks, without a float64 copy of the whole array.
    parts = [
        np.einsum("ij,ij->i", block, block)
        for block in (vectors[i : i + _BLOCK].astype(np.float64) for i in range(0, len(vectors), _BLOCK))
    ]
    lengths: Floats = np.sqrt(np.concatenate([np.zeros(0), *parts]))
    return lengths


def normalized(vectors: NDArray[np.floating], metric: DistanceMetric = "cosine") -> Floats:
    """Return rows (n, d) in float64, scaled to length 1 if the metric is ``cosine``.

    A row of zeros has no direction and gives NaN under ``cosine``; callers exclude them.
    """
    result: Floats = vectors.astype(np.float64)
    if metric == "cosine":
        result /= divisors(vectors)[:, None]
    return result


def half_squared_distance(x: Floats, y: Floats) -> Floats:
    """Return half the squared distance of x and y along the last axis; shapes (n, d) or broadcastable."""
    difference = x - y
    distance: Floats = np.einsum("...i,...i->...", difference, difference) / 2.0
    return distance


def paired_distance(
    x: NDArray[np.floating], left: NDArray[np.integer], y: NDArray[np.floating], right: NDArray[np.integer]
) -> Floats:
    """Return the distance of rows x[left[i]] and y[right[i]] as they are: (p,)."""
    out = np.empty(len(left))
    for start in range(0, len(left), _PAIRS):
        part = slice(start, start + _PAIRS)
        out[part] = half_squared_distance(x[left[part]].astype(np.float64, copy=False), y[right[part]])
    return out


def distances_within(
    vectors: NDArray[np.floating], lengths: Floats, left: NDArray[np.integer], right: NDArray[np.integer]
) -> Floats:
    """Return the distance of rows left[i] and right[i] of one array: (p,).

    Args:
        vectors: (n, d) as stored.
        lengths: (n,) their `divisors`.
        left: (p,) indices into ``vectors``.
        right: (p,) indices into ``vectors``.
    """
    out = np.empty(len(left))
    for start in range(0, len(left), _PAIRS):
        part = slice(start, start + _PAIRS)
        x = vectors[left[part]] / lengths[left[part], None]
        y = vectors[right[part]] / lengths[right[part], None]
        out[part] = half_squared_distance(x, y)
    return out


def squared_norms(vectors: NDArray[np.floating]) -> Floats:
    """Return the squared norm of each row (n, d), summed in float64: (n,)."""
    result: Floats = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return result
