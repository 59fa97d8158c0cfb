"""k-NN search of one set's distinct rows in another set: results, choice of method, and measured recall.

Arrays in, arrays out. Up to `EXACT_PAIRS` pairs a search compares all of them. Beyond that it probes cells of the
database's index, and its recall is measured against an exhaustive search of a seeded sample of queries. The choice
depends on the sizes of the two sets only, so adding another generator does not change it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.cell_index import CellIndex
from synthscale.neighbors.distance import Floats, Rows
from synthscale.neighbors.flat_index import FlatIndex

EXACT_PAIRS = 4e9
"""Pairs of two sets up to which all are compared, in each direction: 10-20 s of one core."""
FLAT_ROWS = 8192
"""Rows up to which a set gets a flat index (no cells, float64) instead of an IVF index."""
SAMPLED_QUERIES = 4096
"""Sampled queries for the median distance and the recall, where not all pairs are compared."""
RECALL_NEAREST = 0.99
"""Minimum recall of the nearest neighbour when probes are chosen."""
RECALL_ALL = 0.95
"""Minimum recall of all k neighbours when probes are chosen."""
ALL_CELLS = 2**30
"""Number of probes that means every cell."""
UNLIMITED = 2**30
"""Saturation count of a radius search that must count every row."""

_TIES = 1e-6
"""Relative tolerance of distances compared with a k-NN radius: float32 vectors round distances by about 1e-7, and
columns with few different values have many ties."""

Index = FlatIndex | CellIndex


@dataclass(frozen=True)
class Recall:
    """Recall of a search on a sample of queries; for radius counts both shares are the same (`radius_recall`).

    Attributes:
        nearest: share of the true nearest neighbours found, 0..1.
        all: share of all true k nearest neighbours found, 0..1.
        queries: number of sampled queries.
        probes: number of cells probed.
    """

    nearest: float
    all: float
    queries: int
    probes: int


@dataclass(frozen=True)
class KnnResult:
    """k nearest neighbours of the distinct rows of a query set in a database set, excluding the row itself.

    Attributes:
        row: (m,) row numbers of the queries, ascending.
        distance: (m, k) distances, ascending along k; padded with inf.
        neighbor: (m, k) row numbers; padded with -1.
        recall: measured recall; None if all pairs were compared.
    """

    row: Rows
    distance: Floats
    neighbor: Rows
    recall: Recall | None = None

    def of(self, rows: Rows) -> tuple[Floats, Rows]:
        """Return distances and neighbours, (r, k) each, of the queries ``rows`` (r,)."""
        at = np.searchsorted(self.row, rows)
        return self.distance[at], self.neighbor[at]

    def radius(self, k: int) -> Floats:
        """Return the k-NN radius of each query: (m,).

        It is the distance of the k-th neighbour, of the last one if there are fewer, and -inf if there is none;
        enlarged by `_TIES`, so that rows at the same distance are within it, however their distances round.
        """
        known = np.where(np.isinf(self.distance[:, :k]), -np.inf, self.distance[:, :k])
        return np.asarray(known.max(axis=1, initial=-np.inf)) * (1 + _TIES)


def concatenate_results(parts: Sequence[KnnResult]) -> KnnResult:
    """Concatenate results of consecutive ranges of queries; the recall is dropped."""
    row, distance, neighbor = (
        np.concatenate(column)
        for column in zip(*((part.row, part.distance, part.neighbor) for part in parts), strict=True)
    )
    return KnnResult(row, distance, neighbor)


def is_exact(queries: int, database: int) -> bool:
    """Return True if a search between sets of these sizes compares all pairs."""
    return queries * database <= EXACT_PAIRS


def search_knn(
    index: Index, queries: NDArray[np.floating], rows: Rows, k: int, probes: int
) -> tuple[Floats, Rows]:
    """Search the k nearest rows of each query; ``probes`` has no effect on a flat index.

    Args:
        index: index of the database set, or of a part of it.
        queries: (m, d) as stored.
        rows: (m,) row numbers of the queries.
        k: number of neighbours.
        probes: number of cells to probe.

    Returns:
        Distances and row numbers, (m, k) each.
    """
    if isinstance(index, FlatIndex):
        return index.nearest(queries, rows, k)
    return index.nearest(queries, rows, k, probes)


def count_radii_containing(
    index: Index, queries: NDArray[np.floating], rows: Rows, radii: Floats, probes: int, most: int = 1
) -> NDArray[np.int32]:
    """Count, for each query, the rows whose k-NN radius contains it: (m,), saturated at ``most``.

    ``radii``, (n,), belong to the rows of the index; other arguments as in `search_knn`.
    """
    if isinstance(index, FlatIndex):
        count = index.count_containing(queries, rows, radii, most)
    else:
        count = index.count_containing(queries, rows, radii, probes, most)
    return np.minimum(count, most)


def count_within_radius(
    index: Index,
    queries: NDArray[np.floating],
    rows: Rows,
    radii: Floats,
    counts: NDArray[np.integer],
    probes_and_most: tuple[int, int],
) -> NDArray[np.int32]:
    """Count the rows of the index, with their exact copies, within each query's own radius: (m,).

    ``radii``, (m,), belong to the queries. ``counts``, (n,), is the number of exact copies of each row of
    the index, itself included. ``probes_and_most``, a `RadiusQuery`, has the number of cells to probe, without
    effect on a flat index, and the count at which results are saturated. Other arguments as in `search_knn`.
    """
    probes, most = probes_and_most
    if isinstance(index, FlatIndex):
        count = index.count_within(queries, rows, radii, counts, most)
    else:
        count = index.count_within(queries, rows, radii, probes, counts, most)
    return np.minimum(count, most)


def merge_nearest(parts: list[tuple[Floats, Rows]], k: int) -> tuple[Floats, Rows]:
    """Merge k-NN results of the same queries on several parts of an index; ties go to the smaller row number."""
    distance = np.concatenate([d for d, _ in parts], axis=1)
    rows = np.concatenate([r for _, r in parts], axis=1)
    order = np.lexsort((rows, distance), axis=1)[:, :k]
    return np.take_along_axis(distance, order, 1), np.take_along_axis(rows, order, 1)


def choose_probes(distances: Mapping[int, Floats], cells: int) -> Recall:
    """Choose the smallest number of probes that reaches `RECALL_NEAREST` and `RECALL_ALL`; return its recall.

    Args:
        distances: (m, k) distances of sampled queries by number of probes; must include all cells.
        cells: number of cells of the index.

    Raises:
        ValueError: if the result of probing all cells is missing.
    """
    for probes in sorted(distances):
        recall = _recall(distances[probes], distances[cells], probes)
        if probes == cells or (recall.nearest >= RECALL_NEAREST and recall.all >= RECALL_ALL):
            return recall
    raise ValueError("the result of probing all cells is missing")


def probes_to_try(cells: int) -> list[int]:
    """Return numbers of probes to try in order: all cells, for the true result, then 8, 11, 16, ... below."""
    return [cells, *(p for p in (round(8 * 2 ** (i / 2)) for i in range(30)) if p < cells)]


def _recall(probed: Floats, exact: Floats, probes: int) -> Recall:
    exists = np.isfinite(exact)
    # Distances are compared, not row numbers, because rows at equal distances are interchangeable.
    correct = (probed <= exact * (1 + 1e-6) + 1e-12) & exists
    share = float(correct.sum() / max(1, exists.sum()))
    nearest = float(correct[:, 0].sum() / max(1, exists[:, 0].sum()))
    return Recall(nearest, share, len(exact), probes)


def radius_recall(counts: NDArray[np.integer], true: NDArray[np.integer], probes: int) -> Recall:
    """Return the recall of radius counts: the share of the true counts ``true``, (m,), in ``counts``, (m,)."""
    share = float(np.minimum(counts, true).sum() / max(1, true.sum()))
    return Recall(share, share, len(true), probes)
