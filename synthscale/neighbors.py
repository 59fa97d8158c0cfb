"""Near-duplicates and k-NN manifold indicators of a real set and its generators, each generator as if alone.

Pure: takes a Searcher over *distinct* rows (exact copies collapsed within each set) and gives arrays over all
rows. The radius is ``threshold`` x the median nearest-neighbour distance among the distinct real rows, because
copies of real images pull a median over all rows towards zero until nothing is flagged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from synthscale.config import NeighborsConfig
from synthscale.groups import Groups, near_duplicate_groups
from synthscale.schemas import REAL
from synthscale.search import Floats, Pairs, Rows, Searcher

K = 5
"""Neighbours that make a k-NN radius for precision and coverage."""

EXACT_COPIES_ONLY = float(np.nextafter(0.0, 1.0))
"""The radius where there is nothing to calibrate on."""
_DATALAB_FLOOR = 1e-6


@dataclass(frozen=True)
class Members:
    """One set's usable rows, ascending, and the representative of each among its exact copies: (n,) each."""

    rows: Rows
    representative: Rows

    @cached_property
    def distinct(self) -> Rows:
        """The representatives, ascending: (m,)."""
        return np.unique(self.representative)

    @cached_property
    def position(self) -> NDArray[np.intp]:
        """Each row's place in ``distinct``: (n,)."""
        return np.searchsorted(self.distinct, self.representative)

    def copy_edges(self) -> Pairs:
        """Return one edge of distance 0 from each copy to its representative."""
        copy = self.rows != self.representative
        return Pairs(self.representative[copy], self.rows[copy], np.zeros(int(copy.sum())))

    def copies(self, ids: Sequence[str]) -> Rows:
        """Return the rows that equal another of a smaller id (by row number): one of each kind is left out."""
        kept: dict[int, int] = {}
        for row, representative in zip(self.rows.tolist(), self.representative.tolist(), strict=True):
            best = kept.setdefault(representative, row)
            if ids[row] < ids[best]:
                kept[representative] = row
        return np.setdiff1d(self.rows, np.fromiter(kept.values(), np.int64, len(kept)))

    def another_copy(self) -> Rows:
        """Return for each row another exact copy of it, or -1."""
        second = np.full(len(self.distinct), -1, np.int64)
        copy = self.rows != self.representative
        second[self.position[copy]] = self.rows[copy]
        return np.where(copy, self.representative, second[self.position])


@dataclass(frozen=True)
class Nearest:
    """Nearest neighbours of rows in one generator's view; arrays over its rows (-1 and inf: there is none)."""

    row: Rows
    nn_row: Rows
    nn_distance: Floats
    nearest_real_row: Rows
    nearest_real_distance: Floats
    knn_radius: Floats
    in_real_manifold: NDArray[np.bool_]
    covered: NDArray[np.bool_]


@dataclass(frozen=True)
class View:
    """What one generator's rows and the real rows are to each other."""

    generator: str
    median_distance: float | None
    radius: float
    real_rows: int
    nearest: Nearest
    groups: Groups

    def summary(self) -> dict[str, float | int | str | None]:
        """Return the radius and the number of groups, as metrics.json has them."""
        calibrated = self.radius > EXACT_COPIES_ONLY
        reason = (
            {} if calibrated and self.median_distance is not None else {"reason": "too few distinct real rows"}
        )
        return {
            **reason,
            "radius": self.radius if calibrated else None,
            "median_distance": self.median_distance,
            "groups": len(np.unique(self.groups.near_duplicate_id)),
            "rows_in_groups": len(self.groups.row),
        }


@dataclass(frozen=True)
class Analysis:
    """The edges of a run (shared ones once) and the view of every generator."""

    edges: dict[str, Pairs]
    views: list[View]


def analyse(searcher: Searcher, sets: dict[str, Members], config: NeighborsConfig) -> Analysis:
    """Find near-duplicates and manifold indicators.

    Args:
        searcher: searches the distinct rows of each set in ``sets``.
        sets: ``real`` and each generator.
        config: the radius rule.
    """
    generators = [name for name in sets if name != REAL]
    real_distance, real_row = searcher.nearest(REAL, REAL, K)
    plans = [_plan(searcher, sets, name, (real_distance, real_row), config) for name in generators]
    shared = searcher.within(REAL, REAL, max(plan.radius for plan in plans))
    edges = {"real-real": _join(shared, sets[REAL].copy_edges())}
    manifold_real = searcher.inside(REAL, REAL, _kth(real_distance))
    views = []
    for plan in plans:
        name = plan.generator
        across = _both_ways(searcher.within(name, REAL, plan.radius))
        among = searcher.within(name, name, plan.radius)
        edges[f"{name}:real-synthetic"] = across
        edges[f"{name}:synthetic-synthetic"] = _join(among, sets[name].copy_edges())
        own = [edges["real-real"], across, edges[f"{name}:synthetic-synthetic"]]
        manifold = searcher.inside(name, REAL, plan.real_radius)
        views.append(
            View(
                name,
                plan.median,
                plan.radius,
                len(sets[REAL].rows),
                _nearest(sets[REAL], sets[name], plan, manifold_real, manifold),
                _groups(sets[REAL], sets[name], own, plan.radius),
            )
        )
    return Analysis(edges, views)


@dataclass(frozen=True)
class _Plan:
    """Distances between the distinct rows of one view, and the radius that follows from them."""

    generator: str
    median: float | None
    radius: float
    real_real: tuple[Floats, Rows]
    real_own: tuple[Floats, Rows]
    own_real: tuple[Floats, Rows]
    own_own: tuple[Floats, Rows]
    real_radius: Floats
    own_radius: Floats


def _plan(
    searcher: Searcher,
    sets: dict[str, Members],
    name: str,
    real_real: tuple[Floats, Rows],
    config: NeighborsConfig,
) -> _Plan:
    own_own = searcher.nearest(name, name, K)
    own_real = searcher.nearest(name, REAL, 1)
    real_own = searcher.nearest(REAL, name, 1)
    median = _median(sets, name, real_real[0], own_own[0], (own_real[0], real_own[0]), config)
    radius = config.radius if config.radius is not None else config.threshold * (median or 0.0)
    # Without distances to calibrate on, exact copies (distance 0) are all that can be said.
    radius = max(radius, EXACT_COPIES_ONLY)
    return _Plan(
        name,
        median,
        radius,
        real_real,
        real_own,
        own_real,
        own_own,
        _kth(real_real[0]),
        _kth(own_own[0]),
    )


def _kth(distances: Floats) -> Floats:
    """The distance of the K-th neighbour, or of the farthest where a set has fewer; -inf where it has none."""
    finite = np.where(np.isinf(distances), -np.inf, distances)
    return np.asarray(finite.max(axis=1, initial=-np.inf))


def _median(
    sets: dict[str, Members],
    name: str,
    real: Floats,
    own: Floats,
    across: tuple[Floats, Floats],
    config: NeighborsConfig,
) -> float | None:
    """The median nearest-neighbour distance that the radius and the scores are measured by."""
    if config.mode == "exact" and config.calibrate_on == "real":
        distances = real[:, 0]
    else:
        own_nearest = np.minimum(own[:, 0], across[0][:, 0])
        real_nearest = np.minimum(real[:, 0], across[1][:, 0])
        if config.mode == "datalab":
            # Datalab counts every row, and a row with an exact copy is at distance 0.
            own_nearest, real_nearest = _expand(sets[name], own_nearest), _expand(sets[REAL], real_nearest)
        distances = np.concatenate([real_nearest, own_nearest])
    finite = distances[np.isfinite(distances)]
    if len(finite) == 0:
        return None
    median = float(np.median(finite))
    return max(median, _DATALAB_FLOOR) if config.mode == "datalab" else median


def _expand(members: Members, distances: Floats) -> Floats:
    return np.where(members.another_copy() >= 0, 0.0, distances[members.position])


def _both_ways(pairs: Pairs) -> Pairs:
    return Pairs(np.minimum(pairs.left, pairs.right), np.maximum(pairs.left, pairs.right), pairs.distance)


def _join(*parts: Pairs) -> Pairs:
    return Pairs(
        np.concatenate([p.left for p in parts]),
        np.concatenate([p.right for p in parts]),
        np.concatenate([p.distance for p in parts]),
    )


def _groups(real: Members, own: Members, edges: list[Pairs], radius: float) -> Groups:
    nodes = np.concatenate([real.rows, own.rows])
    is_real = np.concatenate([np.ones(len(real.rows), np.bool_), np.zeros(len(own.rows), np.bool_)])
    order = np.argsort(nodes)
    all_edges = _join(*edges)
    # Real-real edges are searched at the largest radius of any generator.
    keep = all_edges.distance < radius
    return near_duplicate_groups(nodes[order], is_real[order], all_edges.left[keep], all_edges.right[keep])


def _nearest(
    real: Members, own: Members, plan: _Plan, manifold_real: NDArray[np.bool_], manifold: NDArray[np.bool_]
) -> Nearest:
    real_at, own_at = real.position, own.position
    real_copy, own_copy = real.another_copy(), own.another_copy()

    # Real rows: the nearest other real row, and the nearest of the generator's rows.
    d_real, r_real = _with_copies(plan.real_real[0][real_at, 0], plan.real_real[1][real_at, 0], real_copy)
    d_cross, r_cross = plan.real_own[0][real_at, 0], plan.real_own[1][real_at, 0]
    covered = plan.real_own[0][:, 0] <= plan.real_radius
    # Synthetic rows: the nearest real row, and the nearest other row of the generator.
    d_own, r_own = _with_copies(plan.own_own[0][own_at, 0], plan.own_own[1][own_at, 0], own_copy)
    d_nr, r_nr = plan.own_real[0][own_at, 0], plan.own_real[1][own_at, 0]
    return Nearest(
        row=np.concatenate([real.rows, own.rows]),
        nn_row=np.concatenate([np.where(d_cross < d_real, r_cross, r_real), np.where(d_nr <= d_own, r_nr, r_own)]),
        nn_distance=np.concatenate([np.minimum(d_cross, d_real), np.minimum(d_nr, d_own)]),
        nearest_real_row=np.concatenate([r_real, r_nr]),
        nearest_real_distance=np.concatenate([d_real, d_nr]),
        knn_radius=np.concatenate([plan.real_radius[real_at], plan.own_radius[own_at]]),
        in_real_manifold=np.concatenate([manifold_real[real_at] | (real_copy >= 0), manifold[own_at]]),
        covered=np.concatenate([covered[real_at], np.zeros(len(own.rows), np.bool_)]),
    )


def _with_copies(distance: Floats, row: Rows, copy: Rows) -> tuple[Floats, Rows]:
    return np.where(copy >= 0, 0.0, distance), np.where(copy >= 0, copy, row)
