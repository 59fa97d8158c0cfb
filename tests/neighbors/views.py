"""Generators' views in memory, and brute force's answers in the package's types: what several tests look at."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synthscale.config import NeighborsConfig
from synthscale.in_memory.neighbors import Analysis, MemoryRows, analyse_rows, analyse_vectors
from synthscale.neighbors.copies import Copies, copies_from_pairs, equal_pairs, vector_keys
from synthscale.neighbors.distance import Rows
from synthscale.neighbors.edges import Edges
from synthscale.neighbors.knn_search import KnnResult
from synthscale.neighbors.radius import ViewSearches
from synthscale.neighbors.view import ManifoldNeighbors, Nearest, NeighborView, RadiusCounts, ViewNeighbors
from synthscale.tables.id_hashes import hash_ids
from synthscale.tables.layout import VectorLayout
from tests.reference import brute

Vectors = NDArray[np.float32]
EXACT = NeighborsConfig()
DATALAB = NeighborsConfig(mode="datalab")
NONE = Copies(np.empty(0, np.int64), np.empty(0, np.int64))


def numbered(sets: dict[str, Vectors]) -> tuple[Vectors, dict[str, NDArray[np.int64]], Copies]:
    """Number the rows through the sets, and collapse exact copies within each."""
    rows, start = {}, 0
    for name, x in sets.items():
        rows[name] = np.arange(start, start + len(x))
        start += len(x)
    vectors = np.concatenate(list(sets.values()))
    return (
        vectors,
        rows,
        copies_from_pairs(equal_pairs(vector_keys(vectors[own], name), own) for name, own in rows.items()),
    )


def analysed(sets: dict[str, Vectors], config: NeighborsConfig = EXACT, *, ids: Rows | None = None) -> Analysis:
    vectors, rows, copies = numbered(sets)
    if ids is None:
        return analyse_vectors(vectors, rows, copies, config)
    every = (0, vectors.shape[1])
    data = MemoryRows(vectors, rows, copies, hash_ids(map(str, ids.tolist())))
    return analyse_rows(data, config, VectorLayout(every[1], every, every))


class Seen(NamedTuple):
    """A generator's view beside the real rows 0..real_rows-1, and its rows' neighbours."""

    view: NeighborView
    nearest: Nearest
    real_rows: int


def only_view(
    real: Vectors, synthetic: Vectors, config: NeighborsConfig = EXACT, *, ids: Rows | None = None
) -> Seen:
    """Analyse one generator; ``ids`` of the rows are their numbers unless given."""
    analysis = analysed({"real": real, "fake": synthetic}, config, ids=ids)
    (view,) = analysis.views
    assert view.generator == "fake"
    assert list(analysis.nearest) == ["fake"]
    return Seen(view, analysis.nearest["fake"], len(real))


def groups_of(view: NeighborView) -> set[frozenset[int]]:
    by_id: dict[int, set[int]] = {}
    for row, group in zip(view.groups.row.tolist(), view.groups.near_duplicate_id.tolist(), strict=True):
        by_id.setdefault(group, set()).add(row)
    assert all(min(members) == group for group, members in by_id.items())
    return {frozenset(members) for members in by_id.values()}


def components_of(view: NeighborView) -> set[frozenset[int]]:
    """The connected components, as sets of rows; their ids are their smallest rows."""
    by_id: dict[int, set[int]] = {}
    for row, component in zip(view.groups.row.tolist(), view.groups.component_id.tolist(), strict=True):
        by_id.setdefault(component, set()).add(row)
    assert all(min(members) == component for component, members in by_id.items())
    return {frozenset(members) for members in by_id.values()}


def pairs_of(edges: Edges) -> set[tuple[int, int]]:
    pairs = list(zip(edges.left.tolist(), edges.right.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    return set(pairs)


def freshness(seen: Seen) -> float:
    """1 - share of synthetic rows in a group with a real member."""
    synthetic = seen.view.groups.row >= seen.real_rows
    copied = int((synthetic & seen.view.groups.has_real).sum())
    return 1 - copied / (len(seen.nearest.row) - seen.real_rows)


def precision_and_coverage(seen: Seen) -> tuple[float, float]:
    n = seen.real_rows
    return float(seen.nearest.in_real_manifold[n:].mean()), float(seen.nearest.covered[:n].mean())


def normal(seed: int, n: int, d: int = 8) -> Vectors:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def jittered(x: Vectors, size: float, seed: int = 99) -> Vectors:
    return (x + size * np.random.default_rng(seed).normal(size=x.shape)).astype(np.float32)


def sets_of(kind: str, seed: int, n: int, m: int) -> tuple[Vectors, Vectors]:
    """A real and a synthetic set with near-duplicates within and across them."""
    rng = np.random.default_rng(seed)
    d = 2 if kind == "plane" else 6
    real = rng.normal(size=(n, d))
    if kind == "clustered":
        real = rng.normal(size=(3, d))[rng.integers(0, 3, n)] + 0.1 * real
    fresh = rng.normal(size=(m, d))
    copies = real[rng.integers(0, n, m)] + rng.choice([0, 0.01, 0.05], (m, 1)) * rng.normal(size=(m, d))
    synthetic = np.where(rng.random((m, 1)) < 0.5, fresh, copies)
    if kind == "duplicated":
        real = real[rng.integers(0, max(n // 2, 1), n)]
        synthetic = synthetic[rng.integers(0, max(m // 2, 1), m)]
        synthetic[: m // 4] = real[rng.integers(0, n, m // 4)]
    return real.astype(np.float32), synthetic.astype(np.float32)


def between_distinct_and_to_copies(real: Vectors, synthetic: Vectors, radius: float) -> set[tuple[int, int]]:
    """All pairs within the radius of rows without an earlier copy in their set, and one pair for each copy."""
    n, both = len(real), np.vstack([real, synthetic])
    first: dict[tuple[Any, ...], int] = {}
    of = [first.setdefault((i < n, *row), i) for i, row in enumerate(both.tolist())]
    pairs = {(i, j) for i, j in brute.edges(both, radius) if of[i] == i and of[j] == j}
    return pairs | {(of[i], i) for i in range(len(both)) if of[i] != i}


def around(direction: int, lengths: list[float]) -> Vectors:
    """The first of eight axes, moved by so much along another."""
    x = np.zeros((len(lengths), 8), np.float32)
    x[:, 0], x[:, direction] = 1, lengths
    return x


def relation(
    x: Vectors, query: NDArray[np.int64], database: NDArray[np.int64], k: int, metric: str = "cosine"
) -> KnnResult:
    """What brute force finds; ties go to the smaller row."""
    distances = brute.among(x, metric)[np.ix_(query, database)]
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    distance = np.take_along_axis(distances, order, axis=1)
    pad = ((0, 0), (0, k - order.shape[1]))
    neighbor = np.where(np.isinf(distance), -1, database[order])
    return KnnResult(
        query, np.pad(distance, pad, constant_values=np.inf), np.pad(neighbor, pad, constant_values=-1)
    )


def found_by_brute_force(x: Vectors, real: NDArray[np.int64], own: NDArray[np.int64], k: int) -> ViewNeighbors:
    """Searches by direction, and the manifold in Euclidean space, of distinct rows."""
    pairs = ((real, real), (real, own), (own, real), (own, own))
    searches = ViewSearches(*(relation(x, query, database, k) for query, database in pairs))
    of_real, apart = relation(x, real, real, 5, "euclidean"), brute.among(x, "euclidean")
    inside = [apart[np.ix_(rows, real)] <= of_real.radius(5) for rows in (real, own)]
    return ViewNeighbors(
        searches,
        ManifoldNeighbors(
            of_real,
            relation(x, own, real, 1, "euclidean"),
            None,
            RadiusCounts(real, inside[0].any(axis=1)),
            RadiusCounts(own, inside[1].any(axis=1)),
            RadiusCounts(real, inside[1].any(axis=0)),
            False,
        ),
    )
