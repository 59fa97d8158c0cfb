"""What distinct rows of one set find in another, how that is searched, and how sure it is.

A search compares all pairs while they are few; beyond that it probes cells of the database's index, and its recall
is measured against all pairs on a seeded sample. Which it is depends on the two sets alone, so that another
generator changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.cell_index import CellIndex
from synthscale.neighbors.distance import Floats, Rows
from synthscale.neighbors.flat_index import FlatIndex

EXACT_PAIRS = 4e9
"""All pairs are compared up to this many (10-20 s of a core), in each direction between two sets."""
FLAT_ROWS = 8192
"""Sets up to this size are searched in float64 without cells."""
SAMPLED_QUERIES = 4096
"""Queries that the median is estimated from, and recall measured with, where not all pairs are compared."""
RECALL_NEAREST = 0.99
RECALL_ALL = 0.95
ALL_CELLS = 2**30
UNLIMITED = 2**30

Index = FlatIndex | CellIndex


@dataclass(frozen=True)
class Recall:
    """Share of true neighbours found, over a sample of queries: of the nearest, and of all k."""

    nearest: float
    all: float
    queries: int
    probes: int


@dataclass(frozen=True)
class KnnResult:
    """The nearest rows that distinct rows of one set have in another, each row itself left out.

    Attributes:
        row: (m,) ascending.
        distance: (m, k) ascending; inf where there are fewer.
        neighbor: (m, k) row numbers; -1 where there are fewer.
        recall: None where all pairs were compared.
    """

    row: Rows
    distance: Floats
    neighbor: Rows
    recall: Recall | None = None

    def of(self, rows: Rows) -> tuple[Floats, Rows]:
        """Return the distances and neighbours, (r, k) each, of some of the rows."""
        at = np.searchsorted(self.row, rows)
        return self.distance[at], self.neighbor[at]

    def radius(self, k: int) -> Floats:
        """Return the distance of the k-th neighbour, or of the last there is; -inf where there is none: (m,)."""
        known = np.where(np.isinf(self.distance[:, :k]), -np.inf, self.distance[:, :k])
        return np.asarray(known.max(axis=1, initial=-np.inf))


def concatenate_results(parts: Sequence[KnnResult]) -> KnnResult:
    """Return the relations of ranges of rows, in order, as one."""
    row, distance, neighbor = (
        np.concatenate(column)
        for column in zip(*((part.row, part.distance, part.neighbor) for part in parts), strict=True)
    )
    return KnnResult(row, distance, neighbor)


def is_exact(queries: int, database: int) -> bool:
    """Tell whether a search between sets of these sizes compares all pairs."""
    return queries * database <= EXACT_PAIRS


def search_knn(
    index: Index, queries: NDArray[np.floating], rows: Rows, k: int, probes: int
) -> tuple[Floats, Rows]:
    """Return distances and rows, (m, k) each; a flat index has no cells to probe."""
    if isinstance(index, FlatIndex):
        return index.nearest(queries, rows, k)
    return index.nearest(queries, rows, k, probes)


def count_radii_containing(
    index: Index, queries: NDArray[np.floating], rows: Rows, radii: Floats, probes: int, most: int = 1
) -> NDArray[np.int32]:
    """Return how many rows of the index have a radius that holds a query: (m,), exact up to ``most``."""
    if isinstance(index, FlatIndex):
        found = index.count_containing(queries, rows, radii, most)
    else:
        found = index.count_containing(queries, rows, radii, probes, most)
    return np.minimum(found, most)


def count_within_radius(
    index: Index,
    queries: NDArray[np.floating],
    rows: Rows,
    radii: Floats,
    probes: int,
    counts: NDArray[np.integer],
) -> NDArray[np.int32]:
    """Return how many rows of the index, each with its copies, lie within each query's own radius: (m,)."""
    if isinstance(index, FlatIndex):
        return index.count_within(queries, rows, radii, counts)
    return index.count_within(queries, rows, radii, probes, counts)


def merge_nearest(answers: list[tuple[Floats, Rows]], k: int) -> tuple[Floats, Rows]:
    """Return the k nearest of what the parts of an index answered to the same queries; ties to the smaller row."""
    distance = np.concatenate([d for d, _ in answers], axis=1)
    rows = np.concatenate([r for _, r in answers], axis=1)
    order = np.lexsort((rows, distance), axis=1)[:, :k]
    return np.take_along_axis(distance, order, 1), np.take_along_axis(rows, order, 1)


def choose_probes(found: Mapping[int, Floats], cells: int) -> Recall:
    """Return the fewest of these probes that find enough of the true neighbours of sampled queries.

    Args:
        found: the distances, (m, k), that each number of probes finds; all cells are among them.
        cells: how many there are to probe.
    """
    for probes in sorted(found):
        recall = _recall(found[probes], found[cells], probes)
        if probes == cells or (recall.nearest >= RECALL_NEAREST and recall.all >= RECALL_ALL):
            return recall
    raise ValueError("the answer of all cells is missing")


def probes_to_try(cells: int) -> list[int]:
    """Return the numbers of probes to try in turn until one finds enough; all cells come first, for the truth."""
    return [cells, *(p for p in (round(8 * 2 ** (i / 2)) for i in range(30)) if p < cells)]


def _recall(found: Floats, exact: Floats, probes: int) -> Recall:
    real = np.isfinite(exact)
    # By distance, since rows at equal distances are equally right.
    right = (found <= exact * (1 + 1e-6) + 1e-12) & real
    share = float(right.sum() / max(1, real.sum()))
    nearest = float(right[:, 0].sum() / max(1, real[:, 0].sum()))
    return Recall(nearest, share, len(exact), probes)


def radius_recall(found: NDArray[np.integer], true: NDArray[np.integer], probes: int) -> Recall:
    """Return the share that probing finds of the radii that hold sampled queries: counts, (m,) each."""
    share = float(np.minimum(found, true).sum() / max(1, true.sum()))
    return Recall(share, share, len(true), probes)
