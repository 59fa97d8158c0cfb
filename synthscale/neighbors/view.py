"""One generator's near-duplicates and nearest rows, as if it were alone with the real set.

Pure: what searches over *distinct* rows found goes in, arrays over all rows come out; the same functions serve a
shard of a run and a whole set in memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthscale.config import NeighborsConfig
from synthscale.neighbors.copies import Copies, vector_hashes
from synthscale.neighbors.distance import Floats, Rows, unit
from synthscale.neighbors.edges import Codes, Edges, distinct_edges
from synthscale.neighbors.groups import Groups
from synthscale.neighbors.knn_search import KnnResult, Recall
from synthscale.neighbors.radius import EXACT_COPIES_ONLY, RadiusCalibration, ViewSearches
from synthscale.statistics.jackknife import Blocks
from synthscale.statistics.prdc_variance import share_deviations

K = 5
"""Neighbours that make a k-NN radius for precision and coverage."""
DATALAB_K = 10
"""Neighbours that cleanlab Datalab lists; a near-duplicate farther down its list does not exist for it."""


def neighbors_listed(config: NeighborsConfig) -> int:
    """Return how many neighbours a search lists."""
    return DATALAB_K if config.mode == "datalab" else K


@dataclass(frozen=True)
class Nearest:
    """Nearest neighbours of rows in one generator's view; arrays over its rows (-1 and inf: there is none).

    Attributes:
        distinct_real_distance: of real rows, to the nearest other real row that is no copy.
        held: of real rows, the synthetic rows that their k-NN radius holds; -1 where not counted.
        real_balls: of synthetic rows, the real rows whose k-NN radius holds them; -1 where not counted.
        in_synthetic_manifold: of real rows, 1 where a synthetic row's k-NN radius holds them; -1 where not asked.
    """

    row: Rows
    is_real: NDArray[np.bool_]
    nn_row: Rows
    nn_distance: Floats
    nearest_real_row: Rows
    nearest_real_distance: Floats
    distinct_real_distance: Floats
    knn_radius: Floats
    in_real_manifold: NDArray[np.bool_]
    covered: NDArray[np.bool_]
    exact: NDArray[np.bool_]
    synthetic_in_radius: NDArray[np.int32]
    real_radii_containing: NDArray[np.int32]
    in_synthetic_manifold: NDArray[np.int8]


@dataclass(frozen=True)
class RadiusCounts:
    """How many rows of a set, other than itself, have a k-NN radius that holds a distinct row: (m,) each.

    Beyond 1 the counts are right only where they were asked for.
    """

    row: Rows
    count: NDArray[np.integer] | NDArray[np.bool_]

    def of(self, rows: Rows) -> NDArray[np.bool_]:
        """Tell which of some of the rows lie inside some radius."""
        return self.counts_of(rows) > 0

    def counts_of(self, rows: Rows) -> NDArray[np.int32]:
        """Return the counts of some of the rows."""
        result: NDArray[np.int32] = self.count[np.searchsorted(self.row, rows)].astype(np.int32)
        return result


@dataclass(frozen=True)
class ViewNeighbors:
    """What searches found for one view: for all its distinct rows, or at least those that are asked about.

    ``recalled`` tells which real rows lie inside the generator's radii, where that was asked; then the counts of
    ``own_inside`` are right as well. ``held`` counts the generator's rows inside each real row's radius, if asked.
    """

    searches: ViewSearches
    real_inside: RadiusCounts
    own_inside: RadiusCounts
    recalled: RadiusCounts | None = None
    synthetic_in_radius: RadiusCounts | None = None


def nearest_rows(found: ViewNeighbors, copies: Copies, real: Rows, own: Rows) -> Nearest:
    """Return the nearest neighbours of real rows and a generator's rows, exact copies expanded again.

    Args:
        found: holds the representative of every row.
        copies: of all sets.
        real: some real rows, ascending.
        own: some of the generator's rows, ascending.
    """
    searches, (real_of, own_of) = found.searches, (copies.representatives(real), copies.representatives(own))
    real_copy, own_copy = copies.another(real), copies.another(own)
    # Real rows: the nearest other real row, and the nearest of the generator's rows.
    d_distinct, r_distinct = _first(searches.real_real, real_of)
    d_real, r_real = _with_copies(d_distinct, r_distinct, real_copy)
    d_cross, r_cross = _first(searches.real_own, real_of)
    # Synthetic rows: the nearest real row, and the nearest other row of the generator.
    d_own, r_own = _with_copies(*_first(searches.own_own, own_of), own_copy)
    d_nr, r_nr = _first(searches.own_real, own_of)
    real_radius = _kth(searches.real_real, real_of)
    n, m = len(real), len(own)
    synthetic_in_radius, balls = np.full(n + m, -1, np.int32), np.full(n + m, -1, np.int32)
    recalled = np.full(n + m, -1, np.int8)
    if found.synthetic_in_radius is not None:
        synthetic_in_radius[:n] = found.synthetic_in_radius.counts_of(real_of)
    if found.recalled is not None:
        balls[n:], recalled[:n] = found.own_inside.counts_of(own_of), found.recalled.of(real_of)
    sure = [r.recall is None for r in (searches.real_real, searches.real_own, searches.own_own, searches.own_real)]
    return Nearest(
        row=np.concatenate([real, own]),
        is_real=np.arange(len(real) + len(own)) < len(real),
        nn_row=np.concatenate([np.where(d_cross < d_real, r_cross, r_real), np.where(d_nr <= d_own, r_nr, r_own)]),
        nn_distance=np.concatenate([np.minimum(d_cross, d_real), np.minimum(d_nr, d_own)]),
        nearest_real_row=np.concatenate([r_real, r_nr]),
        nearest_real_distance=np.concatenate([d_real, d_nr]),
        distinct_real_distance=np.concatenate([d_distinct, np.full(m, np.inf)]),
        knn_radius=np.concatenate([real_radius, _kth(searches.own_own, own_of)]),
        in_real_manifold=np.concatenate(
            [found.real_inside.of(real_of) | (real_copy >= 0), found.own_inside.of(own_of)]
        ),
        covered=np.concatenate([d_cross <= real_radius, np.zeros(len(own), np.bool_)]),
        exact=np.concatenate([np.full(n, sure[0] and sure[1]), np.full(m, sure[2] and sure[3])]),
        synthetic_in_radius=synthetic_in_radius,
        real_radii_containing=balls,
        in_synthetic_manifold=recalled,
    )


def _first(relation: KnnResult, rows: Rows) -> tuple[Floats, Rows]:
    distance, neighbor = relation.of(rows)
    return distance[:, 0], neighbor[:, 0]


def _kth(relation: KnnResult, rows: Rows) -> Floats:
    distance, neighbor = relation.of(rows)
    return KnnResult(rows, distance, neighbor).radius(K)


def _with_copies(distance: Floats, row: Rows, copy: Rows) -> tuple[Floats, Rows]:
    return np.where(copy >= 0, 0.0, distance), np.where(copy >= 0, copy, row)


def listed_edges(searches: ViewSearches, copies: Copies, radius: float, codes: tuple[int, int]) -> Edges:
    """Return the edges that Datalab sees: from each row to those of its ten nearest that are within the radius.

    A row's own copies come first on its list, and every other row there counts as often as it has copies; copies
    are connected whatever their number: by edges of their own, and across the sets here.

    Args:
        searches: of distinct rows, DATALAB_K neighbours each.
        copies: of all sets.
        radius: strict.
        codes: of the real set and the generator.
    """
    real, own = codes
    parts = []
    for same, cross, code, other in (
        (searches.real_real, searches.real_own, real, own),
        (searches.own_own, searches.own_real, own, real),
    ):
        distance = np.concatenate([same.distance, cross.distance], axis=1)
        neighbor = np.concatenate([same.neighbor, cross.neighbor], axis=1)
        ends = np.repeat(np.array([code, other], np.int32), [same.distance.shape[1], cross.distance.shape[1]])
        order = np.lexsort((neighbor, distance), axis=1)
        distance, neighbor = np.take_along_axis(distance, order, 1), np.take_along_axis(neighbor, order, 1)
        counts = copies.counts(neighbor.ravel()).reshape(neighbor.shape)
        before = np.cumsum(counts, axis=1) - counts + (copies.counts(same.row) - 1)[:, None]
        who, column = np.nonzero((distance < radius) & ((before < DATALAB_K) | (distance == 0)))
        left: Codes = np.full(len(who), code, np.int32)
        parts.append(
            Edges(same.row[who], neighbor[who, column], distance[who, column], left, ends[order[who, column]])
        )
    return distinct_edges(parts)


@dataclass(frozen=True)
class NeighborView:
    """What one generator's rows and the real rows are to each other: the numbers behind metrics.json.

    ``is_whole`` tells that every near-duplicate pair was looked for: not so in datalab mode. ``spreads`` are
    those of precision and coverage (manifold.py).
    """

    generator: str
    calibration: RadiusCalibration
    groups: Groups
    rows: int
    searches: dict[str, Any]
    is_whole: bool = True
    spreads: dict[str, Blocks] = field(default_factory=dict)

    @property
    def median_distance(self) -> float | None:
        """The median that distances are measured by."""
        return self.calibration.median

    @property
    def radius(self) -> float:
        """Below which rows are near-duplicates."""
        return self.calibration.radius

    def summary(self) -> dict[str, Any]:
        """Return the block ``neighbors`` of metrics.json, but for what the reducer adds."""
        calibrated = self.radius > EXACT_COPIES_ONLY
        reason = {} if self.is_whole else {"reason": "datalab mode knows ten neighbours of a row and no more"}
        if not calibrated or self.median_distance is None:
            reason = {"reason": "too few distinct real rows"}
        ids, first = np.unique(self.groups.near_duplicate_id, return_index=True)
        return {
            **reason,
            "radius": self.radius if calibrated else None,
            "median_distance": self.median_distance,
            "groups": len(ids),
            "rows_in_groups": len(self.groups.row),
            "share_in_groups": len(self.groups.row) / max(1, self.rows),
            "share_in_largest": int(self.groups.size.max(initial=0)) / max(1, self.rows),
            "chains": int(self.groups.is_chain[first].sum()),
            "largest_diameter": float(self.groups.diameter.max(initial=0.0)),
            "recall": 1.0 if self.is_whole else None,
            "calibration": self.calibration.summary(),
            "nearest": self.searches,
        }


def prdc_deviations(real: NDArray[np.floating], own: NDArray[np.floating]) -> dict[str, Blocks]:
    """Return how precision, coverage, recall and density vary between data sets, for k = K (prdc_variance.py).

    Args:
        real: (n, d) distinct real rows, or a sample of them; none zero.
        own: (m, d) rows of the generator, in the sets' proportion; none zero.
    """
    return share_deviations(unit(real), unit(own), (vector_hashes(real), vector_hashes(own)), K)


def searches_summary(recalls: Iterable[Recall | None]) -> dict[str, Any]:
    """Return whether a view's nearest neighbours are exact, and with what recall if some search is not."""
    measured = [recall for recall in recalls if recall is not None]
    if not measured:
        return {"exact": True, "recall": 1.0, "recall_all": 1.0, "queries": 0}
    return {
        "exact": False,
        "recall": min(r.nearest for r in measured),
        "recall_all": min(r.all for r in measured),
        "queries": min(r.queries for r in measured),
    }
