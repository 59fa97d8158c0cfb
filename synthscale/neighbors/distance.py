"""The one distance formula: d = |x/|x| - y/|y||^2 / 2 in float64 (1 - x.y in float32 is off by up to 6e-7)."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


Rows = NDArray[np.int64]


_BLOCK = 2048


_PAIRS = 16384


def norms(vectors: NDArray[np.floating]) -> Floats:
    """Return the Euclidean length of each row in float64, (n,), without a float64 copy of all."""
    parts = [
        np.einsum("ij,ij->i", block, block)
        for block in (vectors[i : i + _BLOCK].astype(np.float64) for i in range(0, len(vectors), _BLOCK))
    ]
    lengths: Floats = np.sqrt(np.concatenate([np.zeros(0), *parts]))
    return lengths


def unit(vectors: NDArray[np.floating]) -> Floats:
    """Return rows scaled to length 1 in float64; rows of zeros must have been refused before."""
    scaled: Floats = vectors.astype(np.float64)
    scaled /= norms(vectors)[:, None]
    return scaled


def cosine_distance(x: Floats, y: Floats) -> Floats:
    """Return the one distance formula for unit rows x and y, shapes (n, d) each or broadcastable."""
    difference = x - y
    distance: Floats = np.einsum("...i,...i->...", difference, difference) / 2.0
    return distance


def paired_distance(x: Floats, who: NDArray[np.integer], y: Floats, which: NDArray[np.integer]) -> Floats:
    """Return the distance of unit rows x[who[i]] and y[which[i]], in blocks, so that memory stays small."""
    out = np.empty(len(who))
    for start in range(0, len(who), _PAIRS):
        part = slice(start, start + _PAIRS)
        out[part] = cosine_distance(x[who[part]], y[which[part]])
    return out


def distances_within(
    vectors: NDArray[np.floating], lengths: Floats, who: NDArray[np.integer], which: NDArray[np.integer]
) -> Floats:
    """Return the distance of rows who[i] and which[i] of vectors as stored, whose ``norms`` are known."""
    out = np.empty(len(who))
    for start in range(0, len(who), _PAIRS):
        part = slice(start, start + _PAIRS)
        x = vectors[who[part]] / lengths[who[part], None]
        y = vectors[which[part]] / lengths[which[part], None]
        out[part] = cosine_distance(x, y)
    return out
