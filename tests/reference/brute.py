"""Brute-force answers in float64: every pair is looked at, and nothing here is shared with the package."""

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Edge = tuple[int, int]


def cosine_distances(x: NDArray[np.floating], y: NDArray[np.floating]) -> Matrix:
    """All distances |x/|x| - y/|y||^2 / 2, shape (n, m)."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    x = x / np.sqrt((x * x).sum(axis=1, keepdims=True))
    y = y / np.sqrt((y * y).sum(axis=1, keepdims=True))
    return halved_squares(x, y)


def halved_squares(x: NDArray[np.floating], y: NDArray[np.floating]) -> Matrix:
    """Half the squared Euclidean distance of all pairs of rows as they are, shape (n, m)."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    out = np.empty((len(x), len(y)))
    for i in range(len(x)):
        out[i] = ((x[i] - y) ** 2).sum(axis=1) / 2
    return out


def distances(x: NDArray[np.floating], y: NDArray[np.floating], metric: str) -> Matrix:
    """All distances by the metric ``cosine`` or ``euclidean``, shape (n, m)."""
    return {"cosine": cosine_distances, "euclidean": halved_squares}[metric](x, y)


def scaled(x: NDArray[np.floating], real: NDArray[np.floating]) -> Matrix:
    """Columns minus the mean of the distinct real rows, over their standard deviation; constant ones left out."""
    rows = distinct(real).astype(np.float64)
    varies = rows.max(axis=0) > rows.min(axis=0)
    return (x.astype(np.float64)[:, varies] - rows[:, varies].mean(axis=0)) / rows[:, varies].std(axis=0)


def among(x: NDArray[np.floating], metric: str = "cosine") -> Matrix:
    """Distances of the rows of one set to one another; a row is infinitely far from itself."""
    found = distances(x, x, metric)
    np.fill_diagonal(found, np.inf)
    return found


def k_smallest(apart: Matrix, k: int) -> Matrix:
    """The k smallest of each row, ascending; inf where there are fewer."""
    ordered = np.sort(apart, axis=1)[:, :k]
    return np.pad(ordered, ((0, 0), (0, k - ordered.shape[1])), constant_values=np.inf)


def edges(x: NDArray[np.floating], radius: float, metric: str = "cosine") -> set[Edge]:
    """Pairs i < j with distance < radius; exact copies are always edges."""
    apart = distances(x, x, metric)
    return {
        (i, j)
        for i in range(len(x))
        for j in range(i + 1, len(x))
        if apart[i, j] < radius or np.array_equal(x[i], x[j])
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


def real_median(real: NDArray[np.floating], metric: str = "cosine") -> float:
    """Median nearest-neighbour distance among the distinct real rows."""
    return float(np.median(among(distinct(real), metric).min(axis=1)))


def linked(x: NDArray[np.floating], radius: float, metric: str = "cosine") -> set[frozenset[int]]:
    """Connected components of two or more rows."""
    return {frozenset(members) for members in components(len(x), edges(x, radius, metric)) if len(members) > 1}


def split(n: int, pairs: set[Edge], is_real: Sequence[bool]) -> set[frozenset[int]]:
    """Near-duplicate groups of a graph: its components of two or more nodes, mixed ones split by contact.

    The real nodes of a mixed component and the synthetic ones with a real neighbour are one group. What is left of
    it falls into groups, of one node too, that the component's synthetic nodes connect among themselves.
    """
    touched = {end for pair in pairs if is_real[pair[0]] or is_real[pair[1]] for end in pair}
    found = set()
    for members in components(n, pairs):
        if len(members) == 1:
            continue
        kinds = {bool(is_real[node]) for node in members}
        rest = {node for node in members if len(kinds) == 2 and not is_real[node] and node not in touched}
        found.add(frozenset(members) - rest)
        inner = {(i, j) for i, j in pairs if not is_real[i] and not is_real[j]}
        found |= {frozenset(part) & rest for part in components(n, inner)} - {frozenset()}
    return found


def groups(x: NDArray[np.floating], radius: float, reals: int, metric: str = "cosine") -> set[frozenset[int]]:
    """Near-duplicate groups of a view whose first ``reals`` rows are real (see `split`)."""
    return split(len(x), edges(x, radius, metric), [i < reals for i in range(len(x))])


def leaders(order: Sequence[int], pairs: set[Edge]) -> dict[int, int]:
    """Leader of each node: nodes are visited in an order; a free one leads, and holds its free neighbours."""
    near: dict[int, set[int]] = {node: set() for node in order}
    for i, j in pairs:
        near[i].add(j)
        near[j].add(i)
    found: dict[int, int] = {}
    for node in order:
        if node not in found:
            found |= dict.fromkeys(({node} | near[node]) - found.keys(), node)
    return found


def prdc(
    real: NDArray[np.floating], synthetic: NDArray[np.floating], k: int = 5, ties: float = 1e-9
) -> dict[str, float]:
    """Precision, recall, density and coverage (Kynkaanniemi et al. 2019, Naeem et al. 2020), in Euclidean space.

    Two departures from the package prdc: a distance equal to a radius is within it, and radii are those of the
    distinct rows of a set, so that repeated rows do not shrink them to nothing. A distance is equal to a radius
    if they differ by at most ``ties`` of it, because rounding must not decide.
    """
    radii = []
    for rows in (real, synthetic):
        different = distinct(rows)
        assert len(different) > k, "a k-th neighbour needs more than k distinct rows"
        kth = k_smallest(among(different, "euclidean"), k)[:, -1]
        radius_of = {tuple(row): radius for row, radius in zip(different.tolist(), kth, strict=True)}
        radii.append(np.array([radius_of[tuple(row)] for row in rows.tolist()]))
    apart = halved_squares(real, synthetic)
    in_real, in_synthetic = apart <= radii[0][:, None] * (1 + ties), apart <= radii[1][None, :] * (1 + ties)
    # Density counts each distinct real row once, however often it is repeated.
    first = [i for i, row in enumerate(real.tolist()) if row not in real[:i].tolist()]
    return {
        "precision": float(in_real.any(axis=0).mean()),
        "recall": float(in_synthetic.any(axis=1).mean()),
        "density": float(in_real[first].sum(axis=0).mean() / k),
        "coverage": float(in_real.any(axis=1).mean()),
    }


def precision_and_coverage(
    real: NDArray[np.floating], synthetic: NDArray[np.floating], k: int = 5
) -> tuple[float, float]:
    """Precision and coverage as in `prdc`, where the synthetic rows may be too few for radii of their own."""
    different = distinct(real)
    assert len(different) > k, "a k-th neighbour needs more than k distinct rows"
    kth = k_smallest(among(different, "euclidean"), k)[:, -1]
    inside = halved_squares(different, synthetic) <= kth[:, None] * (1 + 1e-9)
    covered = dict(zip(map(tuple, different.tolist()), inside.any(axis=1).tolist(), strict=True))
    return float(inside.any(axis=0).mean()), float(np.mean([covered[tuple(row)] for row in real.tolist()]))


def nearest_lists(x: NDArray[np.floating], k: int) -> tuple[Matrix, NDArray[np.int64]]:
    """Distances and rows of the k nearest others of each row, ties to the smaller row: (n, k), n > k."""
    apart = among(x)
    rows = np.argsort(apart, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(apart, rows, axis=1), rows


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


COLUMN_KINDS = ("normal", "units", "integers", "heavy", "offset", "outliers", "repeated")


def columns(kind: str, seed: int, n: int) -> NDArray[np.float32]:
    """Rows, (n, d), of numeric columns as tables have them; a row may be all zeros."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6))
    if kind == "units":
        x *= np.logspace(-3, 3, 6)
    elif kind == "integers":
        # Few different distances: ties everywhere.
        x = rng.integers(0, 3, (n, 4)).astype(float)
    elif kind == "heavy":
        x = rng.standard_cauchy((n, 6)) * rng.choice([1, 1e-2], (n, 1))
    elif kind == "offset":
        # As years or coordinates are: the differences are in the last digits of a float32.
        x = 2000 + np.array([1, 10, 100, 1000, 1, 1]) * x
    elif kind == "outliers":
        # The last rows, so that the first, which a test takes as real, have a usual scale.
        x[3 * n // 4 :] *= np.where(rng.random((n - 3 * n // 4, 1)) < 0.3, 1e6, 1)
        x[n - 1] = 1e9
    elif kind == "repeated":
        x = x[rng.integers(0, max(n // 3, 1), n)]
    return x.astype(np.float32)
