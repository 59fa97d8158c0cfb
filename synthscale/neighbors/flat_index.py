"""The distance formula, and exact cosine search over a small set: FAISS proposes in float32, the formula decides.

The distance of x and y is d = |x/|x| - y/|y||^2 / 2, computed in float64 (1 - x.y in float32 is off by up to
6e-7). FAISS's inner products only shortlist: every distance that leaves this module comes from the formula.
"""

import faiss
import numpy as np
from numpy.typing import NDArray

from synthscale.neighbors.candidate_filter import SLACK
from synthscale.neighbors.distance import Floats, Rows, cosine_distance, paired_distance, unit

_BLOCK = 2048
_MARGIN = 8
"""Further candidates taken by a k-nearest search, so that float32 ties at its edge are settled in float64."""


class FlatIndex:
    """Brute-force search over the distinct rows of one set, or of a part of it."""

    def __init__(self, vectors: NDArray[np.floating], rows: Rows) -> None:
        """Take vectors of shape (n, d), none zero, and their n row numbers."""
        self.rows = rows
        self._unit = unit(vectors)
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(np.ascontiguousarray(self._unit, dtype=np.float32))

    def write(self, path: str) -> None:
        """Write the index for ``faiss.read_index``; its ids are row numbers, its queries scaled to length 1."""
        named = faiss.IndexIDMap(faiss.IndexFlatIP(self._index.d))
        named.add_with_ids(self._unit.astype(np.float32), self.rows)
        faiss.write_index(named, path)

    def nearest(self, vectors: NDArray[np.floating], query_rows: Rows, k: int) -> tuple[Floats, Rows]:
        """Return the k nearest rows of each query (m, d), itself left out; inf and -1 fill what is missing."""
        queries = unit(vectors)
        take = min(k + 1 + _MARGIN, len(self.rows))
        distances = np.full((len(queries), k), np.inf)
        rows = np.full((len(queries), k), -1, np.int64)
        for start in range(0, len(queries) if take else 0, _BLOCK):
            block = slice(start, start + _BLOCK)
            similar, found = self._index.search(np.ascontiguousarray(queries[block], dtype=np.float32), take)
            exact = cosine_distance(queries[block, None, :], self._unit[found])
            found_rows = self.rows[found]
            exact[found_rows == query_rows[block, None]] = np.inf
            # Ties go to the smaller row, so that the answer does not depend on FAISS's order.
            order = np.lexsort((found_rows, exact), axis=1)[:, :k]
            width = order.shape[1]
            distances[block, :width] = np.take_along_axis(exact, order, axis=1)
            rows[block, :width] = np.take_along_axis(found_rows, order, axis=1)
            # What was not shortlisted is at least this far; where that is too near, float32 may have misled.
            if take < len(self.rows):
                unsure = 1.0 - similar[:, -1] - SLACK <= distances[block, -1]
                for i in start + np.flatnonzero(unsure):
                    distances[i], rows[i] = self._nearest_of_many(queries[i], query_rows[i], distances[i])
        rows[np.isinf(distances)] = -1
        return distances, rows

    def _nearest_of_many(self, query: Floats, row: np.int64, upper: Floats) -> tuple[Floats, Rows]:
        """Decide among all rows that float32 cannot tell from the k nearest; ``upper`` bounds their distances."""
        narrow = np.ascontiguousarray(query[None], dtype=np.float32)
        _, _, found = self._index.range_search(narrow, float(1.0 - upper[-1] - SLACK))
        found = found[self.rows[found] != row]
        exact = cosine_distance(query, self._unit[found])
        order = np.lexsort((self.rows[found], exact))[: len(upper)]
        return exact[order], self.rows[found[order]]

    def is_inside(self, vectors: NDArray[np.floating], query_rows: Rows, radii: Floats) -> NDArray[np.bool_]:
        """Tell which queries (m, d) lie within (<=) the radius of some row other than themselves; radii: (n,)."""
        return self.count_containing(vectors, query_rows, radii, most=1) > 0

    def count_containing(
        self, vectors: NDArray[np.floating], query_rows: Rows, radii: Floats, most: int
    ) -> NDArray[np.int32]:
        """Return how many rows' radii hold each query (m, d), itself left out: (m,), right up to ``most``."""
        return self._count(vectors, query_rows, np.broadcast_to(radii, (len(vectors), len(radii))), most)

    def count_within(
        self, vectors: NDArray[np.floating], query_rows: Rows, radii: Floats, counts: NDArray[np.integer]
    ) -> NDArray[np.int32]:
        """Return how many rows lie within (<=) each query's own radius, itself left out; radii, result: (m,).

        ``counts``, (n,), are what each row counts for: its exact copies.
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
        """Count the rows whose distance from a query is at most the pair's radius: radii (m, n)."""
        queries = unit(vectors)
        weight = np.ones(len(self.rows), np.float32) if counts is None else counts.astype(np.float32)
        result = np.zeros(len(queries), np.int32)
        database = self._unit.astype(np.float32)
        # As many queries at a time as keep their distances to all rows within 64 MiB.
        step = max(1, min(_BLOCK, 2**24 // max(1, len(self.rows))))
        for start in range(0, len(queries) if len(self.rows) else 0, step):
            block = slice(start, start + step)
            excess = 1.0 - queries[block].astype(np.float32) @ database.T - radii[block].astype(np.float32)
            excess[query_rows[block, None] == self.rows[None, :]] = np.inf
            result[block] = np.rint((excess <= -SLACK).astype(np.float32) @ weight)
            # What float32 cannot settle, the formula does.
            who, which = np.nonzero((np.abs(excess) < SLACK) & (result[block, None] < most))
            close = paired_distance(queries[block], who, self._unit, which) <= radii[start + who, which]
            np.add.at(result, start + who[close], weight[which[close]].astype(np.int32))
        return result
