"""Brute-force answers in float64: every pair is looked at, and nothing here is shared with the package."""

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Edge = tuple[int, int]


def cosine_distances(x: NDArray[np.floating], y: NDArray[np.floating]) -> Matrix:
    """All distances |x/|x| - y/|y||^2 / 2, shape (n, m)."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    x = x / np.sqrt((x * x).sum(axis=1, keepdims=True))
    y = y / np.sqrt((y * y).sum(axis=1, keepdims=True))
    out = np.empty((len(x), len(y)))
    for i in range(len(x)):
        out[i] = ((x[i] - y) ** 2).sum(axis=1) / 2
    return out


def half_squared_distances(x: NDArray[np.floating], y: NDArray[np.floating]) -> Matrix:
    """All distances |x - y|^2 / 2, shape (n, m)."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    out = np.empty((len(x), len(y)))
    for i in range(len(x)):
        out[i] = ((x[i] - y) ** 2).sum(axis=1) / 2
    return out


def standardized(x: NDArray[np.floating], real: NDArray[np.floating]) -> Matrix:
    """Columns in units of the standard deviation of the distinct real rows; constant ones are left out."""
    different = distinct(real).astype(np.float64)
    mean, deviation = different.mean(axis=0), different.std(axis=0)
    varies = deviation > 1e-6 * np.abs(mean)
    scaled: Matrix = ((x.astype(np.float64) - mean) / np.where(varies, deviation, 1.0))[:, varies]
    return scaled


Distances = Callable[[NDArray[np.floating], NDArray[np.floating]], Matrix]


def among(x: NDArray[np.floating], distances_of: Distances = cosine_distances) -> Matrix:
    """Distances of the rows of one set to one another; a row is infinitely far from itself."""
    distances = distances_of(x, x)
    np.fill_diagonal(distances, np.inf)
    return distances


def k_smallest(distances: Matrix, k: int) -> Matrix:
    """The k smallest of each row, ascending; inf where there are fewer."""
    ordered = np.sort(distances, axis=1)[:, :k]
    return np.pad(ordered, ((0, 0), (0, k - ordered.shape[1])), constant_values=np.inf)


def edges(x: NDArray[np.floating], radius: float, distances_of: Distances = cosine_distances) -> set[Edge]:
    """Pairs i < j with distance < radius; exact copies are always edges."""
    distances = distances_of(x, x)
    return {
        (i, j)
        for i in range(len(x))
        for j in range(i + 1, len(x))
        if distances[i, j] < radius or np.array_equal(x[i], x[j])
    }


def components(n: int, pairs: set[Edge]) -> list[list[int]]:
    """Connected components of nodes 0..n-1, each ascending, by breadth-first search."""
    neighbours: list[list[int]] = [[] for _ in range(n)]
    for i, j in pairs:
        neighbours[i].append(j)
        neighbours[j].append(i)
    seen, found = [False] * n, []
    for start in range(n):
        if seen[start]:
            continue
        seen[start], waiting, members = True, deque([start]), []
        while waiting:
            node = waiting.popleft()
            members.append(node)
            for other in neighbours[node]:
                if not seen[other]:
                    seen[other] = True
                    waiting.append(other)
        found.append(sorted(members))
    return found


def distinct(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """The rows without their exact copies."""
    return np.array(list(dict.fromkeys(map(tuple, x.tolist()))))


def real_median(real: NDArray[np.floating], distances_of: Distances = cosine_distances) -> float:
    """Median nearest-neighbour distance among the distinct real rows."""
    return float(np.median(among(distinct(real), distances_of).min(axis=1)))


def near_components(
    x: NDArray[np.floating], radius: float, distances_of: Distances = cosine_distances
) -> set[frozenset[int]]:
    """Connected components of two or more near-duplicate rows."""
    found = components(len(x), edges(x, radius, distances_of))
    return {frozenset(members) for members in found if len(members) > 1}


def groups(
    x: NDArray[np.floating], reals: int, radius: float, distances_of: Distances = cosine_distances
) -> set[frozenset[int]]:
    """Near-duplicate groups, where the first ``reals`` rows are real.

    Components with real and synthetic rows are split: real rows and synthetic ones near a real row; and the
    components of the rest alone, single rows too.
    """
    pairs, found = edges(x, radius, distances_of), set()
    near = {max(pair) for pair in pairs if min(pair) < reals <= max(pair)}
    for members in near_components(x, radius, distances_of):
        core = {i for i in members if i < reals or i in near}
        rest = members - core
        if rest and min(members) < reals:
            found.add(frozenset(core))
            own = {(i, j) for i, j in pairs if i in rest and j in rest}
            found |= {frozenset(part) for part in components(len(x), own) if part[0] in rest}
        else:
            found.add(members)
    return found


def leaders(order: list[int], pairs: set[Edge], members: frozenset[int]) -> dict[int, int]:
    """Leader of each member of a component: in ``order`` a free row leads, and holds the free rows near it."""
    near = pairs | {(j, i) for i, j in pairs}
    leader: dict[int, int] = {}
    for row in (row for row in order if row in members):
        if row not in leader:
            leader |= {other: row for other in members if other not in leader and (row, other) in near}
            leader[row] = row
    return leader


def precision_and_coverage(
    real: NDArray[np.floating], synthetic: NDArray[np.floating], k: int = 5
) -> tuple[float, float]:
    """Share of synthetic rows inside a real row's k-NN radius; share of real rows whose radius holds one.

    Distances are Euclidean. Radii are those of the distinct real rows, so that repeated rows do not shrink them to
    nothing.
    """
    different = distinct(real)
    assert len(different) > k, "a k-th neighbour needs more than k distinct rows"
    kth = k_smallest(among(different, half_squared_distances), k)[:, -1]
    radius_of = {tuple(row): radius for row, radius in zip(different.tolist(), kth, strict=True)}
    radii = np.array([radius_of[tuple(row)] for row in real.tolist()])
    inside = half_squared_distances(real, synthetic) <= radii[:, None] * (1 + 1e-6)
    return float(inside.any(axis=0).mean()), float(inside.any(axis=1).mean())


def nearest_lists(x: NDArray[np.floating], k: int) -> tuple[Matrix, NDArray[np.int64]]:
    """Distances and rows of the k nearest others of each row, ties to the smaller row: (n, k), n > k."""
    distances = among(x)
    rows = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, rows, axis=1), rows


def diameter(x: NDArray[np.floating], members: list[int]) -> float:
    """The largest distance between members."""
    return float(cosine_distances(x[members], x[members]).max())


KINDS = ("uniform", "clustered", "tight", "duplicated", "plane", "offset")


def vectors(kind: str, seed: int, n: int) -> NDArray[np.float32]:
    """Vectors, (n, d), of the shapes that a search has to cope with; none is zero."""
    rng = np.random.default_rng(seed)
    if kind == "uniform":
        x = rng.uniform(-1, 1, (n, 8))
    elif kind == "clustered":
        x = rng.normal(size=(4, 16))[rng.integers(0, 4, n)] + 0.05 * rng.normal(size=(n, 16))
    elif kind == "tight":
        # Distances of about 1e-9: float32 inner products cannot order them.
        x = rng.normal(size=(2, 16))[rng.integers(0, 2, n)] + 1e-5 * rng.normal(size=(n, 16))
    elif kind == "duplicated":
        x = rng.normal(size=(n, 6))[rng.integers(0, max(n // 3, 1), n)]
    elif kind == "plane":
        x = rng.normal(size=(n, 2))
    else:
        # Raw pixels have a common brightness, and so small angles throughout.
        x = 300 + rng.normal(size=(n, 12))
    return x.astype(np.float32)
