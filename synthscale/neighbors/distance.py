"""Cosine distance in float64: d = |x/|x| - y/|y||^2 / 2.

Every distance that decides a result comes from this formula, because 1 - x.y in float32 is off by up to 6e-7.
Arrays in, arrays out.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
"""Row numbers of the run, as in the manifest."""

_BLOCK = 2048
"""Vectors converted to float64 at a time."""
_PAIRS = 16384
"""Pairs whose distance is computed at a time, to bound memory."""


def norms(vectors: NDArray[np.floating]) -> Floats:
    """Return the Euclidean norm of each row in float64, (n,), without a float64 copy of the whole array."""
    parts = [
        np.einsum("ij,ij->i", block, block)
        for block in (vectors[i : i + _BLOCK].astype(np.float64) for i in range(0, len(vectors), _BLOCK))
    ]
    lengths: Floats = np.sqrt(np.concatenate([np.zeros(0), *parts]))
    return lengths


def unit(vectors: NDArray[np.floating]) -> Floats:
    """Return rows (n, d) scaled to length 1, in float64. A row of zeros gives NaN; callers exclude them."""
    scaled: Floats = vectors.astype(np.float64)
    scaled /= norms(vectors)[:, None]
    return scaled


def cosine_distance(x: Floats, y: Floats) -> Floats:
    """Return the cosine distance of unit rows x and y along the last axis; shapes (n, d) or broadcastable."""
    difference = x - y
    distance: Floats = np.einsum("...i,...i->...", difference, difference) / 2.0
    return distance


def paired_distance(x: Floats, left: NDArray[np.integer], y: Floats, right: NDArray[np.integer]) -> Floats:
    """Return the distance of unit rows x[left[i]] and y[right[i]], (p,), in blocks to bound memory."""
    out = np.empty(len(left))
    for start in range(0, len(left), _PAIRS):
        part = slice(start, start + _PAIRS)
        out[part] = cosine_distance(x[left[part]], y[right[part]])
    return out


def distances_within(
    vectors: NDArray[np.floating], lengths: Floats, left: NDArray[np.integer], right: NDArray[np.integer]
) -> Floats:
    """Return the distance of rows left[i] and right[i] of one array: (p,).

    Args:
        vectors: (n, d) as stored.
        lengths: (n,) their `norms`.
        left: (p,) indices into ``vectors``.
        right: (p,) indices into ``vectors``.
    """
    out = np.empty(len(left))
    for start in range(0, len(left), _PAIRS):
        part = slice(start, start + _PAIRS)
        x = vectors[left[part]] / lengths[left[part], None]
        y = vectors[right[part]] / lengths[right[part], None]
        out[part] = cosine_distance(x, y)
    return out
