"""One generator's view: its near-duplicates and nearest rows, as if it were alone with the real set.

Takes the results of searches over *distinct* rows (exact copies collapsed) and returns arrays over all rows. The
same functions serve one shard of a run and a whole set in memory. Reads and writes no files.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.copies import Copies
from synthscale.neighbors.distance import Floats, Rows
from synthscale.neighbors.edges import Codes, Edges, distinct_edges
from synthscale.neighbors.groups import Groups
from synthscale.neighbors.knn_search import KnnResult, Recall
from synthscale.neighbors.radius import EXACT_COPIES_ONLY, RadiusCalibration, ViewSearches
from synthscale.statistics.jackknife import Blocks

K = 5
"""Neighbours that define the k-NN radius of precision and coverage (5: Naeem et al. 2020)."""
DATALAB_K = 10
"""Neighbours that cleanlab Datalab lists for each row; it misses near-duplicates beyond them."""


@dataclass(frozen=True)
class Nearest:
    """Nearest neighbours of n rows of one generator's view: (n,) arrays; -1 and inf where there is no neighbour.

    Attributes:
        row: row numbers, the real rows first.
        is_real: whether the row is real.
        nn_row, nn_distance: the nearest other row of the view.
        nearest_real_row, nearest_real_distance: the nearest real row; for a real row, the nearest other one.
        manifold_real_row, manifold_real_distance: the same in the space of the manifold metrics, as all below.
        distinct_real_distance: for real rows, distance to the nearest other real row that is not an exact copy.
        knn_radius: distance to the K-th neighbour in the row's own set; -inf if not searched.
        in_real_manifold: whether the row is within the k-NN radius of another real row.
        covered: for real rows, whether their k-NN radius contains a synthetic row.
        exact: whether the nearest rows come from searches that compared all pairs.
        synthetic_in_radius: for real rows, number of synthetic rows within their k-NN radius; -1 if not counted.
        real_radii_containing: for synthetic rows, number of real rows whose k-NN radius contains them; -1 if
            not counted.
        in_synthetic_manifold: for real rows, 1 if within a synthetic row's k-NN radius; -1 if not searched.
    """

    row: Rows
    is_real: NDArray[np.bool_]
    nn_row: Rows
    nn_distance: Floats
    nearest_real_row: Rows
    nearest_real_distance: Floats
    manifold_real_row: Rows
    manifold_real_distance: Floats
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
    """Counts of rows within k-NN radii, for m distinct rows.

    Attributes:
        row: (m,) row numbers, ascending.
        count: (m,) other rows whose radius contains the row, or rows within its own radius; may be saturated at 1.
    """

    row: Rows
    count: NDArray[np.integer] | NDArray[np.bool_]

    def of(self, rows: Rows) -> NDArray[np.bool_]:
        """Return, for each of the given rows, whether its count is positive: (r,)."""
        return self.counts_of(rows) > 0

    def counts_of(self, rows: Rows) -> NDArray[np.int32]:
        """Return the counts of the given rows: (r,)."""
        result: NDArray[np.int32] = self.count[np.searchsorted(self.row, rows)].astype(np.int32)
        return result


@dataclass(frozen=True)
class ManifoldNeighbors:
    """Searches in the space of the manifold metrics for one view, over its distinct rows or some of them.

    Attributes:
        real_real: K nearest real rows of the real rows.
        synthetic_real: nearest real row of the generator's rows.
        synthetic_synthetic: K nearest rows of the generator's own rows; None if not searched.
        real_inside: for real rows, the real radii that contain them.
        own_inside: for the generator's rows, the real radii that contain them; not saturated if ``recalled`` is
            given.
        synthetic_in_radius: for real rows, the generator's rows within their radius.
        is_counted: whether ``synthetic_in_radius`` has the full counts; otherwise it is saturated at 1.
        recalled: for real rows, the generator's radii that contain them (for recall); None if not searched.
    """

    real_real: KnnResult
    synthetic_real: KnnResult
    synthetic_synthetic: KnnResult | None
    real_inside: RadiusCounts
    own_inside: RadiusCounts
    synthetic_in_radius: RadiusCounts
    is_counted: bool
    recalled: RadiusCounts | None = None


@dataclass(frozen=True)
class ViewNeighbors:
    """Search results for one view: nearest rows in the space of near-duplicates, and the manifold's."""

    searches: ViewSearches
    manifold: ManifoldNeighbors


def nearest_rows(found: ViewNeighbors, copies: Copies, real: Rows, own: Rows) -> Nearest:
    """Return the nearest neighbours of real rows and a generator's rows.

    A copy has the search results of its representative.

    Args:
        found: search results that include the representative of every row.
        copies: exact copies within each set.
        real: real rows, ascending.
        own: rows of the generator, ascending.
    """
    searches, manifold = found.searches, found.manifold
    real_of, own_of = copies.representatives(real), copies.representatives(own)
    real_copy, own_copy = copies.another(real), copies.another(own)
    # Real rows: the nearest other real row, and the nearest of the generator's rows.
    d_real, r_real = _with_copies(*_first(searches.real_real, real_of), real_copy)
    d_cross, r_cross = _first(searches.real_synthetic, real_of)
    # Synthetic rows: the nearest real row, and the nearest other row of the generator.
    d_own, r_own = _with_copies(*_first(searches.synthetic_synthetic, own_of), own_copy)
    d_nr, r_nr = _first(searches.synthetic_real, own_of)
    d_distinct, r_distinct = _first(manifold.real_real, real_of)
    m_real, m_own = _with_copies(d_distinct, r_distinct, real_copy), _first(manifold.synthetic_real, own_of)
    n, m = len(real), len(own)
    counts = _manifold_counts(manifold, real_of, own_of)
    exact = [
        result.recall is None
        for result in (
            searches.real_real,
            searches.real_synthetic,
            searches.synthetic_synthetic,
            searches.synthetic_real,
        )
    ]
    return Nearest(
        row=np.concatenate([real, own]),
        is_real=np.arange(n + m) < n,
        nn_row=np.concatenate([np.where(d_cross < d_real, r_cross, r_real), np.where(d_nr <= d_own, r_nr, r_own)]),
        nn_distance=np.concatenate([np.minimum(d_cross, d_real), np.minimum(d_nr, d_own)]),
        nearest_real_row=np.concatenate([r_real, r_nr]),
        nearest_real_distance=np.concatenate([d_real, d_nr]),
        manifold_real_row=np.concatenate([m_real[1], m_own[1]]),
        manifold_real_distance=np.concatenate([m_real[0], m_own[0]]),
        distinct_real_distance=np.concatenate([d_distinct, np.full(m, np.inf)]),
        in_real_manifold=np.concatenate(
            [manifold.real_inside.of(real_of) | (real_copy >= 0), manifold.own_inside.of(own_of)]
        ),
        covered=np.concatenate([manifold.synthetic_in_radius.of(real_of), np.zeros(m, np.bool_)]),
        exact=np.concatenate([np.full(n, exact[0] and exact[1]), np.full(m, exact[2] and exact[3])]),
        **counts,
    )


def _manifold_counts(manifold: ManifoldNeighbors, real_of: Rows, own_of: Rows) -> dict[str, NDArray[Any]]:
    """Return the fields of `Nearest` that are not always computed, for real rows and the generator's rows."""
    n, m = len(real_of), len(own_of)
    synthetic_in_radius, containing = np.full(n + m, -1, np.int32), np.full(n + m, -1, np.int32)
    recalled, radius = np.full(n + m, -1, np.int8), np.full(n + m, -np.inf)
    radius[:n] = _kth(manifold.real_real, real_of)
    if manifold.is_counted:
        synthetic_in_radius[:n] = manifold.synthetic_in_radius.counts_of(real_of)
    if manifold.recalled is not None:
        containing[n:] = manifold.own_inside.counts_of(own_of)
        recalled[:n] = manifold.recalled.of(real_of)
    if manifold.synthetic_synthetic is not None:
        radius[n:] = _kth(manifold.synthetic_synthetic, own_of)
    return {
        "knn_radius": radius,
        "synthetic_in_radius": synthetic_in_radius,
        "real_radii_containing": containing,
        "in_synthetic_manifold": recalled,
    }


def _first(result: KnnResult, rows: Rows) -> tuple[Floats, Rows]:
    distance, neighbor = result.of(rows)
    return distance[:, 0], neighbor[:, 0]


def _kth(result: KnnResult, rows: Rows) -> Floats:
    distance, neighbor = result.of(rows)
    return KnnResult(rows, distance, neighbor).radius(K)


def _with_copies(distance: Floats, row: Rows, copy: Rows) -> tuple[Floats, Rows]:
    return np.where(copy >= 0, 0.0, distance), np.where(copy >= 0, copy, row)


def listed_edges(searches: ViewSearches, copies: Copies, radius: float, codes: tuple[int, int]) -> Edges:
    """Return the edges that cleanlab Datalab finds: from each row to those of its ten nearest within the radius.

    Searches see distinct rows, Datalab sees all: a row's own copies fill the first places of its list, and every
    other row takes as many places as it has copies. Copies are always connected, whatever their number: within a
    set by edges of their own (`Copies.edges`), across sets here.

    Args:
        searches: results over distinct rows, DATALAB_K neighbours each.
        copies: exact copies within each set.
        radius: distances below it make an edge.
        codes: set codes of the real set and the generator.
    """
    real, own = codes
    parts = []
    for same, cross, code, other in (
        (searches.real_real, searches.real_synthetic, real, own),
        (searches.synthetic_synthetic, searches.synthetic_real, own, real),
    ):
        distance = np.concatenate([same.distance, cross.distance], axis=1)
        neighbor = np.concatenate([same.neighbor, cross.neighbor], axis=1)
        ends = np.repeat(np.array([code, other], np.int32), [same.distance.shape[1], cross.distance.shape[1]])
        order = np.lexsort((neighbor, distance), axis=1)
        distance, neighbor = np.take_along_axis(distance, order, 1), np.take_along_axis(neighbor, order, 1)
        counts = copies.counts(neighbor.ravel()).reshape(neighbor.shape)
        before = np.cumsum(counts, axis=1) - counts + (copies.counts(same.row) - 1)[:, None]
        line, column = np.nonzero((distance < radius) & ((before < DATALAB_K) | (distance == 0)))
        left: Codes = np.full(len(line), code, np.int32)
        parts.append(
            Edges(same.row[line], neighbor[line, column], distance[line, column], left, ends[order[line, column]])
        )
    return distinct_edges(parts)


@dataclass(frozen=True)
class NeighborView:
    """Radius, groups and quality of the searches of one generator's view.

    Attributes:
        generator: its name.
        calibration: the radius.
        groups: near-duplicate groups.
        rows: rows of the view, copies included.
        searches: whether the nearest rows are exact, and their recall (`searches_summary`).
        is_whole: whether all near-duplicate pairs were searched; not so in mode ``datalab``.
        spreads: deviations of precision, coverage, recall and density between data sets (`share_deviations`).
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
        """Median nearest-neighbour distance, the unit of ``near_duplicate_score``; None if there is none."""
        return self.calibration.median

    @property
    def radius(self) -> float:
        """Distance below which rows are near-duplicates."""
        return self.calibration.radius

    def summary(self) -> dict[str, Any]:
        """Return the block ``neighbors`` of metrics.json; the stage reduce adds to it."""
        calibrated = self.radius > EXACT_COPIES_ONLY
        reason = (
            {}
            if self.is_whole
            else {"reason": "mode datalab lists ten neighbours of a row and misses pairs beyond them"}
        )
        if not calibrated or self.median_distance is None:
            reason = {"reason": "too few distinct real rows"}
        ids, first = np.unique(self.groups.near_duplicate_id, return_index=True)
        return {
            **reason,
            "radius": self.radius if calibrated else None,
            "median_distance": self.median_distance,
            "groups": len(ids),
            "components": len(np.unique(self.groups.component_id)),
            "rows_in_groups": len(self.groups.row),
            "share_in_groups": len(self.groups.row) / max(1, self.rows),
            "share_in_largest": int(self.groups.size.max(initial=0)) / max(1, self.rows),
            "chains": int(self.groups.is_chain[first].sum()),
            "largest_diameter": float(self.groups.diameter.max(initial=0.0)),
            "recall": 1.0 if self.is_whole else None,
            "calibration": self.calibration.summary(),
            "nearest": self.searches,
        }


def searches_summary(recalls: Iterable[Recall | None]) -> dict[str, Any]:
    """Return whether a view's nearest neighbours are exact, and the lowest recall of its searches if not."""
    measured = [recall for recall in recalls if recall is not None]
    if not measured:
        return {"exact": True, "recall": 1.0, "recall_all": 1.0, "queries": 0}
    return {
        "exact": False,
        "recall": min(r.nearest for r in measured),
        "recall_all": min(r.all for r in measured),
        "queries": min(r.queries for r in measured),
    }
