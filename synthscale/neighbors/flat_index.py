"""Exact k-NN and radius search over a small set, by brute force.

One float32 matrix product gives lower bounds of all distances (candidate_filter.py) and selects candidates. Every
distance that decides a result is computed by distance.py in float64.
"""

from collections.abc import Iterator

import faiss
import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.candidate_filter import allowance, as_database, as_queries
from synthscale.neighbors.distance import (
    Floats,
    Rows,
    normalized,
    paired_distance,
    squared_norms,
)
from synthscale.tables.layout import DistanceMetric

_BLOCK = 2048
"""Queries searched at a time."""
_MARGIN = 8
"""Extra candidates of a k-NN search, so that float64 decides near-ties at the k-th place. Fewer make the second
look at an undecided query more frequent; the result is the same."""
_GROUP = 32
"""Rows whose smallest bound stands for all of them when the limit of candidates is chosen; affects the cost."""
_BLOCK_NUMBERS = 2**24
"""Entries of a matrix of queries x rows: 64 MiB of float32."""


class FlatIndex:
    """Brute-force index over the distinct rows of one set, or over a part of them."""

    def __init__(self, vectors: NDArray[np.floating], rows: Rows, metric: DistanceMetric = "cosine") -> None:
        """Build the index from vectors (n, d), none zero if ``cosine``, and their row numbers (n,)."""
        self.rows, self._metric = rows, metric
        self._vectors = normalized(vectors, metric)
        self._narrow = self._vectors.astype(np.float32)
        self._magnitude = squared_norms(self._narrow)
        self._database = as_database(self._narrow, 0.0, self._magnitude)

    def write(self, path: str) -> None:
        """Write the index for ``faiss.read_index``. Its ids are row numbers.

        It takes queries of unit length and ranks by inner product if ``cosine``, by distance if ``euclidean``.
        """
        kind = faiss.IndexFlatIP if self._metric == "cosine" else faiss.IndexFlatL2
        named = faiss.IndexIDMap(kind(self._vectors.shape[1]))
        named.add_with_ids(self._narrow, self.rows)
        faiss.write_index(named, path)

    def nearest(self, vectors: NDArray[np.floating], query_rows: Rows, k: int) -> tuple[Floats, Rows]:
        """Return the k nearest rows of each query, excluding the query itself.

        Args:
            vectors: (m, d) queries as stored, none zero if ``cosine``.
            query_rows: (m,) row numbers of the queries.
            k: number of neighbours.

        Returns:
            Distances and row numbers, (m, k) each, ascending by distance; padded with inf and -1.
        """
        queries = normalized(vectors, self._metric)
        distances = np.full((len(queries), k), np.inf)
        rows = np.full((len(queries), k), -1, np.int64)
        for block, lower in self._lower_bounds(queries):
            limit = _candidate_limit(lower, min(k + 1 + _MARGIN, len(self.rows)))
            query, position = np.divmod(np.flatnonzero(lower <= limit[:, None]), len(self.rows))
            self._keep_nearest(queries, query_rows, query + block.start, position, (distances, rows))
            # All rows nearer than the limit are candidates. If it does not exceed the k-th distance, another row
            # may be nearer.
            if len(position) < lower.size:
                for i in np.flatnonzero(limit <= distances[block, -1]):
                    one = block.start + i
                    within = np.flatnonzero(lower[i] <= distances[one, -1])
                    self._keep_nearest(queries, query_rows, np.full(len(within), one), within, (distances, rows))
        rows[np.isinf(distances)] = -1
        return distances, rows

    def _keep_nearest(
        self,
        queries: Floats,
        query_rows: Rows,
        query: NDArray[np.intp],
        position: NDArray[np.intp],
        nearest: tuple[Floats, Rows],
    ) -> None:
        """Set the nearest rows of some queries from candidate pairs (query ascending, position), in place."""
        distances, rows = nearest
        exact = paired_distance(queries, query, self._vectors, position)
        found_rows = self.rows[position]
        exact[found_rows == query_rows[query]] = np.inf
        # Ties go to the smaller row number, so that the result does not depend on the order of the candidates.
        order = np.lexsort((found_rows, exact, query))
        starts = np.searchsorted(query, query)
        place = np.arange(len(query)) - starts
        kept = place < distances.shape[1]
        at = query[kept], place[kept]
        distances[at], rows[at] = exact[order][kept], found_rows[order][kept]

    def _lower_bounds(self, queries: Floats) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield blocks of queries with float32 lower bounds of their distances from all rows."""
        step = max(1, min(_BLOCK, _BLOCK_NUMBERS // max(1, len(self.rows))))
        for start in range(0, len(queries) if len(self.rows) else 0, step):
            narrow = queries[start : start + step].astype(np.float32)
            left = as_queries(narrow, 0.0, squared_norms(narrow))
            yield slice(start, start + len(narrow)), -(left @ self._database.T)

    def count_containing(
        self, vectors: NDArray[np.floating], query_rows: Rows, radii: Floats, most: int
    ) -> NDArray[np.int32]:
        """Count, for each query, the other rows whose radius (<=) contains it.

        Args:
            vectors: (m, d) queries as stored, none zero if ``cosine``.
            query_rows: (m,) row numbers of the queries.
            radii: (n,) distances, in the order of ``rows``; -inf where a row has no radius.
            most: counts below it are exact, larger ones may be too small, but not below it.

        Returns:
            (m,) counts.
        """
        return self._count(vectors, query_rows, np.broadcast_to(radii, (len(vectors), len(radii))), most)

    def count_within(
        self,
        vectors: NDArray[np.floating],
        query_rows: Rows,
        radii: Floats,
        counts: NDArray[np.integer],
        most: int,
    ) -> NDArray[np.int32]:
        """Count the rows within (<=) each query's own radius, excluding the query itself.

        Args:
            vectors: (m, d) queries as stored, none zero if ``cosine``.
            query_rows: (m,) row numbers of the queries.
            radii: (m,) distances.
            counts: (n,) multiplicity of each row: the number of its exact copies, itself included.
            most: as in `count_containing`.

        Returns:
            (m,) counts.
        """
        limits = np.broadcast_to(radii[:, None], (len(vectors), len(self.rows)))
        return self._count(vectors, query_rows, limits, most, counts)

    def _count(
        self,
        vectors: NDArray[np.floating],
        query_rows: Rows,
        radii: Floats,
        most: int,
        counts: NDArray[np.integer] | None = None,
    ) -> NDArray[np.int32]:
        """Count, for each query, the rows at a distance of at most the radius of the pair: radii (m, n)."""
        queries = normalized(vectors, self._metric)
        weight = np.ones(len(self.rows), np.float32) if counts is None else counts.astype(np.float32)
        result = np.zeros(len(queries), np.int32)
        own = 2 * allowance(self._narrow, self._magnitude).astype(np.float32)
        for block, lower in self._lower_bounds(queries):
            excess = lower - radii[block].astype(np.float32)
            excess[query_rows[block, None] == self.rows[None, :]] = np.inf
            narrow = queries[block].astype(np.float32)
            # A lower bound is below the distance by at most twice the pair's allowance.
            uncertain = 2 * allowance(narrow, squared_norms(narrow)).astype(np.float32)[:, None] + own
            result[block] = np.rint((excess <= -uncertain).astype(np.float32) @ weight)
            # Pairs within the float32 error of their radius are recomputed in float64.
            query, position = np.nonzero((excess > -uncertain) & (excess <= 0) & (result[block, None] < most))
            query += block.start
            close = paired_distance(queries, query, self._vectors, position) <= radii[query, position]
            np.add.at(result, query[close], weight[position[close]].astype(np.int32))
        return result


def _candidate_limit(lower: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return, for each query, a limit that at least ``count`` of its lower bounds, (m, n), do not exceed: (m,)."""
    m, n = lower.shape
    groups = n // _GROUP
    if groups >= 2 * count:
        # The smallest bounds of groups are bounds of different rows, and much fewer to sort.
        lower = lower[:, : groups * _GROUP].reshape(m, groups, _GROUP).min(axis=2)
    limit: NDArray[np.float32] = np.partition(lower, count - 1, axis=1)[:, count - 1]
    return limit
