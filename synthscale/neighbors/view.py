"""One generator's view: its near-duplicates and nearest rows, as if it were alone with the real set.

Takes the results of searches over *distinct* rows (exact copies collapsed) and returns arrays over all rows. The
same functions serve one shard of a run and a whole set in memory. Reads and writes no files.
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
"""Neighbours that define the k-NN radius of precision and coverage (5: Naeem et al. 2020)."""
DATALAB_K = 10
"""Neighbours that cleanlab Datalab lists for each row; it misses near-duplicates beyond them."""


def neighbors_listed(config: NeighborsConfig) -> int:
    """Return k of the searches within a set."""
    return DATALAB_K if config.mode == "datalab" else K


@dataclass(frozen=True)
class Nearest:
    """Nearest neighbours of n rows of one generator's view: (n,) arrays; -1 and inf where there is no neighbour.

    Attributes:
        row: row numbers, the real rows first.
        is_real: whether the row is real.
        nn_row, nn_distance: the nearest other row of the view.
        nearest_real_row, nearest_real_distance: the nearest real row; for a real row, the nearest other one.
        distinct_real_distance: for real rows, distance to the nearest other real row that is not an exact copy.
        knn_radius: distance to the K-th neighbour in the row's own set.
        in_real_manifold: whether the row is within the k-NN radius of another real row.
        covered: for real rows, whether their k-NN radius contains a synthetic row.
        exact: whether the distances come from searches that compared all pairs.
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
class ViewNeighbors:
    """Search results for one view, over its distinct rows or some of them.

    Attributes:
        searches: nearest rows within and across the two sets.
        real_inside: for real rows, the real radii that contain them.
        own_inside: for the generator's rows, the real radii that contain them; not saturated if ``recalled`` is
            given.
        recalled: for real rows, the generator's radii that contain them (for recall); None if not searched.
        synthetic_in_radius: for real rows, the generator's rows within their radius; None if not searched.
    """

    searches: ViewSearches
    real_inside: RadiusCounts
    own_inside: RadiusCounts
    recalled: RadiusCounts | None = None
    synthetic_in_radius: RadiusCounts | None = None


def nearest_rows(found: ViewNeighbors, copies: Copies, real: Rows, own: Rows) -> Nearest:
    """Return the nearest neighbours of real rows and a generator's rows.

    A copy has the search results of its representative.

    Args:
        found: search results that include the representative of every row.
        copies: exact copies within each set.
        real: real rows, ascending.
        own: rows of the generator, ascending.
    """
    searches, (real_of, own_of) = found.searches, (copies.representatives(real), copies.representatives(own))
    real_copy, own_copy = copies.another(real), copies.another(own)
    # Real rows: the nearest other real row, and the nearest of the generator's rows.
    d_distinct, r_distinct = _first(searches.real_real, real_of)
    d_real, r_real = _with_copies(d_distinct, r_distinct, real_copy)
    d_cross, r_cross = _first(searches.real_synthetic, real_of)
    # Synthetic rows: the nearest real row, and the nearest other row of the generator.
    d_own, r_own = _with_copies(*_first(searches.synthetic_synthetic, own_of), own_copy)
    d_nr, r_nr = _first(searches.synthetic_real, own_of)
    real_radius = _kth(searches.real_real, real_of)
    n, m = len(real), len(own)
    synthetic_in_radius, containing = np.full(n + m, -1, np.int32), np.full(n + m, -1, np.int32)
    recalled = np.full(n + m, -1, np.int8)
    if found.synthetic_in_radius is not None:
        synthetic_in_radius[:n] = found.synthetic_in_radius.counts_of(real_of)
    if found.recalled is not None:
        containing[n:], recalled[:n] = found.own_inside.counts_of(own_of), found.recalled.of(real_of)
    exact = [
        r.recall is None
        for r in (
            searches.real_real,
            searches.real_synthetic,
            searches.synthetic_synthetic,
            searches.synthetic_real,
        )
    ]
    return Nearest(
        row=np.concatenate([real, own]),
        is_real=np.arange(len(real) + len(own)) < len(real),
        nn_row=np.concatenate([np.where(d_cross < d_real, r_cross, r_real), np.where(d_nr <= d_own, r_nr, r_own)]),
        nn_distance=np.concatenate([np.minimum(d_cross, d_real), np.minimum(d_nr, d_own)]),
        nearest_real_row=np.concatenate([r_real, r_nr]),
        nearest_real_distance=np.concatenate([d_real, d_nr]),
        distinct_real_distance=np.concatenate([d_distinct, np.full(m, np.inf)]),
        knn_radius=np.concatenate([real_radius, _kth(searches.synthetic_synthetic, own_of)]),
        in_real_manifold=np.concatenate(
            [found.real_inside.of(real_of) | (real_copy >= 0), found.own_inside.of(own_of)]
        ),
        covered=np.concatenate([d_cross <= real_radius, np.zeros(len(own), np.bool_)]),
        exact=np.concatenate([np.full(n, exact[0] and exact[1]), np.full(m, exact[2] and exact[3])]),
        synthetic_in_radius=synthetic_in_radius,
        real_radii_containing=containing,
        in_synthetic_manifold=recalled,
    )


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
        spreads: deviations of precision, coverage, recall and density between data sets (`prdc_deviations`).
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
        """Cosine distance below which rows are near-duplicates."""
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
    """Return the deviations of precision, coverage, recall and density between data sets, for k = K.

    See `prdc_variance.share_deviations`.

    Args:
        real: (n, d) distinct real rows, or a sample of them; none zero.
        own: (m, d) rows of the generator, in the sets' proportion; none zero.
    """
    return share_deviations(unit(real), unit(own), (vector_hashes(real), vector_hashes(own)), K)


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
