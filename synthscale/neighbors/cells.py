"""Plan a radius join: partition rows into k-means cells so that every pair within the radius shares a cell.

Reads a sample of vectors and returns a `JoinPlan`; `assign_cells` applies it to blocks of rows. No files.

Each row has one *home* cell, that of its nearest centre, and also *visits* every cell c close to the boundary:
(|z - c|^2 - |z - h|^2) / (2 |c - h|) <= r / 2, where z is the row's projected point, h the centre of its home
and r the Euclidean radius. The left side is the distance of z from the plane that separates c and h. If neither
of two rows visits the home of the other, both are more than r / 2 from the plane between their homes, on opposite
sides, so they are more than r apart: no pair is missed. The centres affect only the cost, not the result. (They
must not be much longer than the points, or float32 rounding grows; means of points are not.)

*Hubs* handle images that are repeated so often, with small changes, that listing their pairs would be quadratic.
A row within r / 2 of a hub's pivot row is absorbed. Absorbed rows are at most r from each other, so one edge from
each to the pivot connects them. Every row within 3 r / 2 of the pivot visits the hub's own cell. All absorbed rows
of a hub belong to one set.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import faiss
import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.candidate_filter import Points, allowance, count_near
from synthscale.neighbors.distance import (
    Rows,
    divisors,
    half_squared_distance,
    normalized,
    squared_norms,
)
from synthscale.neighbors.edges import Codes
from synthscale.neighbors.projection import COMPARE_S, PRODUCT_S, Projection, Vectors, fit_projection
from synthscale.tables.layout import DistanceMetric

logger = logging.getLogger(__name__)

_FEWEST_ROWS = 4096
"""Rows below which a join compares all pairs: a partition would cost more than it saves."""
_MOST_CELLS = 16384
"""Upper bound on cells. Every row is compared with every centre, so the assignment cost grows with it."""
_PER_CELL = 32
"""Sampled rows per cell for k-means."""
_ITERATIONS = 8
"""Iterations of k-means. The centres affect only the cost of a join, so it need not converge."""
_OVERSIZED = 4.0
"""A cell with more than this multiple of the mean number of points is split, because cost is quadratic in size."""
_CELL_S = 4e-4
"""Fixed overhead per cell in seconds of one core, for the cost estimate."""
_HUB_ROWS = 256
"""Minimum number of rows within r / 2 of a pivot for a hub."""
_HUB_SHARE = 0.01
"""Minimum share of its set for a hub; the larger of the two minima applies."""
_HUB_SAMPLE = 8192
"""Rows per set that are searched for hubs, all pairs compared; also the rows that the projection is fitted on."""
_MOST_HUBS = 64
"""Upper bound on hubs. Every row is compared with every pivot."""


@dataclass(frozen=True)
class Hubs:
    """Pivots of h hubs: row number (h,), set code (h,) and normalized vector (h, d) float64."""

    row: Rows
    code: Codes
    vectors: NDArray[np.float64]


@dataclass(frozen=True)
class JoinCost:
    """Estimated cost of a join on one core, and the method chosen.

    Attributes:
        method: "cells" or "brute force".
        cells: number of k-means cells, without hubs; 1 for brute force.
        width: dimensions of the projected points.
        hubs: number of hubs.
        visits_per_row: mean number of cells that a row visits besides its home.
        seconds: estimated cost of the chosen method.
        brute_force_seconds: estimated cost of comparing all pairs.
    """

    method: str
    cells: int
    width: int
    hubs: int
    visits_per_row: float
    seconds: float
    brute_force_seconds: float


@dataclass(frozen=True)
class JoinPlan:
    """Plan of a radius join; picklable, and the same for every worker.

    Attributes:
        radius: distance (distance.py).
        metric: metric of the distance.
        projection: from normalized vectors to the points that are partitioned and compared.
        centers: (c, width) centres of the k-means cells.
        hubs: see the module's docstring.
        estimate: expected cost.
    """

    radius: float
    metric: DistanceMetric
    projection: Projection
    centers: Points
    hubs: Hubs
    estimate: JoinCost

    @property
    def cells(self) -> int:
        """Number of cells, including one per hub (hub cells come last)."""
        return len(self.centers) + len(self.hubs.row)


@dataclass(frozen=True)
class CellAssignment:
    """Cells of n rows, as e entries: one per row and cell.

    Attributes:
        row_index: (e,) index of the row, 0..n-1.
        cell: (e,) cell number.
        home: (e,) True in the row's home cell, False in cells that it visits.
        hub: (n,) hub that absorbed each row, or -1.
    """

    row_index: NDArray[np.int64]
    cell: NDArray[np.int32]
    home: NDArray[np.bool_]
    hub: NDArray[np.int64]


@dataclass(frozen=True)
class JoinSample:
    """Random sample of the distinct rows of the joined sets; the same fraction of every set.

    Attributes:
        vectors: (m, d) as stored, none zero if ``cosine``.
        row: (m,) row numbers.
        code: (m,) set codes.
    """

    vectors: Vectors
    row: Rows
    code: Codes


def plan_join(
    sample: JoinSample, sizes: Mapping[int, int], radius: float, metric: DistanceMetric = "cosine", seed: int = 0
) -> JoinPlan:
    """Choose the projection, hubs and cells of a radius join; fall back to brute force if it is cheaper.

    Args:
        sample: seeded sample with the same fraction of every set.
        sizes: number of distinct rows of each set, by set code; 0 is the real set.
        radius: distance.
        metric: metric of the distance.
        seed: seed of k-means.
    """
    n = sum(sizes.values())
    scaled = normalized(sample.vectors, metric).astype(np.float32)
    projection = fit_projection(scaled[:_HUB_SAMPLE], radius, n * n / 2)
    points = projection(scaled)
    hubs = _find_hubs(sample, points, sizes, radius, metric)
    one_cell = np.zeros((1, projection.width), np.float32)
    cost = _brute_force_cost(n, projection.width, len(hubs.row))
    brute = JoinPlan(radius, metric, projection, one_cell, hubs, cost)
    chosen = brute
    free = points[assign_cells(brute, sample.vectors, sample.code, points).hub < 0]
    cells = int(min(_MOST_CELLS, np.sqrt(n), len(free) // 4))
    if n >= _FEWEST_ROWS and cells >= 2:
        plan = replace(brute, centers=_centers(free, cells, seed))
        plan = replace(plan, estimate=_cell_cost(plan, sample, points, n))
        chosen = plan if plan.estimate.seconds < plan.estimate.brute_force_seconds else brute
    logger.info("join of %d rows within radius %.3g: %s", n, radius, chosen.estimate)
    return chosen


def sample_size(n: int) -> int:
    """Return the number of rows to sample for the plan of a join of n rows."""
    return int(min(n, max(_HUB_SAMPLE, _PER_CELL * min(_MOST_CELLS, np.sqrt(n)))))


def assign_cells(plan: JoinPlan, vectors: Vectors, code: Codes, points: Points | None = None) -> CellAssignment:
    """Return the home cell of each row and the cells that it visits.

    Args:
        plan: plan of the join.
        vectors: (n, d), none zero if ``cosine``.
        code: (n,) set code of each row.
        points: (n, width) projection of ``vectors``; computed if None.
    """
    lengths = divisors(vectors, plan.metric)
    magnitude = squared_norms(vectors) / lengths**2
    points = plan.projection.of_stored(vectors, lengths) if points is None else points
    hub, hub_visitor, visited_hub = _visits_to_hubs(plan, vectors, lengths, magnitude, code)
    free = np.flatnonzero(hub < 0)
    homes, visitor, visited = _visits_to_cells(plan, points[free], magnitude[free])
    absorbed = np.flatnonzero(hub >= 0)
    first_hub = len(plan.centers)
    entry_row = np.concatenate([free, absorbed, free[visitor], hub_visitor])
    cell = np.concatenate([homes, hub[absorbed] + first_hub, visited, visited_hub + first_hub])
    home = np.arange(len(entry_row)) < len(vectors)
    return CellAssignment(entry_row, cell.astype(np.int32), home, hub)


_BLOCK_NUMBERS = 2**24
"""Entries of the matrix of points x centres computed at a time: 64 MiB of float32."""


def _visits_to_cells(
    plan: JoinPlan, points: Points, magnitude: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the home cell of each point, (n,), and visits as (point index, cell), (v,) each.

    ``magnitude``, (n,), has the squared norms of the normalized vectors.
    """
    centers = plan.centers
    homes = np.zeros(len(points), np.int64)
    if len(centers) < 2:
        return homes, homes[:0], homes[:0]
    apart = np.sqrt(np.maximum(0.0, _squared_distances(centers))).astype(np.float32)
    farthest = apart.max(axis=1)
    # Every score is raised by its centre's share of the rounding error, and the bounds are lowered by twice the
    # home's and by the point's. (A far centre's share is large, but so is its distance.)
    rounding = allowance(centers, 0.0).astype(np.float32)
    offset = np.einsum("ij,ij->i", centers, centers).astype(np.float32) / 2 - rounding
    slack = allowance(points, magnitude)
    # The other point of a pair within the radius may be longer, by at most the Euclidean radius.
    half_reach = np.sqrt(2.0 * (plan.radius * (1 + 1e-5) + 4.0 * slack)).astype(np.float32) / 2
    slack = slack.astype(np.float32)
    visitors, visited = [], []
    step = max(1, _BLOCK_NUMBERS // len(centers))
    for start in range(0, len(points), step):
        # score[c] - score[h] equals (|z - h|^2 - |z - c|^2) / 2, so the home has the largest score.
        score = points[start : start + step] @ centers.T
        score -= offset
        home = score.argmax(axis=1)
        best = score[np.arange(len(score)), home]
        homes[start : start + step] = home
        # A bound with the distance to the farthest centre needs one pass; the survivors get the exact test.
        part = slice(start, start + len(score))
        best -= slack[part] + 2 * rounding[home]
        floor = best - half_reach[part] * farthest[home]
        near = np.flatnonzero((score >= floor[:, None]).ravel())
        row, cell = np.divmod(near, len(centers))
        bound = best[row] - half_reach[part][row] * apart[home[row], cell]
        keep = score.ravel()[near] >= bound
        keep &= cell != home[row]
        visitors.append(row[keep] + start)
        visited.append(cell[keep])
    return homes, np.concatenate([homes[:0], *visitors]), np.concatenate([homes[:0], *visited])


def _squared_distances(centers: Points) -> NDArray[np.float64]:
    wide = centers.astype(np.float64)
    squared = np.einsum("ij,ij->i", wide, wide)
    result: NDArray[np.float64] = squared[:, None] + squared[None, :] - 2 * wide @ wide.T
    return result


def _visits_to_hubs(
    plan: JoinPlan,
    vectors: Vectors,
    lengths: NDArray[np.float64],
    magnitude: NDArray[np.float64],
    code: Codes,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the hub that absorbs each row (or -1), (n,), and visits as (row index, hub), (v,) each.

    ``lengths``, (n,), are the `divisors` of the vectors, and ``magnitude`` the squared norms once divided by them.
    """
    hub = np.full(len(vectors), -1, np.int64)
    visitors_by_hub, hubs_visited = [hub[:0]], [hub[:0]]
    for number in range(len(plan.hubs.row)):
        pivot, hub_code = plan.hubs.vectors[number], plan.hubs.code[number]
        length = float(pivot @ pivot)
        approximate = (magnitude + length) / 2 - (vectors @ pivot.astype(np.float32)) / lengths
        # For both points' rounding, as `allowance` of points that are the vectors themselves.
        approximate -= allowance(np.empty((1, 0), np.float32), 2 * (magnitude + length))
        # A distance is half the squared Euclidean one, so r / 2 is radius / 4 and 3 r / 2 is 2.25 radius.
        near = np.flatnonzero((approximate <= plan.radius / 4) & (code == hub_code) & (hub < 0))
        own = normalized(vectors[near], plan.metric)
        hub[near[half_squared_distance(own, pivot) <= plan.radius / 4]] = number
        # Rows absorbed by other hubs visit this one as well.
        related = (code == hub_code) | (code == 0) | (hub_code == 0)
        visitors = np.flatnonzero((approximate <= 2.25 * plan.radius) & related)
        visitors_by_hub.append(visitors)
        hubs_visited.append(np.full(len(visitors), number))
    visitor, visited = np.concatenate(visitors_by_hub), np.concatenate(hubs_visited)
    elsewhere = hub[visitor] != visited
    return hub, visitor[elsewhere], visited[elsewhere]


def _find_hubs(
    sample: JoinSample, points: Points, sizes: Mapping[int, int], radius: float, metric: DistanceMetric
) -> Hubs:
    """Return the sampled rows with too many neighbours within r / 2 in their set to list all pairs."""
    vectors = normalized(sample.vectors, metric)
    magnitude = squared_norms(vectors)
    pivots: list[int] = []
    for code, size in sizes.items():
        candidates = np.flatnonzero(sample.code == code)[:_HUB_SAMPLE]
        fewest = max(_HUB_ROWS, _HUB_SHARE * size) * len(candidates) / max(1, size)
        while len(candidates) > fewest and len(pivots) < _MOST_HUBS:
            counts = count_near(points[candidates], radius / 4, magnitude[candidates])
            if counts.max() < max(fewest, 2):
                break
            pivot = int(candidates[counts.argmax()])
            # The float32 count may include rows that the float64 formula puts outside r / 2.
            around = half_squared_distance(vectors[candidates], vectors[pivot][None]) <= radius / 4
            if around.sum() < max(fewest, 2):
                break
            pivots.append(pivot)
            candidates = candidates[~around]
    chosen = np.array(pivots, np.int64)
    return Hubs(sample.row[chosen], sample.code[chosen], vectors[chosen])


def _centers(points: Points, cells: int, seed: int) -> Points:
    """Return k-means centres; a centre with more than `_OVERSIZED` times the mean number of points is split."""
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


def _brute_force_cost(n: int, width: int, hubs: int) -> JoinCost:
    seconds = _comparison_seconds(n * n / 2, width)
    return JoinCost("brute force", 1, width, hubs, 0.0, seconds, seconds)


def _cell_cost(plan: JoinPlan, sample: JoinSample, points: Points, n: int) -> JoinCost:
    """Estimate the cost of a join with cells by assigning the sample and scaling its counts to n rows."""
    assignment = assign_cells(plan, sample.vectors, sample.code, points)
    homes = np.bincount(assignment.cell[assignment.home], minlength=plan.cells).astype(np.float64)
    visits = np.bincount(assignment.cell[~assignment.home], minlength=plan.cells).astype(np.float64)
    scale = n / len(sample.row)
    free = len(plan.centers)
    pairs = float((homes * (homes + visits))[:free].sum() + (homes * visits)[free:].sum()) * scale**2
    width = plan.projection.width
    assigning = n * free * (width * PRODUCT_S + 3 * COMPARE_S)
    seconds = assigning + free * _CELL_S + _comparison_seconds(pairs, width)
    brute = _comparison_seconds(n * n / 2, width)
    return JoinCost("cells", free, width, len(plan.hubs.row), float(visits.sum() / homes.sum()), seconds, brute)


def _comparison_seconds(pairs: float, width: int) -> float:
    return pairs * (width * PRODUCT_S + COMPARE_S)
