"""Exact k-NN and radius search over a small set, by brute force.

FAISS's float32 inner products only select candidates. Every distance that decides a result is computed by
distance.py in float64: d = |x/|x| - y/|y||^2 / 2 (1 - x.y in float32 is off by up to 6e-7).
"""

import faiss
import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.candidate_filter import SLACK
from synthscale.neighbors.distance import Floats, Rows, cosine_distance, paired_distance, unit

_BLOCK = 2048
"""Queries searched at a time."""
_MARGIN = 8
"""Extra candidates of a k-NN search, so that float64 decides near-ties at the k-th place. Fewer make the range
search that follows an undecided query more frequent; the result is the same."""


class FlatIndex:
    """Brute-force index over the distinct rows of one set, or over a part of them."""

    def __init__(self, vectors: NDArray[np.floating], rows: Rows) -> None:
        """Build the index from vectors (n, d), none zero, and their row numbers (n,)."""
        self.rows = rows
        self._unit = unit(vectors)
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(np.ascontiguousarray(self._unit, dtype=np.float32))

    def write(self, path: str) -> None:
        """Write the index for ``faiss.read_index``. Its ids are row numbers; its queries need unit length."""
        named = faiss.IndexIDMap(faiss.IndexFlatIP(self._index.d))
        named.add_with_ids(self._unit.astype(np.float32), self.rows)
        faiss.write_index(named, path)

    def nearest(self, vectors: NDArray[np.floating], query_rows: Rows, k: int) -> tuple[Floats, Rows]:
        """Return the k nearest rows of each query, excluding the query itself.

        Args:
            vectors: (m, d) queries as stored, none zero.
            query_rows: (m,) row numbers of the queries.
            k: number of neighbours.

        Returns:
            Distances and row numbers, (m, k) each, ascending by distance; padded with inf and -1.
        """
        queries = unit(vectors)
        candidates = min(k + 1 + _MARGIN, len(self.rows))
        distances = np.full((len(queries), k), np.inf)
        rows = np.full((len(queries), k), -1, np.int64)
        for start in range(0, len(queries) if candidates else 0, _BLOCK):
            block = slice(start, start + _BLOCK)
            similarity, position = self._index.search(
                np.ascontiguousarray(queries[block], dtype=np.float32), candidates
            )
            exact = cosine_distance(queries[block, None, :], self._unit[position])
            found_rows = self.rows[position]
            exact[found_rows == query_rows[block, None]] = np.inf
            # Ties go to the smaller row number, so that the result does not depend on FAISS's order.
            order = np.lexsort((found_rows, exact), axis=1)[:, :k]
            width = order.shape[1]
            distances[block, :width] = np.take_along_axis(exact, order, axis=1)
            rows[block, :width] = np.take_along_axis(found_rows, order, axis=1)
            # The last candidate's similarity bounds the distance of all other rows from below. If that bound does
            # not exceed the k-th distance, float32 rounding may have excluded a true neighbour.
            if candidates < len(self.rows):
                undecided = 1.0 - similarity[:, -1] - SLACK <= distances[block, -1]
                for i in start + np.flatnonzero(undecided):
                    distances[i], rows[i] = self._nearest_by_range(queries[i], query_rows[i], distances[i])
        rows[np.isinf(distances)] = -1
        return distances, rows

    def _nearest_by_range(self, query: Floats, row: np.int64, upper: Floats) -> tuple[Floats, Rows]:
        """Return the k nearest rows of one query, by a range search up to the upper bounds ``upper`` (k,)."""
        narrow = np.ascontiguousarray(query[None], dtype=np.float32)
        _, _, position = self._index.range_search(narrow, float(1.0 - upper[-1] - SLACK))
        position = position[self.rows[position] != row]
        exact = cosine_distance(query, self._unit[position])
        order = np.lexsort((self.rows[position], exact))[: len(upper)]
        return exact[order], self.rows[position[order]]

    def count_containing(
        self, vectors: NDArray[np.floating], query_rows: Rows, radii: Floats, most: int
    ) -> NDArray[np.int32]:
        """Count, for each query, the other rows whose radius (<=) contains it.

        Args:
            vectors: (m, d) queries as stored, none zero.
            query_rows: (m,) row numbers of the queries.
            radii: (n,) cosine distances, in the order of ``rows``; -inf where a row has no radius.
            most: counts below it are exact, larger ones may be too small, but not below it.

        Returns:
            (m,) counts.
        """
        return self._count(vectors, query_rows, np.broadcast_to(radii, (len(vectors), len(radii))), most)

    def count_within(
        self, vectors: NDArray[np.floating], query_rows: Rows, radii: Floats, counts: NDArray[np.integer]
    ) -> NDArray[np.int32]:
        """Count the rows within (<=) each query's own radius, excluding the query itself.

        Args:
            vectors: (m, d) queries as stored, none zero.
            query_rows: (m,) row numbers of the queries.
            radii: (m,) cosine distances.
            counts: (n,) multiplicity of each row: the number of its exact copies, itself included.

        Returns:
            (m,) counts.
        """
        limits = np.broadcast_to(radii[:, None], (len(vectors), len(self.rows)))
        return self._count(vectors, query_rows, limits, counts=counts)

    def _count(
        self,
        vectors: NDArray[np.floating],
        query_rows: Rows,
        radii: Floats,
        most: int = 2**30,
        counts: NDArray[np.integer] | None = None,
    ) -> NDArray[np.int32]:
        """Count, for each query, the rows at a distance of at most the radius of the pair: radii (m, n)."""
        queries = unit(vectors)
        weight = np.ones(len(self.rows), np.float32) if counts is None else counts.astype(np.float32)
        result = np.zeros(len(queries), np.int32)
        database = self._unit.astype(np.float32)
        # The block size keeps the float32 matrix of queries x rows within 64 MiB.
        step = max(1, min(_BLOCK, 2**24 // max(1, len(self.rows))))
        for start in range(0, len(queries) if len(self.rows) else 0, step):
            block = slice(start, start + step)
            excess = 1.0 - queries[block].astype(np.float32) @ database.T - radii[block].astype(np.float32)
            excess[query_rows[block, None] == self.rows[None, :]] = np.inf
            result[block] = np.rint((excess <= -SLACK).astype(np.float32) @ weight)
            # Pairs within the float32 error of their radius are recomputed in float64.
            query, position = np.nonzero((np.abs(excess) < SLACK) & (result[block, None] < most))
            close = paired_distance(queries[block], query, self._unit, position) <= radii[start + query, position]
            np.add.at(result, start + query[close], weight[position[close]].astype(np.int32))
        return result
