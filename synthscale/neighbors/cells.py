"""Where rows go in a join at a radius: cells of a k-means partition, certified so that no pair is missed.

Each row has one home cell, and also visits every cell c whose half-space it nearly reaches:
(|z - c|^2 - |z - h|^2) / (2 |c - h|) <= r / 2, with z its point, h the centre of its home and r the Euclidean
radius. A pair that met nowhere would need both rows more than r / 2 away from the plane between their homes, on
its two sides, and so be more than r apart. Where the centres lie decides the cost alone (their
length must not exceed that of points much, for the sake of float32; means of points do not).

*Hubs* are images repeated so often, slightly changed, that their pairs would be quadratic. A row within r / 2 of
a hub's pivot is absorbed: absorbed rows are at most r from each other, so one edge each, to the pivot, joins them.
Any row within 3 r / 2 of the pivot visits the hub's own cell. A hub belongs to one set.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import faiss
import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.candidate_filter import SLACK, Points, count_near
from synthscale.neighbors.distance import Rows, cosine_distance, norms, unit
from synthscale.neighbors.edges import Codes
from synthscale.neighbors.projection import COMPARE_S, PRODUCT_S, Projection, Vectors, fit_projection

logger = logging.getLogger(__name__)

_FEWEST_ROWS = 4096
"""Below this many rows a join compares all pairs: a partition costs more than it saves."""
_MOST_CELLS = 16384
_PER_CELL = 32
_ITERATIONS = 8
_OVERSIZED = 4.0
_CELL_S = 4e-4
_HUB_ROWS = 256
_HUB_SHARE = 0.01
_HUB_SAMPLE = 8192
_MOST_HUBS = 64


@dataclass(frozen=True)
class Hubs:
    """Pivots of hubs, (h,) each: row, set (by code) and unit vector (h, d) float64."""

    row: Rows
    code: Codes
    unit: NDArray[np.float64]


@dataclass(frozen=True)
class JoinCost:
    """What a join was expected to cost on one core, and what was chosen for it."""

    method: str
    cells: int
    width: int
    hubs: int
    visits_per_row: float
    seconds: float
    brute_force_seconds: float


@dataclass(frozen=True)
class JoinPlan:
    """How a join at a radius is carried out; picklable, the same for every worker."""

    radius: float
    projection: Projection
    centers: Points
    hubs: Hubs
    estimate: JoinCost

    @property
    def cells(self) -> int:
        """Number of cells, those of hubs included (they come last)."""
        return len(self.centers) + len(self.hubs.row)

    @property
    def reach(self) -> float:
        """The Euclidean radius among points, with what float32 may add."""
        return float(np.sqrt(2.0 * (self.radius + SLACK)))


@dataclass(frozen=True)
class CellAssignment:
    """Entries of rows in cells: arrays of equal length, and the hub (or -1) that absorbed each row, (n,)."""

    who: NDArray[np.int64]
    cell: NDArray[np.int32]
    home: NDArray[np.bool_]
    hub: NDArray[np.int64]


@dataclass(frozen=True)
class JoinSample:
    """Some distinct rows of the sets that are joined; ``share`` of the rows of each set, the same for all."""

    vectors: Vectors
    row: Rows
    code: Codes


def plan_join(sample: JoinSample, sizes: Mapping[int, int], radius: float, seed: int = 0) -> JoinPlan:
    """Choose projection, hubs and cells for a join of all distinct rows within ``radius``.

    Args:
        sample: seeded, with rows of each set in proportion.
        sizes: distinct rows of each set, by code; 0 is the real set.
        radius: cosine distance.
        seed: of the k-means.
    """
    n = sum(sizes.values())
    scaled = unit(sample.vectors).astype(np.float32)
    projection = fit_projection(scaled[:_HUB_SAMPLE], radius, n * n / 2)
    points = projection(scaled)
    hubs = _find_hubs(sample, points, sizes, radius)
    one_cell = np.zeros((1, projection.width), np.float32)
    brute = JoinPlan(radius, projection, one_cell, hubs, _brute_estimate(n, projection.width, len(hubs.row)))
    chosen = brute
    free = points[assign_cells(brute, sample.vectors, sample.code, points).hub < 0]
    cells = int(min(_MOST_CELLS, np.sqrt(n), len(free) // 4))
    if n >= _FEWEST_ROWS and cells >= 2:
        plan = replace(brute, centers=_centers(free, cells, seed))
        plan = replace(plan, estimate=_estimate(plan, sample, points, n))
        chosen = plan if plan.estimate.seconds < plan.estimate.brute_force_seconds else brute
    logger.info("join of %d rows at %.3g: %s", n, radius, chosen.estimate)
    return chosen


def sample_size(n: int) -> int:
    """Return how many of n rows a plan wants to see."""
    return int(min(n, max(_HUB_SAMPLE, _PER_CELL * min(_MOST_CELLS, np.sqrt(n)))))


def assign_cells(plan: JoinPlan, vectors: Vectors, code: Codes, points: Points | None = None) -> CellAssignment:
    """Return the cells that rows live in and visit.

    Args:
        plan: of the join.
        vectors: (n, d), none zero.
        code: (n,), each row's set.
        points: what the plan's projection makes of them, if known.
    """
    points = plan.projection.of_stored(vectors, norms(vectors)) if points is None else points
    hub, hub_visitor, visited_hub = _at_hubs(plan, vectors, code)
    free = np.flatnonzero(hub < 0)
    homes, visitor, visited = _at_cells(plan, points[free])
    absorbed = np.flatnonzero(hub >= 0)
    first_hub = len(plan.centers)
    who = np.concatenate([free, absorbed, free[visitor], hub_visitor])
    cell = np.concatenate([homes, hub[absorbed] + first_hub, visited, visited_hub + first_hub])
    home = np.arange(len(who)) < len(vectors)
    return CellAssignment(who, cell.astype(np.int32), home, hub)


_BLOCK_NUMBERS = 2**24


def _at_cells(plan: JoinPlan, points: Points) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return each point's home, and who visits which other cell."""
    centers = plan.centers
    homes = np.zeros(len(points), np.int64)
    if len(centers) < 2:
        return homes, homes[:0], homes[:0]
    apart = np.sqrt(np.maximum(0.0, _squared_distances(centers))).astype(np.float32)
    farthest = apart.max(axis=1)
    offset = np.einsum("ij,ij->i", centers, centers).astype(np.float32) / 2
    who, where = [], []
    step = max(1, _BLOCK_NUMBERS // len(centers))
    for start in range(0, len(points), step):
        # Half of (|z - h|^2 - |z - c|^2) is score[c] - score[h].
        score = points[start : start + step] @ centers.T
        score -= offset
        home = score.argmax(axis=1)
        best = score[np.arange(len(score)), home]
        homes[start : start + step] = home
        # First by the farthest centre, in one pass; then by each centre's own plane.
        floor = best - plan.reach / 2 * farthest[home] - SLACK
        near = np.flatnonzero((score >= floor[:, None]).ravel())
        row, cell = np.divmod(near, len(centers))
        keep = score.ravel()[near] >= best[row] - plan.reach / 2 * apart[home[row], cell] - SLACK
        keep &= cell != home[row]
        who.append(row[keep] + start)
        where.append(cell[keep])
    return homes, np.concatenate([homes[:0], *who]), np.concatenate([homes[:0], *where])


def _squared_distances(centers: Points) -> NDArray[np.float64]:
    wide = centers.astype(np.float64)
    norms = np.einsum("ij,ij->i", wide, wide)
    result: NDArray[np.float64] = norms[:, None] + norms[None, :] - 2 * wide @ wide.T
    return result


def _at_hubs(
    plan: JoinPlan, vectors: Vectors, code: Codes
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the hub that absorbs each row (or -1), and who visits which other hub."""
    hub = np.full(len(vectors), -1, np.int64)
    scale = norms(vectors) if len(plan.hubs.row) else np.ones(0)
    who, where = [hub[:0]], [hub[:0]]
    for number in range(len(plan.hubs.row)):
        pivot, owner = plan.hubs.unit[number], plan.hubs.code[number]
        rough = 1.0 - (vectors @ pivot.astype(np.float32)) / scale
        near = np.flatnonzero((rough <= plan.radius / 4 + SLACK) & (code == owner) & (hub < 0))
        hub[near[cosine_distance(unit(vectors[near]), pivot) <= plan.radius / 4]] = number
        # 3 r / 2 in Euclidean terms; absorbed rows of other hubs visit as well.
        related = (code == owner) | (code == 0) | (owner == 0)
        visitors = np.flatnonzero((rough <= 2.25 * plan.radius + SLACK) & related)
        who.append(visitors)
        where.append(np.full(len(visitors), number))
    visitor, visited = np.concatenate(who), np.concatenate(where)
    elsewhere = hub[visitor] != visited
    return hub, visitor[elsewhere], visited[elsewhere]


def _find_hubs(sample: JoinSample, points: Points, sizes: Mapping[int, int], radius: float) -> Hubs:
    """Return pivots with so many sampled rows of their set around them that their pairs must not be listed."""
    pivots: list[int] = []
    for code, size in sizes.items():
        own = np.flatnonzero(sample.code == code)[:_HUB_SAMPLE]
        fewest = max(_HUB_ROWS, _HUB_SHARE * size) * len(own) / max(1, size)
        while len(own) > fewest and len(pivots) < _MOST_HUBS:
            counts = count_near(points[own], radius / 4)
            if counts.max() < max(fewest, 2):
                break
            pivot = int(own[counts.argmax()])
            # Points that float32 cannot tell apart may still be too far away to be absorbed.
            around = cosine_distance(unit(sample.vectors[own]), unit(sample.vectors[pivot][None])) <= radius / 4
            if around.sum() < max(fewest, 2):
                break
            pivots.append(pivot)
            own = own[~around]
    chosen = np.array(pivots, np.int64)
    return Hubs(sample.row[chosen], sample.code[chosen], unit(sample.vectors[chosen]))


def _centers(points: Points, cells: int, seed: int) -> Points:
    """K-means centres; a centre with far more than its share of the points is replaced by several."""
    centers = _kmeans(points, cells, seed)
    for _ in range(2):
        index = faiss.IndexFlatL2(centers.shape[1])
        index.add(centers)
        home = index.search(points, 1)[1][:, 0]
        counts = np.bincount(home, minlength=len(centers))
        share = len(points) / cells
        oversized = np.flatnonzero(counts > _OVERSIZED * share)
        if not len(oversized):
            break
        finer = [_kmeans(points[home == c], max(2, int(counts[c] / share)), seed) for c in oversized]
        centers = np.concatenate([np.delete(centers, oversized, axis=0), *finer])
    return centers


def _kmeans(points: Points, cells: int, seed: int) -> Points:
    kmeans = faiss.Kmeans(
        points.shape[1],
        cells,
        niter=_ITERATIONS,
        seed=seed + 1,
        min_points_per_centroid=1,
        max_points_per_centroid=10**9,
        gpu=faiss.get_num_gpus() > 0,
    )
    kmeans.train(np.ascontiguousarray(points))
    centers: Points = np.asarray(kmeans.centroids).reshape(-1, points.shape[1])
    return centers


def _brute_estimate(n: int, width: int, hubs: int) -> JoinCost:
    seconds = _pairs_seconds(n * n / 2, width)
    return JoinCost("brute force", 1, width, hubs, 0.0, seconds, seconds)


def _estimate(plan: JoinPlan, sample: JoinSample, points: Points, n: int) -> JoinCost:
    """Estimate the cost with cells from what the sample does."""
    placed = assign_cells(plan, sample.vectors, sample.code, points)
    homes = np.bincount(placed.cell[placed.home], minlength=plan.cells).astype(np.float64)
    visits = np.bincount(placed.cell[~placed.home], minlength=plan.cells).astype(np.float64)
    grown = n / len(sample.row)
    free = len(plan.centers)
    pairs = float((homes * (homes + visits))[:free].sum() + (homes * visits)[free:].sum()) * grown**2
    width = plan.projection.width
    assigning = n * free * (width * PRODUCT_S + 3 * COMPARE_S)
    seconds = assigning + free * _CELL_S + _pairs_seconds(pairs, width)
    brute = _pairs_seconds(n * n / 2, width)
    return JoinCost("cells", free, width, len(plan.hubs.row), float(visits.sum() / homes.sum()), seconds, brute)


def _pairs_seconds(pairs: float, width: int) -> float:
    return pairs * (width * PRODUCT_S + COMPARE_S)
